"""Checks of chapter 13, detection."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import attacks, data, detection, losses, models, optimisers, training
from ..detection import KernelDensity, Rejecting
from ..threat import Ball
from . import Code, Exercise, Numbers, Stable, combined
from .comparing import finite, no_loss

# ---- AUC from ranks ----


def _auc(ordinary: Tensor, attacked: Tensor, *, low: float = 0.5, first: int = 1) -> Tensor:
    """AUC from the ranks of the clean scores among all; each option is a mistake.

    low: the weight of the smallest of the ranks that tied scores take up, the rest on the largest.
    first: added up for every clean score where the sum from 1 to n belongs.
    """
    n, pooled = len(ordinary), torch.cat([ordinary, attacked]).sort().values
    below, upto = (torch.searchsorted(pooled, ordinary, right=r).double() for r in (False, True))
    ranks = low * (below + 1) + (1 - low) * upto
    return (ranks.sum() - n * (n - 1) / 2 - n * first) / (n * len(attacked))


def _pairs(ordinary: Tensor, attacked: Tensor, tie: float) -> Tensor:
    """The share of pairs in which the clean score is larger."""
    s = ordinary[:, None]
    return ((s > attacked).double() + tie * (s == attacked)).mean()


_RANKED = {
    "Ties count 0 with you: compared by >, or ranked in some order. Count ½.": partial(_pairs, tie=0),
    "Ties count 1 with you: compared by ≥, or ranked in some order. Count ½.": partial(_pairs, tie=1),
    "Tied scores got the smallest of their ranks. Give each the mean of these.": partial(_auc, low=1),
    "Tied scores got the largest of their ranks. Give each the mean of these.": partial(_auc, low=0),
    "Off by one for each clean score: your ranks begin with 0. Begin with 1.": partial(_auc, first=2),
    "Off by one for each clean score: ranks from 1 sum to n(n + 1)/2 at least.": partial(_auc, first=0),
    "That is a number of pairs. Divide by all n·m of them.": lambda ordinary, attacked: (
        _auc(ordinary, attacked) * len(ordinary) * len(attacked)
    ),
}
_ROUND = "The wrong way round: you counted where the attacked score is larger, or gave it rank 1."
_TURNED = {_ROUND: _auc} | {f"{sentence} {_ROUND}": wrong for sentence, wrong in _RANKED.items()}

auc_ranks = Code(
    reference=lambda ordinary, attacked: _auc(ordinary, attacked),
    cases=[
        (torch.tensor([3.0, 1.0, 4.0]), torch.tensor([2.0, 0.0])),
        (torch.tensor([0.5, 2.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 1.0])),
        (torch.tensor([5.0, 1.0, 2.0, 1.0, 5.0]), torch.tensor([1.0, 5.0, 1.0])),
    ],
    mistakes=_RANKED | {s: lambda a, b, wrong=wrong: wrong(b, a) for s, wrong in _TURNED.items()},
    praise="all pairs were counted.",
)

# ---- what an alarm means ----


class _Alarms(NamedTuple):
    """The three numbers, right where nothing else is said."""

    attacks: float = 0.95 * 0.001 / (0.95 * 0.001 + 0.05 * 0.999)
    false: float = 0.05 * 9990
    half: float = 0.95 * 0.001 / 0.999


base_rate = Numbers(
    expected=_Alarms(),
    labels=("share of alarms that are attacks", "false alarms a day", "false-alarm rate for half"),
    mistakes={
        "95 % of the attacks raise an alarm. Asked is how many alarms are attacks.": _Alarms(0.95),
        "One in a thousand is the share before the alarm, which makes it larger.": _Alarms(0.001),
        "That is a share of all inputs. Divide by that of inputs that raise an alarm.": _Alarms(0.00095),
        "False alarms come from clean inputs: below stands 0.05 · 0.999, not 0.05.": (
            _Alarms(0.00095 / (0.00095 + 0.05))
        ),
        "You divided by the false alarms. All alarms are these and the real ones.": (
            _Alarms(0.00095 / (0.05 * 0.999))
        ),
        "You divided by 0.05. An alarm has the share 0.95 · 0.001 + 0.05 · 0.999.": _Alarms(0.019),
        "That is the share of alarms that are false.": _Alarms(1 - _Alarms().attacks),
        "A share is a number between 0 and 1, not in percent.": _Alarms(1900 / 1018),
        "Right, but rounded: the first has five significant digits, or is a fraction.": _Alarms(0.01866),
        "Right, but rounded too much: the first has five significant digits, or is a fraction.": _Alarms(
            0.0187
        ),
        "That is 5 % of all inputs. The ten attacked ones raise no false alarm.": _Alarms(false=500),
        "These are all alarms of a day. Take off the real ones.": _Alarms(false=509),
        "These are the real alarms of a day.": _Alarms(false=9.5),
        "As many false alarms as attacks? Only 95 % of these raise one.": _Alarms(half=0.001 / 0.999),
        "Half the rate doubles the share only. Set f · 0.999 to 0.95 · 0.001.": _Alarms(half=0.025),
        "With f = 0.95 an alarm says nothing. Set f · 0.999 equal to 0.95 · 0.001.": _Alarms(half=0.95),
    },
    praise="fifty false alarms for each real one, from a detector that is right 95 times in 100.",
)

# ---- non-maximal entropy by hand ----

OPINIONS = ((0.7, 0.1, 0.1, 0.1), (0.7, 0.3, 0, 0), (0.94, 0.02, 0.02, 0.02), (0.2, 0.6, 0.1, 0.1))
LOGITS = (1000, math.log(2), math.log(2), 0)


def _entropy(p: tuple, *, away: tuple, front: bool = True, inside: bool = True) -> float:
    """Of what is left of p; front and inside: whether it is scaled to the sum 1 there."""
    kept = [v for j, v in enumerate(p) if j not in away and v]
    rest = sum(kept)
    return -sum(v / (rest if front else 1) * math.log(v / (rest if inside else 1)) for v in kept) + 0.0


class _NonME(NamedTuple):
    """The five numbers, right where nothing else is said."""

    a: float = math.log(3)
    b: float = 0
    c: float = math.log(3)
    d: float = 1.5 * math.log(2)
    e: float = _entropy((0.4, 0.4, 0.2), away=())


def _by(**options: bool) -> _NonME:
    """The five with a mistake; in float64 the logits leave the other classes 0."""
    away = options.pop("away", None)
    out = [_entropy(p, away=(p.index(max(p)),) if away is None else away, **options) for p in OPINIONS]
    return _NonME(*out, 0)


nonme_hand = Numbers(
    expected=_NonME(),
    labels=("(a)", "(b)", "(c)", "(d)", "the logits (e)"),
    mistakes={
        "The others have to sum to 1 first: p̂_j = p_j/(1 − p_c).": _by(front=False, inside=False),
        "Inside the logarithm p̂_j is right. Before it stands p_j still.": _by(front=False),
        "Before the logarithm p̂_j is right. Inside it stands p_j still.": _by(inside=False),
        "That is the entropy of all classes. The predicted one is left out.": _by(away=()),
        "You took logarithms to base 2. The book's are natural.": [v / math.log(2) for v in _NonME()],
        "You took logarithms to base 10. The book's are natural.": [v / math.log(10) for v in _NonME()],
        "You divided by log 3. Non-ME goes up to log(K − 1).": [v / math.log(3) for v in _NonME()],
        "The sign: an entropy is never negative.": [-v for v in _NonME()],
        "In (d) the predicted class is the second, and you left out the first.": (
            _NonME(d=_entropy(OPINIONS[3], away=(0,)))
        ),
        "In (c) the network is surer, but the rest is as even as in (a).": _NonME(c=0),
        "In (b) one class has all that is left, so p̂ = 1 there: no entropy.": _NonME(b=math.log(3)),
        "In (e) nearly nothing is left, but it is shared among three classes.": _NonME(e=0),
        "In (e) the three are not alike: as 2 : 2 : 1.": _NonME(e=math.log(3)),
        "In (e) you took logits for probabilities. These are as 2 : 2 : 1.": _NonME(e=math.log(2)),
    },
    praise="it sees how the doubts are shared, and not how large they are.",
)

# ---- a density without underflow ----


def _exponents(h, kept, sigma, *, power=2, width=1, of=torch.square) -> Tensor:
    """−‖h − h_i‖²/σ² for all pairs, (n, m); each option is a mistake."""
    return -of(torch.linalg.vector_norm(h[:, None] - kept, dim=2)) / (width * sigma**power)


def _density(h, kept, sigma, *, count=math.log, reduce=torch.logsumexp, **options) -> Tensor:
    """The logarithm of their mean; each option is a mistake."""
    return reduce(_exponents(h, kept, sigma, **options), 1) - count(len(kept))


_sum = partial(_density, count=lambda m: 0)


def _gaussian(h: Tensor, kept: Tensor, sigma: float) -> Tensor:
    """With the factor that makes the integral 1."""
    return _density(h, kept, sigma, width=2) - h.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))


kernel_density = Stable(
    reference=lambda h, kept, sigma: _density(h, kept, sigma),
    cases=[
        (torch.tensor([[0.5, 0], [1, 1]]), torch.tensor([[0.0, 0], [1, 0], [0, 2]]), 2.0),
        (torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.5, 1.0], [2.0, 0.0, 2.5]]), 0.8),
        (torch.tensor([[1000.0, 0.0], [0.0, 2000.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 1.0),
    ],
    mistakes=combined(
        _density,
        {
            "The mean is missing: take off log m.": _sum.keywords,
            "In the exponent you divided by σ. It is σ².": {"power": 1},
            "In the exponent you divided by 2σ², as in a Gaussian. This kernel has σ².": {"width": 2},
            "Your distance is not squared.": {"of": torch.abs},
        },
    )
    | {
        "In float32 e^−104 is 0, and the log of 0 is −∞. Stay in logarithms: `torch.logsumexp`.": (
            lambda *case: _exponents(*case).exp().mean(1).log()
        ),
        "That is the nearest feature alone. All count: log-sum-exp.": partial(_sum, reduce=torch.amax),
        "That is the nearest, less log m. All count: log-sum-exp.": partial(_density, reduce=torch.amax),
        "That is the mean of the logarithms, not the logarithm of the mean.": (
            partial(_sum, reduce=torch.mean)
        ),
        "You divided the logarithm by m. The 1/m stands inside: take off log m.": (
            lambda h, kept, sigma: _sum(h, kept, sigma) / len(kept)
        ),
        "You took off m. In the logarithm it is log m.": partial(_density, count=lambda m: m),
        "The sign in the exponent: what is far away is less ordinary.": partial(_density, width=-1),
        "That is the density. The logarithm is missing.": lambda *case: _density(*case).exp(),
        "That is a Gaussian's density. This kernel has σ² for 2σ², and no factor before it.": _gaussian,
    },
    praise="at −1,000,000 too, it says which of two inputs is stranger.",
    large="Right where features are near. Far away every term of the sum is 0, and a small number put "
    "below the logarithm is a floor. Compute no term at all.",
)

# ---- reverse cross-entropy ----


def _log_p(z: Tensor) -> Tensor:
    return torch.log_softmax(z, 1)


def _rce(z: Tensor, y: Tensor, *, own: bool = False, parts=lambda K: K - 1, log=_log_p) -> Tensor:
    """The reverse cross-entropy; each option is a mistake."""
    asked = torch.ones_like(z).scatter(1, y[:, None], float(own)).bool()
    return -torch.where(asked, log(z), 0).sum(1) / parts(z.shape[1])


rce = Stable(
    reference=detection.reverse_cross_entropy,
    cases=[
        (torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])),
        (torch.tensor([[0.0, 1.0, 3.0, -2.0], [1.0, 1.0, 0.0, 2.0]]), torch.tensor([3, 0])),
        (torch.tensor([[300.0, 0.0, -300.0], [0.0, 300.0, 220.0]]), torch.tensor([0, 2])),
    ],
    mistakes=combined(
        _rce,
        {
            "The sum leaves out class y. Yours pulls p_y up, too.": {"own": True},
            "The factor 1/(K − 1) is missing.": {"parts": lambda K: 1},
        },
    )
    | {
        "You divided by K. There are K − 1 other classes.": partial(_rce, parts=lambda K: K),
        "That is for all K classes alike. Class y is to get nothing.": (
            partial(_rce, own=True, parts=lambda K: K)
        ),
        "In float32 a softmax is 0 where the logits differ by more than 104, and the log of 0 is −∞. "
        "`torch.log_softmax` takes no probability.": partial(_rce, log=lambda z: z.softmax(1).log()),
        "e^300 is ∞, also before you divide by the sum. `torch.log_softmax` takes the largest logit off "
        "first.": partial(_rce, log=lambda z: (z.exp() / z.exp().sum(1, keepdim=True)).log()),
        "That is the cross-entropy, turned around. The others need not be alike, and it has no end.": (
            lambda z, y: -losses.cross_entropy(z, y)
        ),
        "That is the cross-entropy. Here class y is to get nothing.": losses.cross_entropy,
        "That is the cross-entropy of −z. The others need not be alike.": (
            lambda z, y: losses.cross_entropy(-z, y)
        ),
        "That is −log(1 − p_y). The others need not be alike.": (
            lambda z, y: torch.nn.functional.softplus(-losses.log_odds(z, y))
        ),
        "The sign: log p is negative, and the loss is positive.": lambda z, y: -_rce(z, y),
        "You summed logits. log p has their log-sum-exp taken off.": partial(_rce, log=lambda z: z),
        "You summed probabilities. The logarithm is missing.": partial(_rce, log=lambda z: z.softmax(1)),
    },
    praise="small only if all others are alike, and finite however sure the network is.",
    large="Right for small logits. For large ones a probability is 0, and a small number put below the "
    "logarithm is a floor. Take no probability at all.",
)

# ---- past the detector ----

BALL = Ball(math.inf, 0.12, (0, 1))
ENOUGH, JUDGED = 150, 200  # how many images a good attack fools, and of how many


@cache
def detector() -> Rejecting:
    """A small network with the kernel density of its features, at 5 % false alarms.

    σ is half of the median distance between a feature and the nearest other. The threshold is set on
    the second half of the test digits.
    """
    digits, generator = data.load("digits"), torch.Generator().manual_seed(4)
    x, y = digits.x_train[:1000], digits.y_train[:1000]
    model = models.mlp([64, 200, 30, 10], generator)
    adam = {"optimiser": optimisers.Adam(), "lr": 3e-3, "batch_size": 50, "generator": generator}
    for _ in training.fit(model, (x, y), training.clean, epochs=20, **adam):
        pass
    with torch.no_grad():
        h, says = model[:-1](x), model(x).argmax(1)
    apart = torch.cdist(h, h).fill_diagonal_(math.inf).amin(1).median().item()
    score, held = KernelDensity(h, says, apart / 2), len(digits.x_test) // 2
    _, s = Rejecting(model, score).judged(digits.x_test[held:], digits.y_test[held:])
    return Rejecting(model, score, detection.threshold(s, 0.05).value).eval()


@cache
def _judged() -> tuple[Tensor, Tensor]:
    """Test digits of the first half whose answer is right and accepted."""
    digits, model = data.load("digits"), detector()
    x, y = (v[: len(v) // 2] for v in (digits.x_test, digits.y_test))
    right, s = model.judged(x, y)
    chosen = (right & (s >= model.threshold)).nonzero().flatten()[:JUDGED]
    return x[chosen], y[chosen]


def _attacked(loss: Callable) -> Tensor:
    """Where thirty steps of PGD on a loss of logits, excess and label lead."""
    attack = detection.climb(
        lambda *given: loss(*(v.clone() for v in given)), partial(attacks.pgd, steps=30)
    )
    x, y = _judged()
    return x + attack(detector(), x, y, BALL)


def _fooled(loss: Callable) -> tuple[int, int]:
    """How many answers are wrong then, and how many of these are accepted."""
    model, y = detector(), _judged()[1]
    right, s = model.judged(_attacked(loss), y)
    return int((~right).sum()), int((~right & (s >= model.threshold)).sum())


@cache
def _met() -> tuple[Tensor, Tensor, Tensor]:
    """z, g and y as an attack meets them: of the digits, and of what the log-odds alone made of them."""
    model, (x, y) = detector(), _judged()
    with torch.no_grad():
        z, _, s = model.parts(torch.cat([x, _attacked(lambda z, g, y: losses.log_odds(z, y))]))
    return z, s - model.threshold, y.repeat(2)


class _Bypass(Exercise):
    praise = "first wrong, then ordinary. The wrong answers could be noticed as long as nobody hid them."

    def examine(self, answer: Any) -> str | None:
        """PGD on the loss must fool many."""
        if not callable(answer):
            return f"expected a function my_loss(z, g, y), got {answer!r}."
        z, g, y = (v.clone() for v in _met())
        z.requires_grad_(), g.requires_grad_()
        value = answer(z.clone(), g.clone(), y.clone())
        unfit = no_loss(value, len(y), "z or g")
        if unfit is not None:
            return unfit
        slopes = torch.autograd.grad(value.sum(), (z, g), allow_unused=True, materialize_grads=True)
        try:
            wrong, passed = _fooled(answer) if all(map(finite, (value, *slopes))) else (-1, 0)
        except ValueError:  # PGD says so where it meets one later
            wrong, passed = -1, 0
        if wrong < 0:
            return "your loss or its gradient is NaN or infinite."
        if passed >= ENOUGH:
            return None
        told = _why(*slopes, losses.correct(z, y), g < 0, y, wrong)
        return (
            f"of {JUDGED} answers {wrong} are wrong, and {wrong - passed} of these rejected: {passed} "
            f"fool the detector. {told}"
        )


def _why(dz: Tensor, dg: Tensor, right: Tensor, low: Tensor, y: Tensor, wrong: int) -> str:
    """What makes a loss a bad one to climb, seen from its slopes in logits and excess.

    right, low: where the answer is right, where g < 0.  wrong: how many answers it has turned.
    """
    noticed = ~right & low
    if (dg[noticed] < 0).any():
        return "Your loss falls with g, and PGD climbs: it gets noticed. Turn that sign around."
    if dz.gather(1, y[:, None])[right].median() > 0:
        return "Your loss rises with z_y, and PGD climbs: it helps the network. Turn that sign around."
    if not dz.any() and not dg.any():
        return "Your loss is flat: its slope is 0 in z and in g."
    blind, idle = not dg[noticed].any(), not dz[right].any()
    if blind and idle:
        return "The other way round: turn the answer where it is right, raise g where it is wrong."
    if blind:
        return (
            "Where an answer is wrong and rejected, your loss does not see g: it goes on to make the "
            "answer more wrong, and that hides nothing."
        )
    if idle:
        return (
            "Where an answer is right your loss sees g only, and the digit becomes more like others of "
            "its own class. Right and accepted fools nobody."
        )
    if dg[right].any() and wrong < JUDGED / 2:
        return (
            "You raise g also where the answer is right. Its slope is the steeper one, and it leads to "
            "more ordinary digits of the same class. First wrong, then ordinary."
        )
    if dz[noticed].any():
        return (
            "Where an answer is wrong and rejected only g is missing, and you still pull at the logits."
        )
    return "Does it turn the answer wherever that is right, and raise g wherever it is wrong?"


bypass = _Bypass()

# ---- what is wrong with this table? ----


class _Table(NamedTuple):
    """The six numbers, right where nothing else is said."""

    least: float = 0.4
    most: float = 0.8
    found: float = 0.775
    through: float = 0.135
    turned: float = 0.98
    left: float = 0.02


detector_table = Numbers(
    expected=_Table(),
    labels=(
        "A: the smallest share found for this AUC",
        "B: the largest share found for this AUC",
        "A: share found of the wrong answers",
        "B: share wrong and not found",
        "D: AUC of −s",
        "share that withstands all four",
    ),
    mistakes={
        "0.97 is the AUC. At one threshold it allows far less.": _Table(least=0.97),
        "The table says 0.82. Asked is what the AUC by itself allows.": _Table(least=0.82),
        "With t = 0 the curve is 0 up to 5 %, and the AUC at most 0.95.": _Table(least=0),
        "0.03/0.05 is how far below 1 the curve may lie up to 5 %. Take it from 1.": _Table(least=0.6),
        "0.76 is the AUC. The curve can be 0 up to 5 %, and higher from there on.": _Table(most=0.76),
        "The other way: from 0.95 t ≤ 0.76 follows t ≤ 0.76/0.95.": _Table(most=0.722),
        "The table says 0.85, and its AUC does not allow that.": _Table(most=0.85),
        "From 5 % on the curve cannot fall. With t = 1 it has an area of at least 0.95.": _Table(most=1),
        "Of the 820 found, 200 had the right answer. Those attacks had failed.": _Table(found=0.82),
        "That is 620 of all 1,000. Divide by the 800 wrong ones.": _Table(found=0.62),
        "More than all? Of the 820 only 620 have a wrong answer.": _Table(found=1.025),
        "0.15 is a share of the wrong answers. Asked is one of all 1,000 images.": _Table(through=0.15),
        "Of the 235 that are not found 100 have the right answer.": _Table(through=0.235),
        "That is the share wrong and found.": _Table(through=0.765),
        "That is the AUC of s. With −s every pair is the other way round.": _Table(turned=0.02),
        "An AUC of ½ knows nothing. This s knows a lot, with the wrong sign.": _Table(turned=0.5),
        "That is the share that D fools. The others withstand it.": _Table(left=0.98),
        "You took the mean over the rows. An attacker takes the best of them.": _Table(left=0.66875),
        "That is against C. An attacker takes the row that fools the most.": _Table(left=0.97),
    },
    praise="one row cannot be, one counts failures as finds, and the last undoes all others.",
)

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "A density without underflow": kernel_density,
    "AUC from ranks": auc_ranks,
    "What an alarm means": base_rate,
    "Non-maximal entropy by hand": nonme_hand,
    "Reverse cross-entropy": rce,
    "Past the detector": bypass,
    "What is wrong with this table?": detector_table,
}
