"""One adapter for each way of running PGD: this package's, the other libraries' and a loop by hand.

An adapter takes (model, p, eps, alpha, steps), prepares what its library prepares once, and returns a
function (x, y) → x + δ. All do the same work: `steps` steps of size alpha in the box [0, 1], no early
stop, from δ = 0 or, with `random`, from a random point. Each library is imported when its adapter is
first used.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import attacks
from adv_lib.threat import Ball

Attack = Callable[[Tensor, Tensor], Tensor]


def by_hand(model: nn.Module, p: float, eps: float, alpha: float, steps: int) -> Attack:
    """The loop that one would write: autograd.grad, in place, cross-entropy, then ball and box."""

    def norm(v: Tensor) -> Tensor:
        return v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))

    def attack(x: Tensor, y: Tensor) -> Tensor:
        delta = torch.zeros_like(x)
        for _ in range(steps):
            moved = (x + delta).requires_grad_()
            loss = nn.functional.cross_entropy(model(moved), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            if p == math.inf:
                delta.add_(gradient.sign_(), alpha=alpha).clamp_(-eps, eps)
            else:
                delta.add_(gradient.div_(norm(gradient).clamp_min_(1e-12)), alpha=alpha)
                delta.mul_(eps / norm(delta).clamp_min_(eps))
            delta.add_(x).clamp_(0, 1).sub_(x)
        return x + delta

    return attack


def ours(keep: str) -> Callable[..., Attack]:
    """`attacks.pgd` with its own loss."""

    def adapter(
        model: nn.Module, p: float, eps: float, alpha: float, steps: int, random: bool = False, **more
    ) -> Attack:
        ball = Ball(p, eps, (0, 1))
        more |= {"steps": steps, "step_size": alpha, "restarts": 1 + random, "keep": keep}
        return lambda x, y: x + attacks.pgd(model, x, y, ball, **more)

    return adapter


def torchattacks(
    model: nn.Module, p: float, eps: float, alpha: float, steps: int, random: bool = False
) -> Attack:
    """PGD of torchattacks, p = 2 and ∞."""
    import torchattacks

    if p == 1:
        raise NotImplementedError("has no PGD for p = 1")
    kind = {2: torchattacks.PGDL2, math.inf: torchattacks.PGD}[p]
    return kind(model, eps=eps, alpha=alpha, steps=steps, random_start=random)


def foolbox(
    model: nn.Module, p: float, eps: float, alpha: float, steps: int, random: bool = False
) -> Attack:
    """PGD of foolbox, p = 1, 2 and ∞."""
    import foolbox

    kind = {
        1: foolbox.attacks.L1ProjectedGradientDescentAttack,
        2: foolbox.attacks.L2ProjectedGradientDescentAttack,
        math.inf: foolbox.attacks.LinfProjectedGradientDescentAttack,
    }[p]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the model is in training mode
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    attack = kind(abs_stepsize=alpha, steps=steps, random_start=random)
    return lambda x, y: attack.run(wrapped, x, y, epsilon=eps)


def cleverhans(
    model: nn.Module, p: float, eps: float, alpha: float, steps: int, random: bool = False
) -> Attack:
    """PGD of cleverhans, p = 2 and ∞."""
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    return lambda x, y: projected_gradient_descent(
        model, x, eps, alpha, steps, p, 0, 1, y, rand_init=random
    )


def art(
    model: nn.Module, p: float, eps: float, alpha: float, steps: int, random: bool = False
) -> Attack:
    """PGD of the Adversarial Robustness Toolbox, p = 1, 2 and ∞."""
    from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch

    kind = projected_gradient_descent_pytorch.ProjectedGradientDescentPyTorch

    def attack(x: Tensor, y: Tensor) -> Tensor:
        settings = {"max_iter": steps, "num_random_init": int(random), "verbose": False}
        settings["batch_size"] = len(x)
        run = kind(art_classifier(model, x.shape[1:]), norm=p, eps=eps, eps_step=alpha, **settings)
        return torch.from_numpy(run.generate(x.numpy(), y.numpy()))

    return attack


def art_apgd(model: nn.Module, p: float, eps: float, alpha: float, steps: int, **_) -> Attack:
    """ART's Auto-PGD, which chooses its step sizes itself, from 2ε on, and starts at random."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    def attack(x: Tensor, y: Tensor) -> Tensor:
        np.random.seed(0)  # noqa: NPY002 - it draws from NumPy's global generator
        settings = {"max_iter": steps, "nb_random_init": 1, "batch_size": len(x), "verbose": False}
        wrapped = art_classifier(model, x.shape[1:])
        run = AutoProjectedGradientDescent(wrapped, norm=p, eps=eps, eps_step=2 * eps, **settings)
        return torch.from_numpy(run.generate(x.numpy(), y.numpy()))

    return attack


def library_apgd(model: nn.Module, p: float, eps: float, alpha: float, steps: int, **_) -> Attack:
    """Auto-PGD of the library adv-lib, adapted from its authors' code, with its own steps and start."""
    settings = {"n_iter": steps, "loss_function": "ce"}
    settings["use_large_reps"] = p == 1  # radii 3ε, 2ε, ε, as the authors run p = 1
    module = other_adv_lib()
    return lambda x, y: module.apgd(model, x, y, eps, p, **settings)


@functools.cache
def other_adv_lib():
    """The module `attacks.auto_pgd` of the library adv-lib.

    The two packages share a name, and ours is imported: so load the other one's files by their path.
    """
    folder = Path(sysconfig.get_path("purelib")) / "adv_lib"
    for name, file in (("utils.losses", "utils/losses.py"), ("auto_pgd", "attacks/auto_pgd.py")):
        spec = importlib.util.spec_from_file_location(f"adv_lib.{name}", folder / file)
        module = sys.modules[f"adv_lib.{name}"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@functools.cache
def art_classifier(model: nn.Module, shape: torch.Size):
    """A model as ART wants it, wrapped once."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(shape), 10, clip_values=(0, 1), device_type="cpu"
    )


OURS = {f'adv_lib, keep="{keep}"': ours(keep) for keep in ("best", "last", "first")}
OTHERS = {
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "cleverhans": cleverhans,
    "ART": art,
}


def clause(error: Exception) -> str:
    """Why a library has no number: its error in one line of a table."""
    text = str(error).replace("|", "/").split(". ")[0]
    return textwrap.shorten(f"{type(error).__name__}: {text}", 90, placeholder=" …")
