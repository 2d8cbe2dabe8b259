"""The file from which a killed run of `training.fit` goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Checkpoint:
    """The file of a run: all that it needs to go on. A run killed while it writes leaves the old one."""

    path: Path
    settings: tuple  # what decides the run; a file with others is refused
    model: nn.Module
    memory: list[Tensor]  # of the optimiser
    generator: torch.Generator

    def __post_init__(self):
        if not self.path.parent.is_dir():
            raise ValueError(f"expected a checkpoint in a folder that exists, got {self.path}")

    def save(self, number: int, record: tuple | None) -> None:
        """Write what there is after so many epochs."""
        half = self.path.with_name(self.path.name + ".part")
        state = {"settings": list(self.settings), "epoch": number, "record": record}
        state |= {"model": self.model.state_dict(), "memory": self.memory}
        torch.save(state | {"generator": self.generator.get_state()}, half)
        half.replace(self.path)

    def resume(self) -> tuple[int, tuple | None]:
        """Put what takes part where the file says.  Returns the epochs done, the record."""
        if not self.path.exists():
            return 0, None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            shapes = [(name, value.shape) for name, value in state["model"].items()]
            of, number, record, steps, drawn = (
                state[k] for k in ("settings", "epoch", "record", "memory", "generator")
            )
        except Exception as error:  # torch.load raises whatever it stumbles over
            raise ValueError(f"{self.path} is not a checkpoint of fit") from error
        if of != list(self.settings) or shapes != [
            (name, value.shape) for name, value in self.model.state_dict().items()
        ]:
            raise ValueError(
                f"{self.path} is the checkpoint of another network, or of another run: {of}, "
                f"expected {list(self.settings)}"
            )
        self.model.load_state_dict(state["model"])
        for now, then in zip(self.memory, steps, strict=True):
            now.copy_(then)
        self.generator.set_state(drawn)
        return number, record
