"""What an attacker maximises, one number a sample, larger is worse for the model; and what is right.

Logits are z (n, K), labels y and targets t (n,) int64 in 0, …, K−1; every loss returns (n,) in the units
of the logits, but for `dlr`, which has none. They agree on when a prediction is wrong and differ in what
they are blind to, which decides what an attack that climbs them can miss.
All raise ValueError for logits that are not (n, K) with K ≥ 2, and for labels out of range.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._given import check_tensors


def margin(z: Tensor, y: Tensor) -> Tensor:
    """z_y − max_{j≠y} z_j: positive exactly where the prediction is right, 0 at a tie.

    By how much the true class leads its strongest rival. Unlike the losses, larger is better.
    """
    strongest = _rivals(z, y).amax(1)
    return _at(z, y) - strongest


def correct(z: Tensor, y: Tensor) -> Tensor:
    """Whether class y leads all others, (n,) bool: a tie is wrong, and so is NaN."""
    return margin(z, y) > 0


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """log Σ_j e^{z_j} − z_y, the training loss.

    Blind to large margins: in float32 it is 0 once z_y leads by 17, its gradient has by then lost the
    term of class y, and it vanishes when z_y leads by about 100. Multiplying the logits gets a model
    there without changing a prediction.
    """
    _check(z, y)
    return torch.nn.functional.cross_entropy(z, y, reduction="none")


def smoothed(z: Tensor, y: Tensor, share: float | Tensor) -> Tensor:
    """−Σ_k q_k log p_k for p = softmax(z), q = (1 − s) e_y + s/K: cross-entropy with smoothed labels.

    q is 1 − s + s/K at class y and s/K at each other, as torch has it; some papers give s/(K − 1) to the
    others and 1 − s to y. Least where z_y leads by log(1 + K (1 − s)/s): it asks for no larger margin.
    share: s from 0 to 1, a number or one a row (n,).
    Raises ValueError for another share.
    Source: Szegedy et al. 2016, section 7.
    """
    _check(z, y)
    part = torch.as_tensor(share, dtype=z.dtype, device=z.device)
    if part.shape not in ((), (len(z),)) or not bool(((part >= 0) & (part <= 1)).all()):
        got = tuple(part.shape) if part.ndim else share
        raise ValueError(f"expected a share from 0 to 1, one or one a row, got {got!r}")
    log_p = torch.log_softmax(z, 1)
    return -(1 - part) * _at(log_p, y) - part * log_p.mean(1)


def log_odds(z: Tensor, y: Tensor) -> Tensor:
    """log Σ_{j≠y} e^{z_j} − z_y, the log-odds that the model gives against the true class.

    Cross-entropy is softplus of it, so both have gradients in the same direction, but this one cannot
    saturate: its slope in z_y is always −1. Blind to nothing that cross-entropy sees; positive values
    do not imply a wrong prediction, since many small rivals add up.
    """
    return torch.logsumexp(_rivals(z, y), 1) - _at(z, y)


def log_odds_slope(z: Tensor, y: Tensor) -> Tensor:
    """The gradient of `log_odds` in z, (n, K): softmax over the rivals, and −1 at the true class."""
    return torch.softmax(_rivals(z, y), 1).scatter_(1, y[:, None], -1.0)


def margin_loss(z: Tensor, y: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y, minus the `margin`: positive exactly where the prediction is wrong.

    Blind to every rival but the strongest: its gradient jumps when another takes the lead.
    Source: Carlini & Wagner 2017, f₆ with the sign turned and without its floor.
    """
    return -margin(z, y)


def dlr(z: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio (max_{j≠y} z_j − z_y) / (z_(1) − z_(3)), z_(i) the i-th largest.

    Unchanged when the logits are shifted or scaled, hence blind to confidence. Needs K ≥ 3, and is not
    defined (NaN or infinite) where the three largest logits tie.
    Source: Croce & Hein 2020, eq. (6).
    """
    _check(z, y, classes=3)
    top = z.topk(3, dim=1).values
    return margin_loss(z, y) / (top[:, 0] - top[:, 2])


def targeted_dlr(z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """(z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2), z_(i) the i-th largest: `targeted` without a scale.

    Unchanged when the logits are shifted or scaled, as `dlr`, and blind like `targeted` to all classes
    but two. Needs K ≥ 4. Where the four largest logits tie, the denominator counts as 10⁻¹².
    Source: Croce & Hein 2020, eq. (7).
    """
    _check(z, y, classes=4)
    top = z.topk(4, dim=1).values
    return targeted(z, y, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=1e-12)


def targeted(z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """z_t − z_y: raise the target, lower the true class.

    Blind to all other classes: one of them may win in the end. Targets differ from labels.
    Source: Kolter & Madry 2018, chapter 3.
    """
    _check(z, y)
    _check(z, targets)
    if bool((y == targets).any()):
        raise ValueError("expected targets that differ from the labels, got a sample with both the same")
    return _at(z, targets) - _at(z, y)


def targeted_all(z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """z_t − Σ_{k≠t} z_k: raise the target, lower all other classes.

    Blind to which of the others is in the way: it spends as much on a class far behind as on the
    leader. y is not used.  Source: Kolter & Madry 2018, chapter 3.
    """
    _check(z, targets)
    return 2 * _at(z, targets) - z.sum(1)


def divergence(z: Tensor, moved: Tensor) -> Tensor:
    """KL(p‖q) = Σ_k p_k (log p_k − log q_k) for p = softmax(z), q = softmax(moved): 0 iff p = q.

    z, moved: logits (n, K).  Returns (n,). Blind to the label: it asks only that the prediction stays.
    Raises ValueError unless both are logits of the same shape.
    Source: Zhang et al. 2019, eq. (5), with KL for the surrogate, as in their experiments.
    """
    check_tensors(z=z, moved=moved)
    floating = z.is_floating_point() and moved.is_floating_point()
    if z.ndim != 2 or z.shape != moved.shape or z.shape[1] < 2 or not floating:
        raise ValueError(
            "expected two sets of logits (n, K) with K ≥ 2, "
            f"got {z.dtype} {tuple(z.shape)} and {moved.dtype} {tuple(moved.shape)}"
        )
    p, q = torch.log_softmax(z, 1), torch.log_softmax(moved, 1)
    return (p.exp() * (p - q)).sum(1)


def worst_logits(margins: Tensor) -> Tensor:
    """−margins, with 0 at the true class: logits that are as bad as the margins allow, all at once.

    margins: (n, K), bounds on z_y − z_k from below, +∞ at k = y.  Returns (n, K).
    A loss that does not change when all logits move together, and does not fall when z_y falls or
    another logit rises, is at most its value here wherever the margins hold.
    Raises ValueError unless every row has one +∞.
    Source: Wong & Kolter 2018, Theorem 2.
    """
    check_tensors(margins=margins)
    if margins.ndim != 2 or not bool(((margins == math.inf).sum(1) == 1).all()):
        raise ValueError(
            "expected margins (n, K) with one +∞ in each row, "
            f"got {margins.dtype} {tuple(margins.shape)}"
        )
    return torch.where(margins == math.inf, 0.0, -margins)


def entropy(z: Tensor) -> Tensor:
    """H(p) = −Σ_k p_k log p_k for p = softmax(z): 0 when one class is sure, log K when all are alike.

    Blind to the label: it says how sure a prediction is, not of what.
    z: logits (n, K).  Returns (n,), in nats.  Raises ValueError unless z is (n, K) with K ≥ 2.
    """
    return _entropy(_log_softmax(z))


def information(z: Tensor) -> Tensor:
    """H(p_i) − H(p̄), p̄ the mean of p over the batch: be sure, and do not say the same everywhere.

    Its mean over the batch is minus the mutual information of sample and class. The second term ties the
    samples of a batch together, also where each has parameters of its own.
    z: logits (n, K), n ≥ 1.  Returns (n,), in nats.  Raises ValueError as `entropy`.
    Source: Liang, Hu & Feng 2020, eq. (4); the default of the released code of dent.
    """
    log_p = _log_softmax(z)
    mean = torch.logsumexp(log_p, 0, keepdim=True) - math.log(max(1, len(z)))
    return _entropy(log_p) - _entropy(mean)


def _log_softmax(z: Tensor) -> Tensor:
    check_tensors(z=z)
    if z.ndim != 2 or z.shape[1] < 2 or not z.is_floating_point():
        raise ValueError(f"expected logits (n, K) with K ≥ 2, got {z.dtype} {tuple(z.shape)}")
    return torch.log_softmax(z, 1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)


def _at(z: Tensor, y: Tensor) -> Tensor:
    """z_y for every sample."""
    return z.gather(1, y[:, None]).squeeze(1)


def _rivals(z: Tensor, y: Tensor) -> Tensor:
    """The logits with −∞ at the true class."""
    _check(z, y)
    return z.scatter(1, y[:, None], -math.inf)


def _check(z: Tensor, y: Tensor, classes: int = 2) -> None:
    if not (isinstance(z, Tensor) and isinstance(y, Tensor)):  # asked first: this is the hot path
        check_tensors(z=z, y=y)
    if z.ndim != 2 or z.shape[1] < classes or not z.is_floating_point():
        raise ValueError(f"expected logits (n, K) with K ≥ {classes}, got {z.dtype} {tuple(z.shape)}")
    if y.shape != z.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"expected int64 labels ({len(z)},), one a row of logits, got {y.dtype} {tuple(y.shape)}"
        )
    if len(y):
        low, high = (int(v) for v in y.aminmax())
        if low < 0 or high >= z.shape[1]:
            raise ValueError(f"expected labels from 0 to {z.shape[1] - 1}, got {low} to {high}")
