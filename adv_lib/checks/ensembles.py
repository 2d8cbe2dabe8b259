"""Checks of chapter 12, ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import attacks, data, ensembles, losses, models, optimisers, training
from ..ensembles import Ensemble
from ..stack import Stack
from ..threat import Ball
from . import Code, Exercise, Numbers, Stable
from .comparing import as_tensor, close, finite, no_loss, shape_or_value, show

# ---- the determinant by hand ----

FIRST, SECOND = (0.3, 0.3, 0.4, 0), (0.3, 0.4, 0.3, 0)  # what the members say; class 0 is right
SURER = (0.93, 0.03, 0.04, 0)
THIRD = (0.14, 0.24, 0.32, 0.3)


def _columns(members: tuple, own: int = 1, norm: float = 2) -> Tensor:
    """The members' opinions on the wrong classes, of length 1, as rows; each option is a mistake.

    own: where the wrong classes begin.  norm: of which the length is; 0 is no scaling.
    """
    p = torch.tensor(members, dtype=torch.float64)[:, own:]
    return p / torch.linalg.vector_norm(p, norm, dim=1, keepdim=True) if norm else p


class _Volumes(NamedTuple):
    """The five numbers, right where nothing else is said."""

    cosine: float = 0.96
    two: float = 0.0784
    surer: float = 0.0784
    three: float = 0.028224
    plane: float = 0


def _volumes(power: float = 1, **options: float) -> _Volumes:
    """The five numbers from the members; each option is a mistake."""

    def gram(*members: tuple) -> Tensor:
        m = _columns(members, **options)
        return m @ m.T

    def volume(*members: tuple) -> float:
        return torch.linalg.det(gram(*members)).item() ** power

    pairs = volume(FIRST, SECOND), volume(SURER, SECOND)
    return _Volumes(gram(FIRST, SECOND)[0, 1].item(), *pairs, volume(FIRST, SECOND, THIRD))


_EXACT = _volumes()
_SIDES = [float(a @ b) for a, b in (_columns((m, THIRD)) for m in (FIRST, SECOND))]

determinant = Numbers(
    expected=_Volumes(),
    labels=(
        "the cosine of members 1 and 2",
        "ED of members 1 and 2",
        "ED with the surer member 1",
        "ED of members 1, 2 and 3",
        "ED of three members, L = 3",
    ),
    mistakes={
        "The columns have length 1 in M̃. Divide each by the root of its sum of squares first.": _volumes(
            norm=0
        ),
        "You scaled the columns to the sum 1. In M̃ they have length 1: the sum of squares is 1.": (
            _volumes(norm=1)
        ),
        "You kept class y. M̃ has the wrong classes only.": _volumes(own=0),
        "Those are volumes. ED is their square, det(M̃ᵀM̃).": _volumes(power=0.5),
        "ED of two is 1 − cos². You left out the square.": _Volumes(two=0.04, surer=0.04),
        "That is cos². ED of two is what it lacks to 1.": _Volumes(two=0.9216, surer=0.9216),
        "The surer member spreads what it has left as before, so its column of length 1 is the same. "
        "ED does not see how sure a member is.": _Volumes(surer=_volumes(norm=0).surer),
        "A surer member is not less diverse: ED scales its doubts to length 1, and they are as 3 to 4, "
        "as before.": _Volumes(surer=0),
        "You multiplied 1 − cos² over the three pairs. The determinant of three has another term.": (
            _Volumes(three=_EXACT.two * (1 - _SIDES[0] ** 2) * (1 - _SIDES[1] ** 2))
        ),
        "In the determinant of three, +2 times the product of the three cosines is missing.": _Volumes(
            three=1 - _EXACT.cosine**2 - _SIDES[0] ** 2 - _SIDES[1] ** 2
        ),
        "The fourth is the volume. ED is its square.": _Volumes(three=math.sqrt(_EXACT.three)),
        "Right, but rounded: give all digits of the fourth.": _Volumes(three=0.0282),
        "Three columns with two entries lie in a plane: they span no volume, whoever says what.": (
            _Volumes(plane=_EXACT.two)
        ),
        "L = 3 leaves two wrong classes. Three columns cannot be at right angles in a plane.": (
            _Volumes(plane=1)
        ),
    },
    praise="a squared volume, blind to how sure anybody is.",
)

# ---- how sure? ----


def _optimum(alpha: float, K: int, L: int) -> Tensor:
    """`ensembles.optimum`, and the α above which every member is wrong there."""
    return torch.tensor([ensembles.optimum(alpha, K, L), (K + L - 1) / math.log(K)]).double()


def _sure(
    alpha, K, L, *, share=lambda a, K: a / K, rivals=lambda L: L - 1, p=None, limit=None
) -> Tensor:
    """The same from one equation; each option is a mistake."""
    low, high = -60.0, 60.0  # of log(p/(1 − p))
    for _ in range(100):
        t = (low + high) / 2
        rises = share(alpha, K) * (t + math.log(rivals(L))) > 1 + math.exp(-t)
        low, high = (low, t) if rises else (t, high)
    found = 1 / (1 + math.exp(-low)) if p is None else p
    told = (K + L - 1) / math.log(K) if limit is None else limit(K, L)
    return torch.tensor([found, told], dtype=torch.float64)


_SLIPS = {
    "In your equation for p, α is not divided by K.": {"share": lambda a, K: a},
    "In your equation for p, α is multiplied by K, as for a loss with the mean over members.": {
        "share": lambda a, K: a * K
    },
    "There are L − 1 wrong classes in p (L − 1)/(1 − p), not L.": {"rivals": lambda L: L},
    "In your equation for p the L − 1 is missing.": {"rivals": lambda L: 1},
    "Your bisection has run to 1. The difference of both sides rises with p: where it is positive, the "
    "root is below.": {"p": 1.0},
    "Your bisection has run to 0. The difference of both sides rises with p: where it is negative, the "
    "root is above.": {"p": 0.0},
}
_LIMITS = {
    "Your α is that for p = 1/2. But a member with p < 1/2 is right as long as its part of the wrong "
    "classes gets less each.": {"limit": lambda K, L: 2 * K / math.log(L - 1)},
    "Your α is infinite: so you asked when the ensemble is wrong, or gave a class of a member's part "
    "(1 − p)/(L − 1). It gets K times that.": {"limit": lambda K, L: math.inf},
    "You gave the p from which on a member is wrong. The α that leads to it was asked for.": {
        "limit": lambda K, L: K / (K + L - 1)
    },
    "In α = K/(p m) you left out p.": {"limit": lambda K, L: K / math.log(K)},
    "In α = K/(p m) you left out K.": {"limit": lambda K, L: (K + L - 1) / (K * math.log(K))},
    "You gave 1/p at the limit. Divide by m = log K, and multiply by K.": {
        "limit": lambda K, L: (K + L - 1) / K
    },
}

_alone = {sentence: partial(_sure, **slip) for sentence, slip in (_SLIPS | _LIMITS).items()}
_both = {
    f"{one} {two}": partial(_sure, **slip, **limit)
    for one, slip in _SLIPS.items()
    for two, limit in _LIMITS.items()
}

optimum = Code(
    reference=_optimum,
    cases=[(2.0, 3, 7), (1.0, 2, 5), (12.0, 4, 9)],
    mistakes={**_alone, **_both},
    praise="the loss asks for doubt, and with enough of it every member is wrong.",
)

# ---- a mean without underflow ----


def _log_p(z: Tensor) -> Tensor:
    return torch.log_softmax(z, 2)


def _as_written(z: Tensor) -> Tensor:
    """e^z over its sum, as the formula has it."""
    return z.exp() / z.exp().sum(2, keepdim=True)


stable_mean = Stable(
    reference=ensembles.log_mean,
    cases=[
        (torch.tensor([[[2.0, 0.0, -1.0], [0.0, 1.0, 1.0]]]),),
        (torch.tensor([[[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]], [[0.0, 0.0], [-1.0, 2.0], [4.0, 0.0]]]),),
        (torch.tensor([[[0.0, -1000.0, -3000.0], [500.0, 3000.0, 2000.0]]]),),
    ],
    mistakes={
        "In float32 a softmax is 0 where the logits differ by more than 104, and the log of 0 is −∞. "
        "Stay in logarithms: of each member, then of their sum.": lambda z: z.softmax(2).mean(1).log(),
        "e^1000 is ∞, also before you divide by the sum: `torch.log_softmax` takes the largest logit "
        "off first.": lambda z: _as_written(z).mean(1).log(),
        "That is the mean of the logits. The ensemble means probabilities.": lambda z: z.mean(1),
        "That is the softmax of the mean logits, another ensemble. This one means probabilities.": (
            lambda z: torch.log_softmax(z.mean(1), 1)
        ),
        "That is the mean of the logarithms. It lies below the logarithm of the mean, and its "
        "probabilities sum to less than 1.": lambda z: _log_p(z).mean(1),
        "That is the sum over the members. Their mean is log K less, so that the probabilities sum to "
        "1.": lambda z: _log_p(z).logsumexp(1),
        "The log-sum-exp of logits is no mean of probabilities: each member has to be normalised first, "
        "by its own log-softmax.": lambda z: z.logsumexp(1) - math.log(z.shape[1]),
        "You sum before you normalise, so that the member with the larger logits counts more. Each has "
        "its own softmax.": lambda z: torch.log_softmax(z.logsumexp(1), 1),
        "Your softmax goes over the members. It goes over the classes, dimension 2.": lambda z: (
            torch.log_softmax(z, 1).logsumexp(1) - math.log(z.shape[1])
        ),
        "You took off log L. It is a mean over K members.": lambda z: (
            _log_p(z).logsumexp(1) - math.log(z.shape[2])
        ),
        "You divided the logarithm by K. The K stands inside: take off log K.": lambda z: (
            _log_p(z).logsumexp(1) / z.shape[1]
        ),
        "You took off K. In the logarithm it is log K.": lambda z: _log_p(z).logsumexp(1) - z.shape[1],
        "That is p̄. The logarithm is missing.": lambda z: z.softmax(2).mean(1),
    },
    praise="no probability was computed, and so none became 0.",
    large="Right for small logits. For large ones a probability becomes 0, and a small number put below "
    "the logarithm is a floor. Take no probability at all.",
)

# ---- each looks robust ----

BALL = Ball(math.inf, 0.15, (0, 1))
SCALE = 100  # of the logits
ENOUGH = 25  # an attack is good if it leaves no more, in percent


@cache
def committee() -> Ensemble:
    """Three networks that are very sure, each of which sees another third of the pixels.

    After the training the last layers were multiplied by 100: all predict the same, with logits 100
    times as large.
    """
    digits, generator = data.load("digits"), torch.Generator().manual_seed(3)
    shape = digits.x_train.shape[1:]
    third = torch.randperm(shape.numel(), generator=generator) % 3
    seen = torch.stack([third == k for k in range(3)]).float()
    stack = Stack([models.mlp([shape.numel(), 60, 10], generator) for _ in range(3)])

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return training.clean(
            model, x * seen.view(3, *shape).repeat(len(x) // 3, *(1 for _ in shape)), y
        )

    run = training.fit(
        stack,
        (digits.x_train[:1000], digits.y_train[:1000]),
        inner,
        epochs=30,
        lr=3e-3,
        batch_size=50,
        optimiser=optimisers.Adam(),
        generator=generator,
    )
    for _ in run:
        pass
    members = stack.members()
    with torch.no_grad():
        for member, pixels in zip(members, seen, strict=True):
            member[1].weight *= pixels
            for grown in member[-1].parameters():
                grown *= SCALE
    return Ensemble(members).eval()


@cache
def _judged() -> tuple[Tensor, Tensor]:
    """A hundred test digits on which every member is right."""
    digits = data.load("digits")
    model = committee()
    with torch.no_grad():
        says = model.each(digits.x_test).argmax(2)
    chosen = (says == digits.y_test[:, None]).all(1).nonzero().flatten()[:100]
    return digits.x_test[chosen], digits.y_test[chosen]


def _left(loss: Callable) -> float:
    """The percentage right after ten steps of PGD on a loss of all members' logits."""
    model, (x, y) = committee(), _judged()
    attack = ensembles.climb(lambda z, y: loss(z.clone(), y.clone()), partial(attacks.pgd, steps=10))
    delta = attack(model, x, y, BALL)
    with torch.no_grad():
        return 100 * losses.correct(model(x + delta), y).double().mean().item()


class _Break(Exercise):
    praise = "nobody had to be asked about probabilities: all three have logits, and those have slopes."

    def examine(self, answer: Any) -> str | None:
        """PGD on the loss must leave few."""
        if not callable(answer):
            return f"expected a function my_loss(z, y), got {answer!r}."
        x, y = _judged()
        x = x.clone().requires_grad_()
        z = committee().each(x)
        value = answer(z.clone(), y.clone())
        wrong = no_loss(value, len(y), "z")
        if wrong is not None:
            each = isinstance(value, Tensor) and value.ndim == 2
            return f"{wrong} Mean over the members, too." if each else wrong
        (gradient,) = torch.autograd.grad(value.sum(), x)
        try:
            left = _left(answer) if finite(value) and finite(gradient) else math.nan
        except ValueError:  # PGD says so where it meets one later
            left = math.nan
        if math.isnan(left):
            return "your loss or its gradient is NaN or infinite: z is so large that e^z is 0 or ∞."
        if left <= ENOUGH:
            return None
        dead = 100 * (gradient.flatten(1) == 0).all(1).double().mean().item()
        return f"PGD on your loss leaves {left:.0f} % right. {_why(answer, z.detach(), y, dead)}"


def _slope(loss: Callable, z: Tensor, y: Tensor) -> Tensor:
    """The gradient of a loss in all logits, of length 1 for each sample."""
    z = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(z, y).sum(), z)
    return slope / torch.linalg.vector_norm(slope, dim=(1, 2), keepdim=True).clamp(min=1e-30)


def _why(answer: Callable, z: Tensor, y: Tensor, dead: float) -> str:
    """What makes a loss a bad one to climb, seen where nothing saturates: at z scaled down.

    dead: for how many images its gradient is 0, in percent.
    """
    mild = 5 * z / z.abs().max()
    slope = _slope(answer, mild, y)
    zero = f"For {dead:.0f} % of the images its gradient is exactly 0"
    index = y[:, None, None].expand(-1, z.shape[1], 1)
    own = slope.gather(2, index).squeeze(2)
    asked = slope.abs().sum(2) > 0
    alone = asked.sum(1) == 1
    if own.sum(1).median() > 0:
        return "Your loss rises with z_y, and PGD climbs: it helps the ensemble. Turn the sign around."
    if not asked.any():
        return f"{zero}: as long as a digit is right your loss is flat, so nothing starts."
    if close(slope, _slope(ensembles.mean_probability, mild, y)):
        if dead > 50:
            return f"{zero}: p̄_y is 1 in float32, and so is all that you compute from it."
        return (
            "Your loss sees p̄ only. It turns the least sure member around. Then p̄_y is 2/3, the other "
            "two are sure, and the gradient is gone."
        )
    if dead > 50:
        return (
            f"{zero}: the softmax in your loss is 0 or 1 in float32. "
            "Margins and log-odds of logits do not saturate."
        )
    if alone.all() and asked.any(0).sum() == 1:
        return "You attack one member only. The two others see other pixels, and outvote it."
    if alone.all():
        margins = torch.stack([losses.margin_loss(mild[:, k], y) for k in range(mild.shape[1])], 1)
        if (asked.int().argmax(1) == margins.argmax(1)).double().mean() > 0.9:
            return (
                "You follow the member that is nearest to its mistake, or beyond. Once it is wrong you "
                "only make it more so, and the two others outvote it."
            )
        return (
            "In each step you attack one member only, the one that holds out best, and ten steps are "
            "few for three. All see other pixels: attack all at once."
        )
    return "Your gradient is alive. Does it drive every member to its own nearest mistake?"


each_robust = _Break()

# ---- diverse, and no more robust ----

POINTS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)  # all of class 0
LEAST, SLACK = 0.9, 1.05  # of ED; of the radius of the better member


def _radii(W: Tensor, b: Tensor) -> Tensor:
    """How far each point is from each member's nearest mistake, in ℓ2: exactly, (points, K)."""
    away = W[:, :1] - W[:, 1:]
    lead = torch.einsum("kjd,nd->nkj", away, POINTS) + (b[:, :1] - b[:, 1:])
    return (lead / torch.linalg.vector_norm(away, dim=2)).amin(2)


def _broken(W: Tensor, b: Tensor, radii: Tensor) -> Tensor:
    """Whether some δ of a length up to a radius breaks the ensemble at each point; tries a fine grid."""
    turn = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)[:-1]
    far = torch.linspace(0, 1, 211, dtype=torch.float64)[1:]
    unit = (far[:, None, None] * torch.stack([turn.cos(), turn.sin()], 1)).flatten(0, 1)
    out = []
    for point, radius in zip(POINTS, radii, strict=True):
        z = torch.einsum("kjd,nd->nkj", W, point + radius * unit) + b
        p = ensembles.log_mean(z)
        out.append((p[:, 1:].amax(1) > p[:, 0]).any())
    return torch.stack(out)


class _Diverse(Exercise):
    praise = "ED speaks of the doubts at x, and not a word of where the members go wrong from there."

    def examine(self, answer: Any) -> str | None:
        if not callable(answer):
            return f"expected a function my_members(), got {answer!r}."
        returned = answer()
        if returned is None:
            return "your function returns None: the last line needs a return."
        pair = list(returned) if isinstance(returned, list | tuple) else []
        W, b = map(as_tensor, pair) if len(pair) == 2 else (None, None)
        if W is None or b is None or W.shape != (2, 3, 2) or b.shape != (2, 3):
            given = f"({', '.join(map(shape_or_value, pair))})" if pair else shape_or_value(returned)
            return f"expected W (2, 3, 2) and b (2, 3), in this order, got {given}."
        if not finite(W) or not finite(b):
            return "all entries must be finite."
        z = torch.einsum("kjd,nd->nkj", W, POINTS) + b
        y = torch.zeros(len(POINTS), dtype=torch.long)
        return _wrong_at(z) or _alike(z, y) or _outlives(W, b)


def _wrong_at(z: Tensor) -> str | None:
    """Which member is not right, and where."""
    lead = z[..., 0] - z[..., 1:].amax(2)
    for n, k in (lead <= 0).nonzero().tolist():
        return (
            f"at x = {show(POINTS[n])} member {k} has the logits {show(z[n, k])}: class 0 has to lead."
        )
    return None


def _alike(z: Tensor, y: Tensor) -> str | None:
    """Where the members are not diverse."""
    ed = ensembles.diversity(z, y)
    n = int(ed.argmin())
    if ed[n] > LEAST:
        return None
    said = f"at x = {show(POINTS[n])} ED is {show(ed[n])}, and should be above {LEAST:g}."
    first, second = z[n, :, 1:]
    if (first[0] - first[1]) * (second[0] - second[1]) > 0:
        return f"{said} Both members think of the same wrong class first. Let each doubt another."
    return (
        f"{said} Only the wrong classes count, each member's scaled to length 1: each member has to "
        "give one of them far less than the other."
    )


def _outlives(W: Tensor, b: Tensor) -> str | None:
    """Where the ensemble is more robust than its members, and why."""
    radii = _radii(W, b)
    still = (~radii.isfinite()).nonzero().tolist()
    if still:
        return f"member {still[0][1]} says the same everywhere: no δ breaks it. Let x move it."
    best = radii.amax(1)
    holds = ~_broken(W, b, SLACK * best)
    if not holds.any():
        return None
    n = int(holds.int().argmax())
    said = (
        f"ED is high, but at x = {show(POINTS[n])} the members break at the radii {show(radii[n])}, "
        f"and the ensemble is still right at {SLACK:g} times the larger."
    )
    first, second = _way(W[0], b[0], n), _way(W[1], b[1], n)
    if first @ second < 0.9:
        return (
            f"{said} They break in different directions, {show(first)} and {show(second)}, which "
            "protects it. ED does not ask for that: let both break in the same."
        )
    return (
        f"{said} Where both go wrong, each to another class, p̄_y is 1/2 and the others have less. The "
        "ensemble breaks once both give class 0 less than 1/3. How much longer that takes depends on "
        "how sure they are: multiply W and b."
    )


def _way(W: Tensor, b: Tensor, n: int) -> Tensor:
    """The unit vector along which a member breaks first."""
    away = W[1:] - W[:1]
    size = torch.linalg.vector_norm(away, dim=1)
    nearest = ((-(away @ POINTS[n]) - (b[1:] - b[0])) / size).argmin()
    return away[nearest] / size[nearest]


diverse = _Diverse()

# ---- a proof for the whole ----


def _bound(m: Tensor) -> Tensor:
    """`ensembles.mean_margins` of one sample, whose true class is not among the L − 1."""
    K = len(m)
    return ensembles.mean_margins(torch.cat([torch.full((K, 1, 1), math.inf), m[:, None]], 2))[0, 1:]


def _of(m, *, sign=1, one=1.0, low=None, others=False, mean=True) -> Tensor:
    """The bound as its formula has it; each option is a mistake."""
    r = torch.exp(-sign * m)
    rest = r.sum(1, keepdim=True) - (r if others else 0)
    high = (1 - r) / (one + rest)
    q = torch.where(m >= 0, high, (1 - r) / (1 + r) if low is None else low(m, high))
    return q.mean(0) if mean else q.sum(0)


def _worst(m: Tensor) -> Tensor:
    """The bound of the ensemble as the smallest of the members'."""
    return torch.stack([_of(row[None]) for row in m]).amin(0)


def _by_member(m: Tensor) -> Tensor:
    """With the case decided for a member as a whole."""
    r = torch.exp(-m)
    q = torch.where(
        (m >= 0).all(1, keepdim=True), (1 - r) / (1 + r.sum(1, keepdim=True)), (1 - r) / (1 + r)
    )
    return q.mean(0)


certificate = Stable(
    reference=_bound,
    cases=[
        (torch.tensor([[1.0, 2.0], [3.0, 1.0]]),),
        (torch.tensor([[4.0, 3.0], [-0.5, 1.0]]),),
        (torch.tensor([[2.0, 5.0, 4.0], [-2.0, -1.0, 1.0], [0.0, 3.0, 2.0]]),),
        (torch.tensor([[6.0, 5.0], [-1000.0, 1.0]]),),
    ],
    mistakes={
        "Where m < 0 the numerator is negative, and then the smallest fraction has the smallest "
        "denominator: 1 + r_j, with all other classes at 0.": partial(_of, low=lambda m, high: high),
        "Where m ≥ 0 the other classes take their share, too: the denominator is 1 + Σ r_i. Yours is "
        "too good to be true.": lambda m: torch.tanh(m / 2).mean(0),
        "Where m < 0 you count 0. A member that may be wrong may count against class y.": partial(
            _of, low=lambda m, high: torch.zeros_like(m)
        ),
        "Where m < 0 you count −1, which is true, and loose. A member that is nearly right takes away "
        "less: (1 − r)/(1 + r).": partial(_of, low=lambda m, high: -torch.ones_like(m)),
        "Where m < 0 you take m itself. It speaks of logits; the mean is over probabilities.": partial(
            _of, low=lambda m, high: m
        ),
        "That is the mean of the margins. It speaks of the mean of the logits, not of p̄.": lambda m: (
            m.mean(0)
        ),
        "You took the mean of the margins first. That proves the softmax of the mean logits, another "
        "ensemble.": lambda m: _of(m.mean(0, keepdim=True)),
        "That is the sum over the members. p̄ is their mean.": partial(_of, mean=False),
        "You took the worst member. The others make up for it: p̄ is a mean.": _worst,
        "The sign: r is e^{−m}, small where the margin is large.": partial(_of, sign=-1),
        "The 1 in the denominator is missing: it is the share of class y.": partial(_of, one=0.0),
        "The sum in the denominator has class j, too.": partial(_of, others=True),
        "You chose the case for a member as a whole. It is another one for each class.": _by_member,
        "e^1000 is ∞, and (1 − ∞)/(1 + ∞) is NaN. That fraction is tanh(m/2), which is −1 there.": _of,
    },
    praise="also where one member is not proved, the mean can be.",
    large="Right for small margins. For m = −1000 keep e^1000 out: (1 − r)/(1 + r) is tanh(m/2).",
)

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "A stable mean": stable_mean,
    "The determinant by hand": determinant,
    "How sure?": optimum,
    "Each looks robust": each_robust,
    "Diverse, and no more robust": diverse,
    "A proof for the whole": certificate,
}
