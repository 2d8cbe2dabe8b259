"""The file from which a killed run goes on: of training, or of a suite of attacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Checkpoint:
    """The file of a run: all that it needs to go on. A run killed while it writes leaves the old one."""

    path: Path
    settings: tuple  # what decides the run; a file with others is refused
    run: str  # what of
    generator: torch.Generator

    def __post_init__(self):
        if not self.path.parent.is_dir():
            raise ValueError(f"expected a checkpoint in a folder that exists, got {self.path}")

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, and where the generator stands."""
        half = self.path.with_name(self.path.name + ".part")
        drawn = self.generator.get_state()
        torch.save({"settings": [self.run, *self.settings], "generator": drawn, "state": state}, half)
        half.replace(self.path)

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state in the file, and the generator where it stood; None if there is no file."""
        if not self.path.exists():
            return None
        try:
            kept = torch.load(self.path, map_location=device, weights_only=True)
            of, drawn, state = (kept[k] for k in ("settings", "generator", "state"))
        except Exception as error:  # torch.load raises whatever it stumbles over
            raise ValueError(f"{self.path} is not a checkpoint of {self.run}") from error
        mine = [self.run, *self.settings]
        if of != mine:
            raise ValueError(
                f"{self.path} is the checkpoint of another run than this {self.run}, of another "
                f"network, other samples or other settings: expected {mine}, got {of}"
            )
        self.generator.set_state(drawn.cpu())
        return state
