"""Classes as far apart as they can be: a network whose features gather around fixed centres.

z = z(x), (n, d), are the features, what goes into the last layer; μ_k, (L, d), are the centres, one a
class. With `NearestCentre` as its last layer a network says h_k = −½‖z − μ_k‖², (n, L): an ordinary
classifier for `training.fit`, the attacks and `suite`, of which the losses here read the distances.

MMLDA is the cross-entropy of these logits, −log softmax(h)_y, hence `losses.cross_entropy`; MMC, which
has no softmax, is `mmc`. `centres` are as far apart as L vectors of one length can be. Radii
and distances are in the units of z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import attacks, losses, models
from ._given import check_tensors, kind, within
from .stack import Stack, members_of
from .threat import Ball

LARGEST = math.nextafter(math.inf, 0)


# ---- where the centres stand ----


def centres(classes: int, features: int, norm: float = 1.0) -> Tensor:
    """L vectors of length C with the smallest largest inner product, −C²/(L − 1) for every pair.

    For C = 1 the source has μ_1 = e_1, and for k ≥ 2 one entry after the other
    μ_kj = −(1/(L − 1) + ⟨μ_k, μ_j⟩)/μ_jj for j < k, then μ_kk = √(1 − ‖μ_k‖²).
    The j-th entry is the same for all k > j, since it depends on those before it only. So the recursion
    has a solution, μ_jj² = L (L − j)/((L − 1)(L − j + 1)) and μ_kj = −μ_jj/(L − j), which is what is
    computed, without the rounding of L steps.
    classes: L ≥ 2.  features: d ≥ L − 1; all beyond the first L − 1 are 0.
    norm: C > 0.
    Returns (L, d), float64.  Raises ValueError for other numbers.
    Source: Pang, Du & Zhu 2018, algorithm 1; the proof that no others do better is older.
    """
    _check_centres(classes, features, norm)
    if features < classes - 1:
        raise ValueError(f"expected at least {classes - 1} features, got {features!r}")
    mu = torch.zeros(classes, features, dtype=torch.float64)
    for j in range(1, classes):
        left = classes - j
        own = math.sqrt(classes * left / ((classes - 1) * (left + 1)))
        mu[j - 1, j - 1], mu[j:, j - 1] = own, -own / left
    return norm * mu


def random_centres(
    classes: int, features: int, norm: float, generator: torch.Generator | None = None
) -> Tensor:
    """L vectors of length C, each in a random direction of its own.

    classes: L ≥ 2.  features: d ≥ 1.  norm: C > 0.  generator: None means a fresh one seeded 0.
    Returns (L, d), float64.  Raises ValueError for other numbers.
    Source: Pang et al. 2020, MMC (rand).
    """
    _check_centres(classes, features, norm)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return norm * drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


def means(z: Tensor, y: Tensor, classes: int) -> Tensor:
    """The mean of the features of each class: the centres of a network that was trained without any.

    z: (n, d).  y: (n,) int64, each of 0, …, L − 1 at least once.  classes: L.
    Returns (L, d).  Raises ValueError for other shapes and labels, and for a class without a sample.
    """
    check_tensors(z=z, y=y)
    if z.ndim != 2 or not z.is_floating_point() or y.shape != z.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"expected features (n, d) and as many int64 labels, got {kind(z)} and {kind(y)}"
        )
    if y.unique().tolist() != list(range(classes)):
        raise ValueError(f"expected each label from 0 to {classes - 1}, got {y.unique().tolist()[:12]}")
    return torch.stack([z[y == k].mean(0) for k in range(classes)])


# ---- last layers ----


class NearestCentre(nn.Module):
    """h_k = −½‖z − μ_k‖², as the last layer: the class whose centre is nearest.

    A network is nn.Sequential(*body, NearestCentre(mu)), and network[:-1] gives its features.
    A `stack.Stack` takes it, also with other centres for each member.

    centres: μ (L, d), L ≥ 2, kept in the default type.  learned: whether training moves them.
    Raises ValueError for other centres, and for features of another width.
    """

    def __init__(self, centres: Tensor, *, learned: bool = False):
        super().__init__()
        _check_vectors(centres)
        own = centres.detach().to(torch.get_default_dtype()).clone()
        self.learned = learned
        if learned:
            self.centres = nn.Parameter(own)
        else:
            self.register_buffer("centres", own)

    def forward(self, z: Tensor) -> Tensor:
        """z: (n, d).  Returns (n, L).  In a stack of E they are (E, n, d) and (E, n, L)."""
        if z.shape[-1] != self.centres.shape[-1]:
            raise ValueError(f"expected {self.centres.shape[-1]} features, got {tuple(z.shape)}")
        return -(z.unsqueeze(-2) - self.centres.unsqueeze(-3)).square().sum(-1) / 2

    def linear(self) -> nn.Linear:
        """The layer μ_kᵀz − ½‖μ_k‖²: h without −½‖z‖², which is the same for every class.

        Predictions, margins and the cross-entropy stay; `mmc` and all else that reads one logit by
        itself do not. Bounds and exact methods can read the network that ends with it.
        """
        mu = self.centres.detach().clone()
        layer = nn.utils.skip_init(nn.Linear, mu.shape[1], len(mu))  # draws nothing
        layer.weight, layer.bias = nn.Parameter(mu), nn.Parameter(-mu.square().sum(1) / 2)
        return layer

    def extra_repr(self) -> str:
        """Classes, features, whether they are learned."""
        return f"{tuple(self.centres.shape)}, learned={self.learned}"

    def side_by_side(self, layers: Sequence[NearestCentre]) -> NearestCentre:
        """The layers of E members of a `stack.Stack`, this one the first, as one: centres (E, L, d)."""
        whole = NearestCentre(self.centres, learned=self.learned)
        both = torch.stack([layer.centres.detach() for layer in layers])
        whole.centres = nn.Parameter(both) if self.learned else both
        return whole


class Quadratic(nn.Module):
    """h_k = −(z − μ_k)ᵀ Σ_k (z − μ_k) + B_k, as the last layer: its cross-entropy is the g-SCE loss.

    Σ_k acts as a precision, not as a covariance. With Σ_k = ½I and B_k = 0 it is `NearestCentre`.
    centres: μ (L, d).  precisions: Σ (L, d, d).  biases: B (L,). All are held still, in their type.
    Raises ValueError for shapes that do not fit, also of the features.
    Source: Pang et al. 2020.
    """

    def __init__(self, centres: Tensor, precisions: Tensor, biases: Tensor):
        super().__init__()
        _check_vectors(centres)
        check_tensors(precisions=precisions, biases=biases)
        L, d = centres.shape
        if precisions.shape != (L, d, d) or biases.shape != (L,):
            raise ValueError(
                f"expected precisions {(L, d, d)} and biases {(L,)}, "
                f"got {tuple(precisions.shape)} and {tuple(biases.shape)}"
            )
        for name, value in (("centres", centres), ("precisions", precisions), ("biases", biases)):
            self.register_buffer(name, value.detach().clone())

    def forward(self, z: Tensor) -> Tensor:
        """z: (n, d).  Returns (n, L)."""
        if z.ndim != 2 or z.shape[1] != self.centres.shape[1]:
            raise ValueError(f"expected features (n, {self.centres.shape[1]}), got {tuple(z.shape)}")
        away = z[:, None] - self.centres
        return self.biases - torch.einsum("nki,kij,nkj->nk", away, self.precisions, away)


def as_quadratic(W: Tensor, b: Tensor) -> Quadratic:
    """The layer whose softmax is that of Wz + b: Σ_k = I, μ_k = ½W_k, B_k = b_k + ¼‖W_k‖².

    Its logits are W_kᵀz + b_k − ‖z‖²; so the softmax cross-entropy is a g-SCE loss.
    W: (L, d).  b: (L,).  Raises ValueError for other shapes.  Source: Pang et al. 2020.
    """
    check_tensors(W=W, b=b)
    if W.ndim != 2 or b.shape != W.shape[:1]:
        raise ValueError(f"expected W (L, d) and b (L,), got {tuple(W.shape)} and {tuple(b.shape)}")
    identity = torch.eye(W.shape[1]).to(W).expand(len(W), -1, -1)
    return Quadratic(W / 2, identity, b + W.square().sum(1) / 4)


# ---- losses of h_k = −½‖z − μ_k‖² ----


def mmc(h: Tensor, y: Tensor) -> Tensor:
    """½‖z − μ_y‖², which is −h_y: come to your centre, whatever the others do.  Returns (n,).

    As what an attack climbs it is the label's logit by itself: away from the label's centre, blind to
    where that leads, and without a softmax that could saturate.
    h: (n, L), the logits of `NearestCentre`.  y: (n,).  Raises ValueError as the `losses`.
    Source: Pang et al. 2020.
    """
    return -_at(h, y)


def large_margin(h: Tensor, y: Tensor, alpha: float, weight: float) -> Tensor:
    """−log e^{(1+α)h_y} / (e^{(1+α)h_y} + Σ_{k≠y} e^{h_k}) − λ h_y: L-GM, for Σ_k = I.

    The squared distance to the own centre counts 1 + α times, and has to be that much the smaller; the
    second term, ½λ‖z − μ_y‖², is how unlikely the features are. For centres that are `learned`.
    h: (n, L), the logits of `NearestCentre`.  y: (n,).  alpha: α ≥ 0.  weight: λ ≥ 0.
    Returns (n,).  Raises ValueError for negative numbers, and as the `losses`.
    Source: Wan et al. 2018, with all covariances I and all classes as likely.
    """
    if not (within(alpha, 0, LARGEST) and within(weight, 0, LARGEST)):
        raise ValueError(f"expected finite alpha ≥ 0 and weight ≥ 0, got {alpha!r} and {weight!r}")
    own = _at(h, y)
    return losses.cross_entropy(h.scatter_add(1, y[:, None], alpha * own[:, None]), y) - weight * own


def centre_loss(weight: float) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """−log softmax(f(x))_y + ½λ‖z − c_y‖² for `training.fit`, where c_k is the batch's mean of class k.

    The logits f(x) are those of any last layer, and z is what goes into it. The centres get no
    gradient; in the source they follow the batches' means at a rate of their own, here at once.
    weight: λ ≥ 0.
    Returns (model, x, y) → (n,), for an nn.Sequential or a `stack.Stack`.
    Raises ValueError for λ < 0, and for other models.
    Source: Wen et al. 2016.
    """
    if not within(weight, 0, LARGEST):
        raise ValueError(f"expected a finite weight ≥ 0, got {weight!r}")

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits, z = _with_features(model, x)
        loss = losses.cross_entropy(logits, y)
        E = members_of(model)
        group = y * E + torch.arange(len(y), device=y.device) % E  # the class, of each member
        with torch.no_grad():
            sums = z.new_zeros(logits.shape[1] * E, z.shape[1]).index_add(0, group, z)
            own = (sums / group.bincount(minlength=len(sums))[:, None])[group]
        return loss + weight / 2 * (z - own).square().sum(1)

    return inner


# ---- an attack on the features ----


def towards_centre(
    centres: Tensor, steps: int = 50
) -> Callable[[nn.Module, Tensor, Tensor, Ball, Tensor], Tensor]:
    """Make x look like another class: minimise ½‖z(x + δ) − μ_t‖² by `attacks.pgd`.

    For `suite.every_target`, which tries one class t after the other. It reads no logits of the network,
    so nothing that a last layer or its softmax does can hide the gradient.
    centres: μ (L, d), those of the network or the `means` of its features.
    Returns (model, x, y, ball, goal) → δ like x, for an nn.Sequential, whose last layer is left out.
    Raises ValueError for other models, and as `NearestCentre` and `attacks.pgd`.
    """
    _check_vectors(centres)

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, goal: Tensor) -> Tensor:
        if not isinstance(model, nn.Sequential):
            raise ValueError(f"expected an nn.Sequential, got {kind(model)}")
        check_tensors(x=x, goal=goal)
        by_distance = nn.Sequential(model[:-1], NearestCentre(centres).to(x))
        near = lambda h, y: _at(h, goal)  # noqa: E731
        return attacks.pgd(by_distance, x, y, ball, steps=steps, loss=near)

    return attack


# ---- what the geometry says ----


def robust_radius(classes: int, norm: float = 1.0) -> float:
    """RB = C √(L/(2(L − 1))): half the distance between two of the `centres`.

    So far the features of a sample at its centre must move until another centre is as near.
    Raises ValueError unless L ≥ 2 and C > 0.  Source: Pang, Du & Zhu 2018.
    """
    _check_centres(classes, 1, norm)
    return norm * math.sqrt(classes / (2 * (classes - 1)))


def expected_distance(distance: Tensor) -> Tensor:
    """E|N(Δ/2, 1)| = √(2/π) e^{−Δ²/8} + ½Δ (1 − 2Φ(−Δ/2)): how far a sample is from the boundary.

    Of two classes N(μ_i, I) and N(μ_j, I) with Δ = ‖μ_i − μ_j‖, the boundary is half way between the
    centres, and a sample's distance to it the size of a normal variable of mean Δ/2.
    distance: Δ ≥ 0, any shape.  Returns the same shape.
    Raises ValueError for others.  Source: Pang, Du & Zhu 2018, theorem 1.
    """
    check_tensors(distance=distance)
    if not distance.is_floating_point() or not bool(((distance >= 0) & distance.isfinite()).all()):
        raise ValueError(f"expected finite distances ≥ 0, got {distance.tolist()}")
    near = torch.exp(-(distance**2) / 8) * math.sqrt(2 / math.pi)
    return near + distance / 2 * torch.erf(distance / math.sqrt(8))  # erf(Δ/√8) = 1 − 2Φ(−Δ/2)


def level_set(
    loss: Tensor, centres: Tensor, precisions: Sequence[float], biases: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Where a sample's g-SCE loss against one rival is C: the sphere ‖z − M‖ = R.

    M = (σ_k μ_k − σ_j μ_j)/(σ_k − σ_j), and with the bracket of the source
    R² = σ_k σ_j ‖μ_k − μ_j‖²/(σ_k − σ_j)² + (B_k − B_j + log(e^C − 1))/(σ_k − σ_j).
    A loss for which that is negative is no sample's: for σ_k > σ_j the loss has a minimum, at M, and
    for σ_k < σ_j a maximum. For σ_k = σ_j the set is a plane.
    loss: C > 0, any shape.  centres: (2, d), of the own class k and the rival j.  precisions: σ > 0,
    Σ = σI.  biases: B.
    Returns M (d,) and R like loss.
    Raises ValueError for other arguments, for σ_k = σ_j, and for R² ≤ 0.
    Source: Pang et al. 2020, appendix A.1.
    """
    _check_pair(centres, precisions, biases)
    _check_losses(loss)
    (s, t), gap = precisions, precisions[0] - precisions[1]
    middle = (s * centres[0] - t * centres[1]) / gap
    apart = float((centres[0] - centres[1]).square().sum())
    lead = loss + torch.log(-torch.expm1(-loss))  # log(e^C − 1), also where e^C is infinite
    squared = s * t * apart / gap**2 + (biases[0] - biases[1] + lead) / gap
    if not bool((squared > 0).all()):
        worst = loss[squared <= 0].flatten()[:3].tolist()
        raise ValueError(
            f"expected losses at which the bracket is positive, got {worst}, where it is not"
        )
    return middle, squared.sqrt()


def gsce_density(
    loss: Tensor,
    p: Tensor,
    samples: int,
    centres: Tensor,
    precisions: Sequence[float],
    biases: Sequence[float],
) -> Tensor:
    """Samples per volume of feature space where the g-SCE loss against one rival is C.

    N p(C) |dC/dR| / (S_d R^{d−1}), with R of the `level_set`, S_d the area of the unit sphere, and
    dC/dR = 2 (σ_k − σ_j)(1 − e^{−C}) R. It is the mean over the sphere.
    The source has N p(C)/R^{d−1} up to a factor, but that factor, dC/dR, is not constant.
    loss, C, and p, the density of the samples' losses there: tensors of one shape.  samples: N, of class
    k with rival j.  The others and what is raised: as in `level_set`.
    Source: Pang et al. 2020, theorem 1, with the thickness of the shell.
    """
    _, R = level_set(loss, centres, precisions, biases)
    slope = 2 * abs(precisions[0] - precisions[1]) * -torch.expm1(-loss) * R
    return _per_volume(loss, p, samples, centres.shape[1], R, slope)


def mmc_density(loss: Tensor, p: Tensor, samples: int, features: int) -> Tensor:
    """Samples per volume of feature space where the MMC loss is C: N p(C) / (S_d (2C)^{(d−2)/2}).

    The shell between the losses C and C + dC has radius R = √(2C), area S_d R^{d−1} and thickness dC/R.
    The source has N p(C)/C^{(d−1)/2} up to a factor, which leaves out the thickness.
    loss, C > 0, and p, the density of the samples' losses there: tensors of one shape.  samples: N, of
    one class.  features: d ≥ 1.
    Returns the same shape.  Raises ValueError for other arguments.
    Source: Pang et al. 2020, theorem 2, with the thickness of the shell.
    """
    _check_losses(loss)
    R = (2 * loss).sqrt()
    return _per_volume(loss, p, samples, features, R, R)


def _per_volume(loss: Tensor, p: Tensor, samples: int, d: int, R: Tensor, slope: Tensor) -> Tensor:
    """N p(C) dC/dR over the area of a sphere in d dimensions, by logarithms, as R^{d−1} overflows."""
    check_tensors(p=p)
    if p.shape != loss.shape or not bool((p >= 0).all()):
        raise ValueError(f"expected p ≥ 0 of the shape of the loss {tuple(loss.shape)}, got {kind(p)}")
    if not isinstance(d, int) or d < 1 or samples < 0:
        raise ValueError(f"expected features ≥ 1 and samples ≥ 0, got {d!r} and {samples!r}")
    area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    return samples * p * torch.exp(slope.log() - area - (d - 1) * R.log())


# ---- checks, and what goes into a last layer ----


def _at(h: Tensor, y: Tensor) -> Tensor:
    """h_y for every sample."""
    check_tensors(z=h, y=y)
    losses.margin(h.detach(), y)  # raises for labels that do not fit
    return h.gather(1, y[:, None]).squeeze(1)


def _with_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (n, K) and the features (n, d) that the last layer makes them of."""
    layers = model.layers if isinstance(model, Stack) else model
    if not isinstance(layers, nn.Sequential):
        raise ValueError(f"expected an nn.Sequential or a Stack, got {kind(model)}")
    seen: list[Tensor] = []
    with layers[-1].register_forward_pre_hook(lambda _, given: seen.extend(given)):
        logits = models.logits(model, x)
    z = seen[0].transpose(0, 1).flatten(0, 1) if isinstance(model, Stack) else seen[0]
    return logits, z


def _check_centres(classes: int, features: int, norm: float) -> None:
    if not (isinstance(classes, int) and isinstance(features, int)) or classes < 2 or features < 1:
        raise ValueError(f"expected classes ≥ 2 and features ≥ 1, got {classes!r} and {features!r}")
    if not within(norm, 0, LARGEST) or norm == 0:
        raise ValueError(f"expected a finite norm > 0, got {norm!r}")


def _check_vectors(centres: Tensor) -> None:
    check_tensors(centres=centres)
    if centres.ndim != 2 or len(centres) < 2 or not centres.is_floating_point():
        raise ValueError(f"expected centres (L, d) with L ≥ 2, got {kind(centres)}")
    if not bool(centres.isfinite().all()):
        raise ValueError("expected finite centres, got NaN or infinity")


def _check_pair(centres: Tensor, precisions: Sequence[float], biases: Sequence[float]) -> None:
    _check_vectors(centres)
    if not len(centres) == len(precisions) == len(biases) == 2:
        got = f"{len(centres)}, {len(precisions)} and {len(biases)}"
        raise ValueError(f"expected centres, precisions and biases of two classes, got {got}")
    if not within(precisions, math.ulp(0.0), LARGEST) or precisions[0] == precisions[1]:
        raise ValueError(f"expected two different precisions > 0, got {precisions!r}")
    if not within(biases, -LARGEST, LARGEST):
        raise ValueError(f"expected finite biases, got {biases!r}")


def _check_losses(loss: Tensor) -> None:
    check_tensors(loss=loss)
    if not loss.is_floating_point() or not bool(((loss > 0) & loss.isfinite()).all()):
        raise ValueError(f"expected finite losses > 0, got {loss.flatten()[:12].tolist()}")
