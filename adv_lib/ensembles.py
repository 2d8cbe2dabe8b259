"""Several networks as one: the mean of what they say, how much they differ, and attacks on all of them.

K members f_0, …, f_{K−1} give a sample logits z_k (L classes) and probabilities p_k = softmax(z_k). The
ensemble is their mean p̄ = (1/K) Σ_k p_k, and its logits are log p̄. Logits of all members together are
(n, K, L) here, labels y (n,). So n counts samples, K members and L classes, as in the source of `adp`.
All raise ValueError for logits of another shape and for labels out of range.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from . import attacks, bounds, losses, models
from ._given import check_moves, check_tensors, kind, within
from .stack import SideBySide, Stack, dealt
from .threat import Ball

Attack = Callable[[nn.Module, Tensor, Tensor, Ball], Tensor]  # (model, x, y, ball) → δ like x
LARGEST = math.nextafter(math.inf, 0)
RIDGE = 1e-6  # added to the diagonal under the logarithm, as in the source


class Ensemble(SideBySide):
    """log p̄, p̄ the mean of the members' probabilities: a classifier as any other.

    members: as for `stack.SideBySide`; their weights are copied. `each` gives their logits (n, K, L).
    Training, attacks and `suite` take it like one network, since its rows are samples, not members'.
    Raises ValueError for what `stack.SideBySide` refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, *shape).  Returns log p̄ (n, L)."""
        return log_mean(self.each(x))


def log_mean(z: Tensor) -> Tensor:
    """log (1/K) Σ_k softmax(z_k), without leaving logarithms, so that no probability becomes 0.

    z: (n, K, L).  Returns (n, L).
    """
    _check(z)
    return torch.logsumexp(torch.log_softmax(z, 2), 1) - math.log(z.shape[1])


# ---- diversity, and training for it ----


def diversity(z: Tensor, y: Tensor) -> Tensor:
    """ED = det(M̃ᵀM̃), the squared volume that the members' opinions on the wrong classes span.

    Column k of M̃ (L − 1, K) is p_k without class y, scaled to length 1. 1 where all columns are at right
    angles, 0 where one is a combination of others, as it must be for K > L − 1.
    Returns (n,), from 0 to 1.
    Source: Pang et al. 2019, eq. (4).
    """
    return torch.linalg.det(_gram(z, y)).clamp(0, 1)


def adp_loss(z: Tensor, y: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """Σ_k −log p_ky − α H(p̄) − β log det(M̃ᵀM̃ + 10⁻⁶ I): each right, the mean unsure, all different.

    H is the entropy in nats. The small diagonal keeps the logarithm and its gradient finite where
    members agree. Σ is a sum over members, as in the source: with their mean in its place, α and β
    count K times as much.
    alpha: α ≥ 0.  beta: β ≥ 0. Each is a number, or one a sample (n,).
    Returns (n,).  Raises ValueError for negative numbers.
    Source: Pang et al. 2019, eqs. (5) and (6), and their code for the diagonal.
    """
    _check(z, y)
    a, b = (_weight(value, z) for value in (alpha, beta))
    K = z.shape[1]
    errors = losses.cross_entropy(z.flatten(0, 1), y.repeat_interleave(K)).view(-1, K).sum(1)
    volume = torch.linalg.slogdet(_gram(z, y) + RIDGE * torch.eye(K).to(z)).logabsdet
    return errors - a * losses.entropy(log_mean(z)) - b * volume


def adp(
    alpha: float | Sequence[float], beta: float | Sequence[float], members: int | None = None
) -> Callable:
    """`adp_loss` for `training.fit`: ADP, adaptive diversity promoting.

    alpha, beta: α and β ≥ 0, or one for each ensemble of a stack. With 0 and 0 each member ends where
             it would have ended alone.
    members: None to train an `Ensemble`; K to train a `stack.Stack` of several ensembles side by side,
             of which networks 0, …, K − 1 are the first, the next K the second. All must see the same
             batches, hence one generator.
    Returns (model, x, y) → (n,), or (n·E,) for a stack of E networks, where each has a K-th of its
    ensemble's loss.
    Raises ValueError for negative numbers, for as many α or β as there are no ensembles, for a model of
    another kind, and for members that are not shown the same labels.
    Source: Pang et al. 2019.
    """
    if not (within(alpha, 0, LARGEST) and within(beta, 0, LARGEST)):
        raise ValueError(f"expected finite alpha ≥ 0 and beta ≥ 0, got {alpha!r} and {beta!r}")
    if members is not None and (not isinstance(members, int) or members < 1):
        raise ValueError(f"expected members ≥ 1, or None, got {members!r}")

    several = {len(v) for v in (alpha, beta) if isinstance(v, Sequence)}

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if members is None:
            count, z, labels = 1, _members(model, x), y
        elif isinstance(model, Stack) and len(model) % members == 0:
            count = len(model) // members
            z, own = (v.unflatten(0, (-1, members)) for v in (models.logits(model, x), y))
            if bool((own != own[:, :1]).any()):
                raise ValueError("expected an ensemble's members to see one batch, got other labels")
            labels = own[:, 0]
        else:
            got = f"{len(model)} networks" if isinstance(model, Stack) else kind(model)
            raise ValueError(f"expected a Stack of ensembles of {members}, got {got}")
        if others := several - {count}:
            raise ValueError(f"expected alpha and beta for {count} ensembles, got {others.pop()}")
        loss = adp_loss(z, labels, dealt(alpha, z), dealt(beta, z))
        return loss if members is None else loss.repeat_interleave(members) / members

    return inner


def optimum(alpha: float, members: int, classes: int) -> float:
    """p̄_y at the minimum of Σ_k −log p_ky − α H(p̄): the root of 1/p = (α/K) log(p (L − 1)/(1 − p)).

    There p_ky = p̄_y for every member, and p̄ gives all other classes the same. No training loss asks for
    more confidence than that. Where the loss has the mean over members instead of the sum, it is
    optimum(α K, K, L).
    alpha: α > 0.  members: K ≥ 1.  classes: L ≥ 2.
    Returns a number between 1/L and 1, up to rounding.  Raises ValueError for others.
    Source: Pang et al. 2019, theorem 2, eq. (7).
    """
    from scipy.optimize import brentq

    _check_optimum(alpha, members, classes)

    def slope(t: float) -> float:  # with t = log(p/(1 − p)); rises, from below 0 to above
        return alpha / members * (t + math.log(classes - 1)) - (1 + math.exp(-t))

    low, high = -math.log(classes - 1), 64.0  # where p is 1/L, and 1 but for rounding
    return 1.0 if slope(high) < 0 else 1 / (1 + math.exp(-brentq(slope, low, high)))


def optimal_predictions(alpha: float, members: int, classes: int) -> Tensor:
    """What the members say at the minimum of `adp_loss` for y = 0: each doubts another part.

    The L − 1 wrong classes are dealt in equal parts. Member k gives class 0 the `optimum` p, each class
    of its part K (1 − p)/(L − 1), and no other anything. So ED = 1, at no cost for the rest of the loss.
    Only where K divides L − 1.
    Returns (K, L), float64.  Raises ValueError otherwise, and as `optimum`.
    Source: Pang et al. 2019, corollary 1, eq. (8).
    """
    p = optimum(alpha, members, classes)
    if (classes - 1) % members:
        raise ValueError(f"expected members that divide {classes - 1}, got {members}")
    part = torch.eye(members, dtype=torch.float64).repeat_interleave((classes - 1) // members, 1)
    rest = part * members * (1 - p) / (classes - 1)
    return torch.cat([torch.full((members, 1), p, dtype=torch.float64), rest], 1)


# ---- what an attack may climb: all members' logits (n, K, L) and y → (n,), larger is worse ----


def mean_probability(z: Tensor, y: Tensor) -> Tensor:
    """The `losses.log_odds` of p̄: what an attack climbs that takes the ensemble for one network.

    Its slope goes through each member's softmax, so it fades where every member is sure, one way or
    the other.
    """
    return losses.log_odds(log_mean(z), y)


def mean_logits(z: Tensor, y: Tensor) -> Tensor:
    """The `losses.log_odds` of (1/K) Σ_k z_k: every member counts, however sure it is."""
    _check(z)
    return losses.log_odds(z.mean(1), y)


def mean_margin(z: Tensor, y: Tensor) -> Tensor:
    """(1/K) Σ_k max_{j≠y} z_kj − z_ky: drives each member wrong, to whatever class is nearest to it."""
    return _margins(z, y).mean(1)


def strongest(z: Tensor, y: Tensor) -> Tensor:
    """min_k max_{j≠y} z_kj − z_ky: the member that holds out best; above 0 once none is right."""
    return _margins(z, y).amin(1)


def of_member(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The `losses.log_odds` of member k by itself, blind to all others.  k: from 0 to K − 1."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        _check(z)
        if not isinstance(k, int) or not 0 <= k < z.shape[1]:
            raise ValueError(f"expected a member from 0 to {z.shape[1] - 1}, got {k!r}")
        return losses.log_odds(z[:, k], y)

    return loss


def climb(loss: Callable[[Tensor, Tensor], Tensor], attack: Attack = attacks.pgd) -> Attack:
    """An attack on an `Ensemble` that climbs a loss of all its members' logits.

    What it keeps is judged by the ensemble: the iterate where log p̄ has the smallest margin.
    loss: (z (n, K, L), y) → (n,), such as `mean_logits` or `strongest`.
    attack: takes a `loss=`, asks for it right after the logits, and keeps all samples; such as
            `attacks.pgd` or a `functools.partial` of it.
    Returns (model, x, y, ball) → δ like x.  Raises ValueError for a model without members, and as the
    attack.
    """

    def all_members(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        last: list[Tensor] = []  # the members' logits where the attack has just been

        def asked(v: Tensor) -> Tensor:
            last[:] = [_members(model, v)]
            return log_mean(last[0])

        with models.evaluating(model):
            return attack(asked, x, y, ball, loss=lambda _, y: loss(last[0], y))

    return all_members


def against(members: int, attack: Attack = attacks.pgd) -> Mapping[str, Attack]:
    """What to try on an ensemble of K before it is believed: by name, each a `climb`.

    Through the mean probability, the mean logits, the mean margin and the strongest member, and on each
    member by itself. A sample counts as robust if none of them breaks the ensemble.
    members: K ≥ 1.  attack: as for `climb`.
    """
    if not isinstance(members, int) or members < 1:
        raise ValueError(f"expected members ≥ 1, got {members!r}")
    tried = {
        "mean probability": mean_probability,
        "mean logits": mean_logits,
        "mean margin": mean_margin,
        "strongest": strongest,
        **{f"member {k}": of_member(k) for k in range(members)},
    }
    return {name: climb(loss, attack) for name, loss in tried.items()}


def transfer(
    networks: Sequence[Callable], x: Tensor, y: Tensor, ball: Ball, attack: Attack = attacks.pgd
) -> Tensor:
    """T_ij: of the samples that network j has right, the share that an attack on network i makes wrong.

    The diagonal is the success of the attack on the network that it was made for.
    networks: K ≥ 1 models with the same classes.  attack: (model, x, y, ball) → δ.
    Returns (K, K), float64; NaN in column j if network j has no sample right.
    Raises ValueError for no network, and what the attack raises.
    """
    if not networks:
        raise ValueError("expected at least one network, got none")
    check_tensors(x=x, y=y)
    right = torch.stack([_right(network, x, y) for network in networks])
    deltas = [attack(network, x, y, ball) for network in networks]
    for delta in deltas:
        check_moves(attack, delta, x)
    left = [torch.stack([_right(network, x + delta, y) for network in networks]) for delta in deltas]
    broken = torch.stack([(right & ~after).double().sum(1) for after in left])
    return broken / right.double().sum(1)


# ---- certificates ----


def averaged(members: Sequence[nn.Sequential]) -> nn.Sequential:
    """(1/K) Σ_k f_k, the mean of the logits, as one network that every bound and exact method reads.

    The hidden units of all members stand side by side, with zeros between those of different members.
    members: networks of Flatten, Linear and ReLU, of the same layers, the last one Linear.  They are
             left alone.
    Raises ValueError for no members, for other layers, and for members that differ.
    """
    sizes = {tuple(map(str, member)) for member in members}
    allowed = all(isinstance(layer, nn.Flatten | nn.Linear | nn.ReLU) for m in members for layer in m)
    ends = len(sizes) == 1 and len(members[0]) > 0 and isinstance(members[0][-1], nn.Linear)
    if not ends or not allowed:  # a mean after a ReLU at the end would be another
        words = "networks of the same Flatten, Linear and ReLU, the last one Linear"
        raise ValueError(f"expected {words}, got {sizes or 'none'}")
    last = len(members[0]) - 1
    layers: list[nn.Module] = []
    for i, own in enumerate(zip(*members, strict=True)):
        if not isinstance(own[0], nn.Linear):
            layers.append(type(own[0])())
            continue
        W = [layer.weight.detach() for layer in own]
        first = not any(isinstance(layer, nn.Linear) for layer in layers)
        weight = torch.cat(W) if first else torch.block_diag(*W)
        bias = torch.stack([_bias(layer) for layer in own])
        if i == last:  # the K outputs of a class become their mean
            weight = weight.unflatten(0, (len(own), -1)).mean(0)
            bias = bias.mean(0)
        layer = copy.deepcopy(own[0])  # a new one would draw weights
        layer.out_features, layer.in_features = weight.shape
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias.flatten())
        layers.append(layer)
    return nn.Sequential(*layers).train(members[0].training)


def mean_margins(margins: Tensor) -> Tensor:
    """A lower bound on p̄_y − p̄_j from lower bounds on the members' z_ky − z_kj: (n, L), +∞ at j = y.

    With r_j = e^{−m_kj} each member has p_ky − p_kj ≥ (1 − r_j)/(1 + Σ_{i≠y} r_i) where m_kj ≥ 0, and
    ≥ (1 − r_j)/(1 + r_j) elsewhere; the ensemble has at least the mean of these.
    margins: (K, n, L), +∞ at the true class, such as `bounds.margins` of each member.
    Above 0 for all j ≠ y proves the ensemble right, also where some member is not proved.
    Raises ValueError unless every row has one +∞, the same for all members.
    """
    check_tensors(margins=margins)
    own = margins == math.inf
    if margins.ndim != 3 or not bool((own.sum(2) == 1).all()) or not bool((own == own[:1]).all()):
        raise ValueError(
            "expected margins (K, n, L) with one +∞ in each row, at the same class for all members, "
            f"got {kind(margins)}"
        )
    # (1 − r_j)/(1 + Σ r_i), divided by the largest r, so that none overflows
    low = -margins
    top = low.amax(2, keepdim=True).clamp(0, torch.finfo(low.dtype).max)  # also where a margin is −∞
    one, r = torch.exp(-top), torch.exp(low - top)
    least = torch.where(
        margins >= 0, (one - r) / (one + r.sum(2, keepdim=True)), torch.tanh(margins / 2)
    )
    return least.mean(0).masked_fill(own[0], math.inf)


def margins(
    members: Sequence[nn.Sequential], x: Tensor, y: Tensor, ball: Ball, method: str = "crown"
) -> Tensor:
    """`mean_margins` of the members' `bounds.margins`: a proof for the `Ensemble`, member by member.

    A proof for the mean of logits is that of the `averaged` members: a backward pass through it sees
    that one δ has to serve for all at once.
    method: "interval", "dual", "crown" or "lp".
    Returns (n, L), lower bounds on p̄_y − p̄_j, +∞ at j = y.
    Raises ValueError for no members, and as `bounds.margins`.
    """
    if not members:
        raise ValueError("expected at least one member, got none")
    return mean_margins(torch.stack([bounds.margins(m, x, y, ball, method) for m in members]))


# ---- checks, and what the losses share ----


def _members(model: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(model, Ensemble):
        raise ValueError(f"expected an Ensemble, got {kind(model)}")
    return model.each(x)


def _right(network: Callable, x: Tensor, y: Tensor) -> Tensor:
    with models.evaluating(network), torch.no_grad():
        return losses.correct(models.logits(network, x), y)


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()


def _margins(z: Tensor, y: Tensor) -> Tensor:
    """Every member's max_{j≠y} z_kj − z_ky, (n, K)."""
    _check(z, y)
    K = z.shape[1]
    return losses.margin_loss(z.flatten(0, 1), y.repeat_interleave(K)).view(-1, K)


def _gram(z: Tensor, y: Tensor) -> Tensor:
    """M̃ᵀM̃, the cosines between the members' predictions without class y: (n, K, K)."""
    _check(z, y)
    rivals = z.scatter(2, y[:, None, None].expand(-1, z.shape[1], 1), -math.inf)
    m = torch.softmax(rivals, 2)  # p without y, up to a scale, which does not matter, and never all 0
    m = m / torch.linalg.vector_norm(m, dim=2, keepdim=True)
    return m @ m.transpose(1, 2)


def _check(z: Tensor, y: Tensor | None = None) -> None:
    check_tensors(z=z)
    if z.ndim != 3 or z.shape[1] < 1 or z.shape[2] < 2 or not z.is_floating_point():
        raise ValueError(f"expected logits (n, K, L) with L ≥ 2, got {z.dtype} {tuple(z.shape)}")
    if y is not None:
        check_tensors(y=y)
        losses.margin(z[:, 0].detach(), y)  # raises for labels that do not fit


def _weight(value: float | Tensor, z: Tensor) -> Tensor:
    """α or β as a tensor, () or (n,)."""
    weight = torch.as_tensor(value, dtype=z.dtype, device=z.device)
    if weight.shape not in ((), z.shape[:1]) or not bool(((weight >= 0) & weight.isfinite()).all()):
        got = tuple(weight.shape) if weight.ndim else value
        raise ValueError(f"expected finite alpha and beta ≥ 0, one or one a sample, got {got!r}")
    return weight


def _check_optimum(alpha: float, members: int, classes: int) -> None:
    if not within(alpha, math.ulp(0.0), LARGEST):
        raise ValueError(f"expected a finite alpha > 0, got {alpha!r}")
    if not (isinstance(members, int) and isinstance(classes, int)) or members < 1 or classes < 2:
        raise ValueError(f"expected members ≥ 1 and classes ≥ 2, got {members!r} and {classes!r}")
