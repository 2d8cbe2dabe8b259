"""Noticing instead of being right: scores of how ordinary an input is, and a classifier that rejects.

A network ends with a layer that makes logits z (n, K) of its features h (n, d). A score is a function
(z, h) → (n,), and larger is more ordinary: what lies below a threshold is rejected. `Rejecting` puts
network, score and threshold together. An attacker has fooled it where its answer is wrong *and*
accepted, and nowhere else. A rejected image costs nothing here, so how many clean ones are rejected
must be said beside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import attacks, losses, models
from ._given import check_ball, check_moves, check_tensors, kind, within
from .threat import Ball

Score = Callable[[Tensor, Tensor], Tensor]  # (logits z (n, K), features h (n, d)) → (n,)
Attack = Callable[[nn.Module, Tensor, Tensor, Ball], Tensor]  # (model, x, y, ball) → δ like x
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z, excess g (n,), y) → (n,)
LARGEST = math.nextafter(math.inf, 0)
FEATURES, SCORES = "features (m, d)", "scores (n,)"  # in messages


# ---- reverse cross-entropy ----


def reverse_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """−(1/(K − 1)) Σ_{j≠y} log p_j for p = softmax(z): be anything but y, and all else alike.

    At least log(K − 1), which no finite z attains: it takes p_y = 0 and p_j = 1/(K − 1) for all others.
    A network that was trained with it says the class it thinks *least* likely: `reversed_logits`.
    z: (n, K).  y: (n,).  Returns (n,).  Raises ValueError as the `losses`.
    Source: Pang et al. 2018, eq. (4).
    """
    losses.margin(z, y)  # raises for what is no logits, and labels that do not fit
    others = torch.log_softmax(z, 1).scatter(1, y[:, None], 0.0)  # −log p_y, left out, can be huge
    return -others.sum(1) / (z.shape[1] - 1)


def reversed_logits(network: nn.Sequential) -> nn.Sequential:
    """The network with logits −z: the last layer's weights and biases change sign, the features stay.

    network: ends with a Linear; it is left alone, and nothing is shared with it.
    Returns one of the same layers, which attacks, bounds and exact methods read as any other.
    Raises ValueError for another network.  Source: Pang et al. 2018, section 3.2.
    """
    ends = isinstance(network, nn.Sequential) and len(network) > 0
    if not ends or not isinstance(network[-1], nn.Linear):
        raise ValueError(f"expected an nn.Sequential that ends with a Linear, got {kind(network)}")
    turned = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in turned[-1].parameters():
            parameter.neg_()
    return turned


def reversal_bounds(alpha: float, classes: int) -> tuple[float, float]:
    """How far softmax(−z) can be from one-hot, if softmax(z) is within α of the reversed label.

    With k = K − 1: where p = softmax(z) has p_y ≤ α and |p_j − 1/k| ≤ α for all j ≠ y, and α < 1/k,
    the entries of q = softmax(−z) have
    1 − q_y ≤ α k² / (1 + α k (k − 1)),
    |q_i − q_j| ≤ 2 α² k² / ((1 − α² k²) (1 + α k²)) for i, j ≠ y.
    The source has the numerators by themselves, which say nothing for α ≥ 1/k²: two probabilities never
    differ by more than 1. The first bound here is below 1 for every α < 1/k.
    alpha: 0 ≤ α < 1/(K − 1).  classes: K ≥ 2.
    Returns both bounds.  Raises ValueError for others.
    Source: Pang et al. 2018, theorem 2, sharpened.
    """
    if not isinstance(classes, int) or classes < 2:
        raise ValueError(f"expected classes ≥ 2, got {classes!r}")
    k = classes - 1
    if not within(alpha, 0, LARGEST) or alpha * k >= 1:
        raise ValueError(f"expected 0 ≤ alpha < 1/{k}, got {alpha!r}")
    rest = alpha * k**2 / (1 + alpha * k * (k - 1))
    return rest, 2 * (alpha * k) ** 2 / ((1 - (alpha * k) ** 2) * (1 + alpha * k**2))


# ---- scores: how ordinary is an input? ----


def confidence(z: Tensor, h: Tensor | None = None) -> Tensor:
    """log p_c/(1 − p_c) for the predicted class c: ordered as the largest probability, without its end.

    In float32 the probability is 1 for whatever leads by 17, and all such inputs tie; this score is
    z_c − log Σ_{j≠c} e^{z_j}, which has no end.
    z: (n, K).  h: not used.  Returns (n,).  Raises ValueError unless z is (n, K) with K ≥ 2.
    """
    top, rest = _ranked(z)
    return -torch.logsumexp(rest - top[:, None], 1)


def non_maximal_entropy(z: Tensor, h: Tensor | None = None) -> Tensor:
    """−Σ_{j≠c} p̂_j log p̂_j, where p̂_j = p_j/(1 − p_c) and c is the predicted class: non-ME.

    How alike the other classes are: log(K − 1) where all of them are, 0 where one has all that is left.
    It does not see p_c, and knows the predicted class only, not y.
    z: (n, K).  h: not used.  Returns (n,), in nats.
    Raises ValueError unless z is (n, K) with K ≥ 3: one class alone has no entropy.
    Source: Pang et al. 2018, eq. (2).
    """
    _, rest = _ranked(z, classes=3)
    return losses.entropy(rest - rest[:, :1])  # the same, with less to round


@dataclass(frozen=True, eq=False)
class KernelDensity:
    """log (1/m_c) Σ_i exp(−‖h − h_i‖²/σ²), over the m_c kept features h_i of the predicted class c.

    As a logarithm it is finite also where every term of the sum is 0 in floating point.
    features: (m, d), of clean images.  labels: (m,) int64, what the network predicts for them; every
    class that it may predict must occur.  bandwidth: σ > 0, in the units of h.
    Raises ValueError for other shapes, and when it is asked about a class that does not occur.
    Source: Feinman et al. 2017, section 5.1; σ² as in Pang et al. 2018, eq. (3).
    """

    features: Tensor
    labels: Tensor
    bandwidth: float

    def __post_init__(self):
        _check_finite(self.features, FEATURES, 2)
        check_tensors(labels=self.labels)
        if self.labels.shape != self.features.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"expected labels ({len(self.features)},) int64, got {kind(self.labels)}")
        if not within(self.bandwidth, math.ulp(0.0), LARGEST):
            raise ValueError(f"expected a finite bandwidth > 0, got {self.bandwidth!r}")

    def __call__(self, z: Tensor, h: Tensor) -> Tensor:
        """z: (n, K).  h: (n, d).  Returns (n,)."""
        _ranked(z)
        predicted = z.argmax(1, keepdim=True)
        same = predicted == self.labels
        if not bool(same.any(1).all()):
            absent = predicted[~same.any(1)].unique().tolist()
            raise ValueError(f"expected kept features of every class, got none of {absent}")
        near = -(_squared_distances(h, self.features) / self.bandwidth**2).to(h.dtype)
        return near.masked_fill(~same, -math.inf).logsumexp(1) - same.sum(1).to(h.dtype).log()


@dataclass(frozen=True, eq=False)
class LocalDimension:
    """(1/k) Σ_i log(r_k/r_i), which is 1 over the dimension that the nearest features suggest, LID.

    r_1 ≤ … ≤ r_k are the distances from h to its k nearest of the kept features. Where these fill a
    piece of dimension D evenly, the share of them within r grows like r^D, and the maximum likelihood
    estimate of D is 1 over this mean (`dimension`). The more dimensions, the smaller is the score:
    attacked images are said to lie in more.
    features: (m, d), a minibatch of clean images, none of which is asked about.
    neighbours: k, from 2 to m.
    Raises ValueError for other shapes and numbers.
    Source: Ma et al. 2018, eq. (4); there several layers, a minibatch that is drawn anew, and a
    classifier on top that is trained on attacked images.
    """

    features: Tensor
    neighbours: int

    def __post_init__(self):
        _check_finite(self.features, FEATURES, 2)
        if not isinstance(self.neighbours, int) or not 2 <= self.neighbours <= len(self.features):
            raise ValueError(
                f"expected neighbours from 2 to {len(self.features)}, got {self.neighbours!r}"
            )

    def __call__(self, z: Tensor, h: Tensor) -> Tensor:
        """z: not used.  h: (n, d).  Returns (n,), at least 0."""
        squared = _squared_distances(h, self.features).topk(self.neighbours, largest=False).values
        log_r = squared.clamp(min=torch.finfo(h.dtype).tiny).log() / 2  # the largest last
        return (log_r[:, -1:] - log_r).mean(1).to(h.dtype)

    def dimension(self, h: Tensor) -> Tensor:
        """1 over the score: the estimate itself, ∞ where all k neighbours are as far.  Returns (n,)."""
        return 1 / self(h, h)


def two_sided(score: Score, low: float, high: float) -> Score:
    """min(s − low, high − s): ordinary is what is neither too small nor too large.

    A score that is *larger* for attacked inputs than for clean ones tells them apart as well.
    low < high.  Raises ValueError for others.
    """
    if not (within([low, high], -math.inf, math.inf) and low < high):
        raise ValueError(f"expected low < high, got {low!r} and {high!r}")

    def inside(z: Tensor, h: Tensor) -> Tensor:
        s = score(z, h)
        return torch.minimum(s - low, high - s)

    return inside


# ---- what a detector is judged by ----


class Threshold(NamedTuple):
    """What lies below `value` is rejected; of clean inputs that is a share between low and high."""

    value: float
    low: float
    high: float


def threshold(scores: Tensor, false_alarms: float, level: float = 0.95) -> Threshold:
    """The k-th smallest of n clean scores, k = ⌊f (n + 1)⌋: the next clean one is below it at rate ≤ f.

    Over the draw of the n scores and the next one that probability is k/(n + 1). For the n at hand it is
    Beta(k, n + 1 − k) distributed, whatever the scores' distribution, if that has no ties: hence the
    interval.
    scores: (n,), of clean inputs that decide nothing else.
    false_alarms: f, at least 1/(n + 1) and below 1.  level: above 0 and below 1.
    Raises ValueError for others, and for scores that are not finite.
    Source: order statistics, David & Nagaraja 2003; as conformal p-values, Vovk et al. 2005.
    """
    from scipy.special import betaincinv  # the quantiles of Beta

    _check_finite(scores, SCORES, 1)
    n = len(scores)
    if not within(false_alarms, 0, 1) or not 1 <= (k := math.floor(false_alarms * (n + 1) + 1e-9)) <= n:
        raise ValueError(f"expected false_alarms from 1/{n + 1} to below 1, got {false_alarms!r}")
    if not within(level, 0, 1) or level in (0, 1):
        raise ValueError(f"expected 0 < level < 1, got {level!r}")
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = (float(betaincinv(k, n + 1 - k, end)) for end in ends)
    return Threshold(scores.sort().values[k - 1].item(), low, high)


def auc(ordinary: Tensor, attacked: Tensor) -> float:
    """P(s > s') + ½ P(s = s') for a clean score s and an attacked one s', each drawn from its own.

    1 for a score that is larger for every clean input, ½ for one that knows nothing, and 0 for one that
    tells them apart with the wrong sign.
    ordinary: (n,).  attacked: (m,). At least one each, finite.  Raises ValueError for others.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(ordinary, attacked)))


def roc(ordinary: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every threshold the share of clean inputs below it, of attacked ones, and the threshold.

    The curve of a detector, false alarms first, from (0, 0) to (1, 1); the area below it is `auc`.
    ordinary: (n,).  attacked: (m,). At least one each, finite.
    Returns three (k,), float64, the thresholds rising from −∞: rejected is what lies below or at one.
    Raises ValueError for others.
    """
    from sklearn.metrics import roc_curve

    alarms, found, at = roc_curve(*_labelled(ordinary, attacked), drop_intermediate=False)
    return torch.tensor(alarms), torch.tensor(found), -torch.tensor(at, dtype=torch.float64)


# ---- a classifier that rejects ----


class Rejecting(nn.Module):
    """A network that answers where its score is at least a threshold, and rejects elsewhere.

    network: an nn.Sequential whose last layer makes logits (n, K) of features (n, d). It is shared.
    score: (z, h) → (n,).  threshold: of the score; −∞ accepts everything.
    As a model it gives the logits, so that an attack that knows nothing of the score takes it as it is.
    Raises ValueError for another network, and where the score does not give one number a sample.
    """

    def __init__(self, network: nn.Sequential, score: Score = confidence, threshold: float = -math.inf):
        super().__init__()
        if not isinstance(network, nn.Sequential) or len(network) < 2:
            raise ValueError(f"expected an nn.Sequential of two layers or more, got {kind(network)}")
        if not callable(score) or not within(threshold, -math.inf, math.inf):
            raise ValueError(f"expected a score and a threshold, got {kind(score)} and {threshold!r}")
        self.network, self.score, self.threshold = network, score, threshold

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, *shape).  Returns the network's logits (n, K)."""
        return self.network(x)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits z (n, K), features h (n, d) and scores s (n,) of x (n, *shape)."""
        check_tensors(x=x)
        h = self.network[:-1](x.clone())
        z = models.check_logits(self.network[-1](h), x)
        s = self.score(z, h)
        if not isinstance(s, Tensor) or s.shape != x.shape[:1]:
            raise ValueError(f"expected a score ({len(x)},), one a sample, got {kind(s)}")
        return z, h, s

    def judged(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Which answers are right, (n,) bool, and the scores (n,), without gradients."""
        with models.evaluating(self), torch.no_grad():
            z, _, s = self.parts(x)
        return losses.correct(z, y), s

    def accepts(self, x: Tensor) -> Tensor:
        """Which inputs get an answer, (n,) bool."""
        with models.evaluating(self), torch.no_grad():
            return self.parts(x)[2] >= self.threshold

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Where the answer is wrong and accepted, (n,) bool."""
        right, s = self.judged(x, y)
        return ~right & (s >= self.threshold)


def highest(
    model: Rejecting, x: Tensor, y: Tensor, ball: Ball, attacks: Sequence[Attack] = ()
) -> Tensor:
    """The highest score of a wrong answer that is found: max s(x + δ) over δ = 0 and the attacks' δ.

    As far as these attacks can tell, a sample is fooled at every threshold up to that, and at no other.
    So attacks that do not need a threshold judge all of them in one run.
    Returns (n,), −∞ where no answer is wrong.
    Raises ValueError for a model of another kind, and for an attack that leaves Δ(x).
    """
    _check_rejecting(model)
    check_ball(ball)
    best = _when_wrong(model, x, y)
    for attack in attacks:
        delta = attack(model, x, y, ball)
        check_moves(attack, delta, x)
        if not bool(ball.contains(delta, x).all()):
            raise ValueError(f"expected δ in {ball} from {attack}, got samples outside")
        best = torch.maximum(best, _when_wrong(model, x + delta, y))
    return best


def never_fooled(margins: Tensor, threshold: float) -> Tensor:
    """Proof that no δ makes an answer wrong and accepted: every bound on z_y − z_j is above −max(t, 0).

    For the score `confidence`: where class j is accepted, z_j leads every other class by at least t,
    the label too. For t > 0 that is easier to prove than that the answer is right.
    margins: (n, K), lower bounds on z_y − z_j over Δ(x), +∞ at j = y, such as `bounds.margins`.
    threshold: t, finite.
    Returns (n,) bool.  Raises ValueError unless every row has one +∞.
    """
    losses.worst_logits(margins)  # raises for what is no margins
    if not within(threshold, -LARGEST, LARGEST):
        raise ValueError(f"expected a finite threshold, got {threshold!r}")
    return (margins > -max(threshold, 0.0)).all(1)


# ---- what an attack that knows the detector climbs: z, g = s − t, y → (n,) ----


def constrained(z: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """The `losses.log_odds` until the answer is wrong, then the score: g is raised within the wrong."""
    return torch.where(losses.correct(z, y), losses.log_odds(z, y), g)


def weakest(z: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """min(max_{j≠y} z_j − z_y, g): whichever of the two is missing more; fooled where it is ≥ 0."""
    return torch.minimum(losses.margin_loss(z, y), g)


def penalised(weight: float) -> Loss:
    """The `losses.log_odds` + w · min(g, 0): a wrong answer, with a price on being noticed.

    weight: w ≥ 0.  Raises ValueError for others.  Source: Carlini & Wagner 2017 (ten detection methods).
    """
    if not within(weight, 0, LARGEST):
        raise ValueError(f"expected a finite weight ≥ 0, got {weight!r}")
    return lambda z, g, y: losses.log_odds(z, y) + weight * g.clamp(max=0)


def climb(loss: Loss, attack: Callable[..., Tensor] = attacks.pgd) -> Attack:
    """An attack on a `Rejecting` that climbs a loss of logits, excess g = s − t and label.

    Of its iterates it keeps, for each sample, the wrong answer with the highest score; before there is
    one, the answer that is nearest to wrong. At threshold −∞ one wrong answer is as good as another, and
    g has no slope.
    loss: (z, g, y) → (n,), such as `constrained`.
    attack: takes a `loss=`, asks for it right after the logits, and keeps all samples; such as
            `attacks.pgd` or a `functools.partial` of it.
    Returns (model, x, y, ball) → δ like x.
    Raises ValueError for a model that is no `Rejecting`, and as the attack.
    """

    def evading(model: Rejecting, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        def own(z: Tensor, h: Tensor, g: Tensor) -> Tensor:
            return loss(z, g, y.clone())  # autograd takes no tensor that was made in inference mode

        return _climb(model, x, y, ball, attack, own)

    return evading


def targeted(attack: Callable[..., Tensor] = attacks.pgd, targets: int = 9) -> Attack:
    """An attack on a `Rejecting` that tries several wrong classes: reach t, then raise the score there.

    For each class t in turn it climbs log p_t/(1 − p_t) until t is predicted, then g, and keeps the best
    as `climb` does. `constrained` goes to the nearest class, where the score may have no way up.
    attack: as for `climb`.  targets: how many classes, those with the largest logits at x.
    Returns (model, x, y, ball) → δ like x.
    Raises ValueError for targets < 1, for a model that is no `Rejecting`, and as the attack.
    """
    _check_targets(targets)

    def evading(model: Rejecting, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        _check_rejecting(model)
        with models.evaluating(model), torch.no_grad():
            z = models.logits(model, x)
        losses.margin(z, y)  # raises for labels that do not fit
        ranked = z.scatter(1, y[:, None], -math.inf).argsort(1, descending=True)[:, :-1]
        tried = [_reaching(goal) for goal in ranked[:, :targets].T]
        return _best(model, x, y, ball, attack, tried)

    return evading


def matching(
    images: Tensor, labels: Tensor, attack: Callable[..., Tensor] = attacks.pgd, targets: int = 9
) -> Attack:
    """An attack on a `Rejecting` that gives x the features of a clean image of another class.

    For each wrong class in turn it climbs −‖h(x + δ) − h(x')‖², x' the image of that class that is
    nearest to x in features, and keeps the best as `climb` does. It reads no score: any function of
    the features thinks of x + δ what it thinks of x'.
    images: (m, *shape), clean and accepted.  labels: (m,).
    attack: as for `climb`.  targets: how many classes, those with the nearest images.
    Returns (model, x, y, ball) → δ like x.
    Raises ValueError for other shapes, targets < 1, images of no class but x's own, for a model that is
    no `Rejecting`, and as the attack.
    Source: Sabour et al. 2016; against detectors, Carlini & Wagner 2017 (ten detection methods).
    """
    _check_targets(targets)
    check_tensors(images=images, labels=labels)
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise ValueError(f"expected as many images as labels, got {kind(images)} and {kind(labels)}")

    def evading(model: Rejecting, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        _check_rejecting(model)
        check_tensors(x=x, y=y)
        if images.shape[1:] != x.shape[1:] or images.dtype != x.dtype:
            raise ValueError(f"expected images like x, {kind(x)}, got {kind(images)}")
        with models.evaluating(model), torch.no_grad():
            (z, own, _), kept = model.parts(x), model.parts(images)[1]
        losses.margin(z, y)  # raises for labels that do not fit
        apart = _squared_distances(own, kept).masked_fill(y[:, None] == labels, math.inf)
        tried = []
        for _ in range(min(targets, len(labels.unique()) - 1)):
            near = apart.argmin(1)
            tried.append(_towards(kept[near]))
            apart = apart.masked_fill(labels == labels[near][:, None], math.inf)
        if not tried:
            raise ValueError(f"expected images of several classes, got {labels.unique().tolist()}")
        return _best(model, x, y, ball, attack, tried)

    return evading


def _reaching(goal: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(z: Tensor, h: Tensor, g: Tensor) -> Tensor:
        own = goal.clone()  # autograd takes no tensor that was made in inference mode
        return torch.where(losses.correct(z, own), g, -losses.log_odds(z, own))

    return loss


def _towards(goals: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda z, h, g: -(h - goals).square().sum(1)


def _best(model, x, y, ball, attack, tried) -> Tensor:
    """Of the attacks on several losses (z, h, g) → (n,), what comes furthest for each sample."""
    found, best = torch.zeros_like(x), x.new_full((len(x),), -math.inf)
    for loss in tried:
        delta = _climb(model, x, y, ball, attack, loss)
        with models.evaluating(model), torch.no_grad():
            z, _, s = model.parts(x + delta)
        rank = _rank(z, _excess(s, model.threshold), y)
        better = rank > best
        best = torch.where(better, rank, best)
        found = torch.where(better.view(-1, *[1] * (x.ndim - 1)), delta, found)
    return found


def _climb(model, x, y, ball, attack, loss) -> Tensor:
    """The attack on two classes, of which the second wins where the model is fooled."""
    _check_rejecting(model)
    check_tensors(x=x, y=y)
    last: list[Tensor] = []  # logits, features and excess where the attack has just been

    def asked(v: Tensor) -> Tensor:
        z, h, s = model.parts(v)
        last[:] = [z, h, _excess(s, model.threshold)]
        with torch.no_grad():  # what is climbed is the loss
            rank = _rank(z, last[2], y) / 2
        return torch.stack([-rank, rank], 1)

    with models.evaluating(model):
        return attack(asked, x, 0 * y, ball, loss=lambda *_: loss(*last))


def _excess(s: Tensor, threshold: float) -> Tensor:
    """s − t, but finite, as t may be ±∞."""
    far = _far(s)
    return (s - threshold).clamp(-far, far)


def _rank(z: Tensor, g: Tensor, y: Tensor) -> Tensor:
    """How far an attack has come: g where the answer is wrong, and below any g where it is right.

    No function of g that has ends: in float32 it would not tell −10⁶ from −10⁶ + 1.
    """
    lead, far = losses.margin_loss(z, y), _far(g)
    return torch.where(lead >= 0, g, far * (1 / (1 - lead.clamp(max=0)) - 3))


def _far(like: Tensor) -> float:
    """More than any score that is meant, and little enough to be taken three times."""
    return min(1e30, torch.finfo(like.dtype).max / 8)


def _when_wrong(model: Rejecting, x: Tensor, y: Tensor) -> Tensor:
    """The scores where the answers are wrong, −∞ elsewhere."""
    right, s = model.judged(x, y)
    return s.masked_fill(right, -math.inf)


# ---- checks, and what the scores share ----


def _ranked(z: Tensor, classes: int = 2) -> tuple[Tensor, Tensor]:
    """The largest logit (n,) and all others (n, K − 1)."""
    check_tensors(z=z)
    if z.ndim != 2 or z.shape[1] < classes or not z.is_floating_point():
        raise ValueError(f"expected logits (n, K) with K ≥ {classes}, got {z.dtype} {tuple(z.shape)}")
    ranked = z.sort(1, descending=True).values
    return ranked[:, 0], ranked[:, 1:]


def _squared_distances(h: Tensor, kept: Tensor) -> Tensor:
    """‖h_i − h_j‖² for all pairs, (n, m): ‖h_i‖² − 2⟨h_i, h_j⟩ + ‖h_j‖², in float64, as it cancels."""
    check_tensors(h=h)
    if h.ndim != 2 or h.shape[1] != kept.shape[1] or not h.is_floating_point():
        raise ValueError(f"expected features (n, {kept.shape[1]}), got {kind(h)}")
    a, b = h.double(), kept.double()
    lengths = a.square().sum(1, keepdim=True) + b.square().sum(1)
    return torch.addmm(lengths, a, b.T, alpha=-2).clamp(min=0)


def _check_finite(values: Tensor, what: str, axes: int) -> None:
    """Raise ValueError unless these are finite numbers, at least one, with so many axes."""
    check_tensors(**{what.split()[0]: values})
    if values.ndim != axes or len(values) == 0 or not values.is_floating_point():
        raise ValueError(f"expected {what}, at least one, got {kind(values)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"expected finite {what.split()[0]}, got NaN or infinity")


def _labelled(ordinary: Tensor, attacked: Tensor) -> tuple[list[int], list[float]]:
    """Both groups as scikit-learn wants them: 1 for attacked, and the larger the more suspicious."""
    _check_finite(ordinary, SCORES, 1)
    _check_finite(attacked, SCORES, 1)
    return [0] * len(ordinary) + [1] * len(attacked), (-torch.cat([ordinary, attacked])).tolist()


def _check_targets(targets: int) -> None:
    if not isinstance(targets, int) or targets < 1:
        raise ValueError(f"expected targets ≥ 1, got {targets!r}")


def _check_rejecting(model: object) -> None:
    if not isinstance(model, Rejecting):
        raise ValueError(f"expected a Rejecting, got {kind(model)}")
