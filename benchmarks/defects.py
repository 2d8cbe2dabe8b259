"""What each library's PGD does to the caller's model and what it accepts, tried live."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import attacks, models

from . import peers, tables

PS = (math.inf, 2)


def network(shape: tuple[int, ...] = (1, 8, 8), dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small network with BatchNorm, in training mode, as a careless caller has it."""
    d = math.prod(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(d, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)]
        return nn.Sequential(*layers).to(dtype).train()


def batch(shape: tuple[int, ...] = (1, 8, 8), n: int = 8, dtype: torch.dtype = torch.float32):
    """Random images and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(10, (n,), generator=generator)


def run(adapter: Callable, model: nn.Module, x: Tensor, y: Tensor, p: float = math.inf, **more):
    """Ten steps of an attack with ε = 0.1 (1 for p = 2)."""
    eps = 0.1 if p == math.inf else 1.0
    return adapter(model, p, eps, eps / 5, 10, **more)(x, y)


# ---- what an attack must not do: True means that it does ----


def moves_statistics(adapter: Callable) -> bool:
    """Whether the running statistics of BatchNorm are others afterwards."""
    model = network()
    before = copy.deepcopy(dict(model.named_buffers()))
    run(adapter, model, *batch())
    return any(not torch.equal(v, before[k]) for k, v in model.named_buffers())


def changes_mode(adapter: Callable) -> bool:
    """Whether a model in training mode is so no more."""
    model = network()
    run(adapter, model, *batch())
    return not all(m.training for m in model.modules())


def changes_mode_of_a_layer(adapter: Callable) -> bool:
    """Whether a BatchNorm that the caller has frozen in a model in training mode is so no more."""
    model = network()
    model[2].eval()
    run(adapter, model, *batch())
    return model[2].training or not model.training


def leaves_gradients(adapter: Callable) -> bool:
    """Whether a parameter has a gradient afterwards."""
    model = network()
    run(adapter, model, *batch())
    return any(v.grad is not None for v in model.parameters())


def requires_grad(adapter: Callable) -> bool:
    """Whether what comes back is part of a graph."""
    return run(adapter, network(), *batch()).requires_grad


def resets_seed(adapter: Callable) -> bool:
    """Whether what the caller draws after the attack no longer depends on the caller's seed."""
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        run(adapter, network().eval(), *batch(), random=True)
        drawn.append((torch.rand(()).item(), np.random.rand()))  # noqa: NPY002
    return any(a == b for a, b in zip(*drawn, strict=True))


def uses_global_seed(adapter: Callable) -> bool:
    """Whether a random start takes its numbers from a global generator."""
    before = torch.get_rng_state(), np.random.get_state()[2]  # noqa: NPY002
    run(adapter, network().eval(), *batch(), random=True)
    after = torch.get_rng_state(), np.random.get_state()[2]  # noqa: NPY002
    return not torch.equal(before[0], after[0]) or before[1] != after[1]


# ---- what an attack should do: True means that it does ----


def works_without_grad(adapter: Callable) -> bool:
    """Whether it moves the images where the caller has turned gradients off."""
    with torch.no_grad():
        moved = run(adapter, network().eval(), *batch())
    return not torch.equal(moved, batch()[0])


def takes_float64(adapter: Callable) -> bool:
    """Whether float64 passes and comes back, for p = ∞ and 2."""
    model, (x, y) = network(dtype=torch.float64).eval(), batch(dtype=torch.float64)
    return all(run(adapter, model, x, y, p).dtype == torch.float64 for p in PS)


def takes(*shape: int) -> Callable[[Callable], bool]:
    """Whether inputs (n, *shape) pass, for p = ∞ and 2."""

    def check(adapter: Callable) -> bool:
        model, (x, y) = network(shape).eval(), batch(shape)
        return all(run(adapter, model, x, y, p).shape == x.shape for p in PS)

    return check


def refuses_outside_box(adapter: Callable) -> bool:
    """Whether images outside [0, 1] are an error."""
    x, y = batch()
    run(adapter, network().eval(), x, y)  # so that what fails below fails because of the box
    try:
        run(adapter, network().eval(), 3 * x - 1, y)
    except Exception:
        return True
    return False


def equals_single_samples(adapter: Callable) -> bool:
    """Whether a batch gives what its samples give one by one, to 1e-6."""
    model, (x, y) = models.mlp([64, 32, 10]).eval(), batch(n=16)
    return all(
        torch.allclose(
            run(adapter, model, x, y, p).detach(),
            torch.cat([run(adapter, model, x[i : i + 1], y[i : i + 1], p).detach() for i in range(16)]),
            rtol=0,
            atol=1e-6,
        )
        for p in PS
    )


def same_generator_same_bits(adapter: Callable) -> bool:
    """Whether a random start is the same with the same generator."""
    x, y = batch()
    first, second = (
        run(adapter, network(), x, y, random=True, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    return torch.equal(first, second)


def takes_generator(adapter: Callable) -> bool:
    """Whether a function or class of the library's PGD has an argument of that name."""
    return any("generator" in inspect.signature(v).parameters for v in ENTRIES[adapter]())


def entry(module: str, *names: str) -> Callable[[], list]:
    """Names of a module, imported when they are asked for."""
    return lambda: [getattr(__import__(module, fromlist=names), name) for name in names]


OURS = peers.ours("best")
ENTRIES = {
    OURS: lambda: [attacks.pgd],
    peers.torchattacks: entry("torchattacks", "PGD", "PGDL2"),
    peers.foolbox: entry("foolbox.attacks", "LinfPGD", "L2PGD"),
    peers.cleverhans: entry(
        "cleverhans.torch.attacks.projected_gradient_descent", "projected_gradient_descent"
    ),
    peers.art: entry("art.attacks.evasion", "ProjectedGradientDescentPyTorch"),
    peers.library_apgd: lambda: [peers.other_adv_lib().apgd],
}
NAMES = ("adv_lib", "torchattacks", "foolbox", "cleverhans", "ART", "APGD of adv-lib")
BAD = {
    "moves BatchNorm statistics": moves_statistics,
    "changes train/eval mode": changes_mode,
    "changes it when one layer is frozen": changes_mode_of_a_layer,
    "leaves `param.grad`": leaves_gradients,
    "result requires grad": requires_grad,
    "resets a global seed": resets_seed,
    "random start draws from a global generator": uses_global_seed,
}
GOOD = {
    "works under `torch.no_grad`": works_without_grad,
    "takes float64 and returns it": takes_float64,
    "takes inputs (n, 8)": takes(8),
    "takes inputs (n, 4, 6)": takes(4, 6),
    "takes inputs (n, 5, 7, 7)": takes(5, 7, 7),
    "refuses x outside the box": refuses_outside_box,
    "a batch equals its single samples to 1e-6": equals_single_samples,
    "takes a `torch.Generator`": takes_generator,
    "same generator, same bits": same_generator_same_bits,
}
# Without a generator there is nothing to repeat, and APGD's random start cannot be turned off.
MEANINGLESS = {(name, "same generator, same bits") for name in NAMES[1:]}
MEANINGLESS |= {(NAMES[-1], "a batch equals its single samples to 1e-6")}

TEXT = """## Defects, looked for live

Ten steps of each library's PGD, for p = ∞, and for p = 2 too where the row says what it takes. The
network is small, has BatchNorm, and in the first five rows the caller has left it in training mode, of
which foolbox warns. The first {bad} rows should say no, the others yes; what should be otherwise is
bold. An attack that stops with an error *fails*; its error is below the table. A dash: there is nothing
to test, since the library takes no generator or cannot start at δ = 0.

{table}

{errors}

Target 4, every row clean for `adv_lib`: **{verdict}**.
"""


def section(_pair) -> str:
    """The table."""
    cells, errors = {}, {}
    for name, adapter in zip(NAMES, ENTRIES, strict=True):
        print(f"  {name}", flush=True)
        try:
            run(adapter, network().eval(), *batch())
        except Exception as error:
            cells |= {(name, label): "not run" for label in BAD | GOOD}
            errors[f"{name} is missing: {peers.clause(error)}"] = ["all rows"]
            continue
        for label, check in (BAD | GOOD).items():
            if (name, label) in MEANINGLESS:
                cells[name, label] = "–"
                continue
            try:
                found, good = check(adapter), label in GOOD
                answer = "yes" if found else "no"
                cells[name, label] = answer if found == good else f"**{answer}**"
            except Exception as error:
                cells[name, label] = "**fails**"
                errors.setdefault(f"{name}: {peers.clause(error)}", []).append(label)
    rows = ((label, *(cells[name, label] for name in NAMES)) for label in BAD | GOOD)
    clean = all(cells["adv_lib", label] == ("no" if label in BAD else "yes") for label in BAD | GOOD)
    return TEXT.format(
        bad=len(BAD),
        table=tables.table(("", *NAMES), rows),
        errors="\n".join(f"- {error} ({'; '.join(labels)})" for error, labels in errors.items()),
        verdict="met" if clean else "not met",
    )
