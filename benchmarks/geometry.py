"""MNIST, small networks: features around fixed centres, by the published attacks and by others.

Source: Pang et al. 2018 and 2020, there on CIFAR-10 with a ResNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from adv_lib import attacks, comparison, data, losses, mahalanobis, models, schedules, suite, training
from adv_lib.comparison import Paired
from adv_lib.mahalanobis import NearestCentre
from adv_lib.optimisers import SGD
from adv_lib.stack import Stack
from adv_lib.threat import Ball

from . import networks, tables
from .recipe import SAME, Task, same, shown, task
from .results import FAILED, SMALLER, Figure
from .timing import Timer

SEEDS = 3
RADII = (0.1, 0.2)
CLASSES, BODY = 10, (200, 64)
BROKEN = 5.0  # percent: who has no more than that right under some attack is broken

Found = dict[str, dict[str, list[float]]]  # a setting → a column → percent, of every seed


def cube(eps: float) -> Ball:
    """All images within ε of this one in every pixel."""
    return Ball(math.inf, eps, (0, 1))


def seeded(number: int, first: int = 0) -> torch.Generator:
    """The generator of this seed."""
    return torch.Generator().manual_seed(first + number)


# ---- the networks ----


def linear(seed: int) -> nn.Module:
    """Wz + b, drawn."""
    return models.linear(BODY[-1], CLASSES, seeded(seed, 100))[-1]


def best(norm: float) -> Callable[[int], nn.Module]:
    """Centres of this length, as far apart as they can be: the same for every seed."""
    return lambda _: NearestCentre(mahalanobis.centres(CLASSES, BODY[-1], norm))


def drawn(norm: float, learned: bool = False) -> Callable[[int], nn.Module]:
    """Centres of this length in random directions, from which training may move them."""

    def layer(seed: int) -> nn.Module:
        mu = mahalanobis.random_centres(CLASSES, BODY[-1], norm, seeded(seed, 200))
        return NearestCentre(mu, learned=learned)

    return layer


def attacked(loss: training.Loss) -> training.Inner:
    """Training against PGD-10 on the loss that is trained."""
    pgd = partial(attacks.pgd, steps=10, loss=loss, keep="last")
    return training.adversarial(pgd, cube(RADII[0]), loss=loss)


@dataclass(frozen=True)
class Setting:
    """A last layer by its seed, what is minimised, and at what rate.

    Of the rates that were tried this one had the most of 4,000 other training images right.
    """

    last: Callable[[int], nn.Module]
    inner: training.Inner
    rate: float


CLEAN, MMC = training.clean, partial(training.clean, loss=mahalanobis.mmc)
LGM = partial(training.clean, loss=partial(mahalanobis.large_margin, alpha=0.3, weight=0.1))
SETTINGS = {
    "SCE": Setting(linear, CLEAN, 0.2),
    "centre loss": Setting(linear, mahalanobis.centre_loss(0.1), 0.1),
    "MMLDA-10": Setting(best(10.0), CLEAN, 0.03),
    "L-GM": Setting(drawn(1.0, learned=True), LGM, 0.1),
    "MMC-10, random centres": Setting(drawn(10.0), MMC, 0.02),
    "MMC-10": Setting(best(10.0), MMC, 0.03),
    "MMC-1": Setting(best(1.0), MMC, 0.1),
    "MMC-100": Setting(best(100.0), MMC, 0.001),
    "SCE, PGD training": Setting(linear, attacked(losses.cross_entropy), 0.2),
    "MMC-10, PGD training": Setting(best(10.0), attacked(mahalanobis.mmc), 0.03),
    "SCE, rate 0.05": Setting(linear, CLEAN, 0.05),  # not the best one: what the rate alone does
}


def trained(setting: Setting, on: Task) -> Stack:
    """The setting from every seed, which decides weights, centres and batches, as one stack."""
    bodies = [models.mlp([on.x[0].numel(), *BODY], seeded(seed)) for seed in range(SEEDS)]
    stack = Stack([nn.Sequential(*body, setting.last(seed)) for seed, body in enumerate(bodies)])
    run = training.fit(
        stack,
        (on.x, on.y),
        setting.inner,
        epochs=on.epochs,
        lr=schedules.warm_up(schedules.step(setting.rate), 0.1),
        optimiser=SGD(momentum=0.9),
        generator=[seeded(seed, 300) for seed in range(SEEDS)],
    )
    for _ in run:
        pass
    return stack.eval()


# ---- who is right under which attack ----

PUBLISHED = {  # as published: from a random point in steps of ε/4, and where they end
    "targeted PGD-10": (10, True),
    "PGD-10": (10, False),
    "targeted PGD-50": (50, True),
    "PGD-50": (50, False),
}
STILL, LABEL = "from δ = 0", "label's logit"
OURS = {  # from δ = 0, and every point counts
    STILL: losses.cross_entropy,
    LABEL: mahalanobis.mmc,
    "margin": losses.margin_loss,
}
AUTO = {"steps": 25, "queries": 500}
ALL = (*PUBLISHED, *OURS, "features", "AutoAttack", "worst case")


def right(stack: Stack, on: Task, eps: float) -> dict[str, Tensor]:
    """Which images each network has right under which attack: attack → (n, SEEDS) bool."""
    ball, x, y = cube(eps), stack.rows(on.x_test), stack.rows(on.y_test)
    start = stack.rows(ball.sample(on.x_test, seeded(0, 400)))
    other = torch.randint(1, CLASSES, on.y_test.shape, generator=seeded(0, 500))
    goals = stack.rows((on.y_test + other) % CLASSES)

    def under(attack: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad():
            return losses.correct(stack(x + attack(stack, x, y, ball)), y).view(-1, len(stack))

    published = partial(attacks.pgd, start=start, step_size=eps / 4, keep="last")
    climb = {
        True: partial(published, loss=towards, targets=goals),
        False: partial(published, loss=losses.cross_entropy),
    }
    found = {name: under(partial(climb[to], steps=steps)) for name, (steps, to) in PUBLISHED.items()}
    found |= {name: under(partial(attacks.pgd, steps=50, loss=loss)) for name, loss in OURS.items()}
    alone = [_alone(member, on, ball) for member in stack.members()]
    found["features"], found["AutoAttack"] = (torch.stack(rows, 1) for rows in zip(*alone, strict=True))
    return found | {"worst case": torch.stack(list(found.values())).all(0)}


def towards(z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """The targeted cross-entropy, log softmax(z)_t."""
    return -losses.cross_entropy(z, targets)


def _alone(network: nn.Sequential, on: Task, ball: Ball) -> tuple[Tensor, Tensor]:
    """What one network has right under the two attacks that do not take a stack."""
    feature = suite.every_target(mahalanobis.towards_centre(middles(network, on)))
    delta = feature(network, on.x_test, on.y_test, ball)
    outcome = suite.autoattack(network, on.x_test, on.y_test, ball, **AUTO)
    with torch.no_grad():
        return losses.correct(network(on.x_test + delta), on.y_test), outcome.survivors


def middles(network: nn.Sequential, on: Task) -> Tensor:
    """Where the features of each class are: its centre, or their mean over what was trained on."""
    if isinstance(network[-1], NearestCentre):
        return network[-1].centres.detach()
    with torch.no_grad():
        return mahalanobis.means(network[:-1](on.x), on.y, CLASSES)


def silent(stack: Stack, x: Tensor, y: Tensor) -> Tensor:
    """At which images the gradient of the cross-entropy is exactly 0, (n, SEEDS) bool."""
    x, y = stack.rows(x).requires_grad_(), stack.rows(y)
    (gradient,) = torch.autograd.grad(losses.cross_entropy(stack(x), y).sum(), x)
    return (gradient.flatten(1) == 0).all(1).view(-1, len(stack))


def judged(stack: Stack, on: Task) -> dict[str, list[float]]:
    """Percent of the images, one number a network: silent, clean, and right under every attack."""
    with torch.no_grad():
        clean = losses.correct(stack(stack.rows(on.x_test)), stack.rows(on.y_test))
    found = {"silent": silent(stack, on.x_test, on.y_test), "clean": clean.view(-1, len(stack))}
    for eps in RADII:
        found |= {at(name, eps): rows for name, rows in right(stack, on, eps).items()}
    return {name: (100 * rows.double().mean(0)).tolist() for name, rows in found.items()}


def at(name: str, eps: float = RADII[0]) -> str:
    """The column of an attack at this radius."""
    return f"{name}, {eps:g}"


def measured(settings: dict[str, Setting], on: Task, name: str) -> tuple[Found, float]:
    """What every setting reaches, and the CPU seconds that this took; each one's is kept in .bench."""

    def find(key: str) -> dict:
        timer = Timer()
        found = judged(trained(settings[key], on), on)
        print(f"  {key}: {timer.cpu():.0f} CPU seconds", flush=True)
        return {"seconds": timer.cpu(), "found": found}

    kept = {key: networks.once(f"{name}_{key}", partial(find, key)) for key in settings}
    return {key: part["found"] for key, part in kept.items()}, sum(p["seconds"] for p in kept.values())


# ---- what the publications claim ----

SEEN = ("PGD-10", "PGD-50")
PLAIN, FIXED = "SCE, PGD training", "MMC-10, PGD training"
FEW = "three seeds do not tell it from 0"


def claims(found: Found) -> list[Figure]:
    """Every claim next to ours.

    An effect is shown where its interval lies on the published side of 0, for every attack named; no
    effect, where the interval is as narrow as that of a recipe has to be.
    """

    def percent(name: str, column: str) -> str:
        return f"{mean(found[name][column]):.1f}%"

    def against(first: str, second: str, column: str) -> str:
        return f"{percent(first, column)} against {percent(second, column)}"

    def apart(first: str, second: str, column: str) -> Paired:
        return comparison.paired(found[first][column], found[second][column])

    def ahead(first: str, second: str, eps: float) -> tuple[str, bool]:
        """Ours in words, and whether the first has more right than the second under all of SEEN."""
        columns = [at(name, eps) for name in SEEN]
        differences = [apart(first, second, column) for column in columns]
        words = (
            f"{against(first, second, column)}, {shown(difference)} points"
            for column, difference in zip(columns, differences, strict=True)
        )
        return "; ".join(words), min(difference.low for difference in differences) > 0

    near, far = RADII
    still, auto = at(STILL), at("AutoAttack")
    lost = comparison.paired(found[FIXED][at("PGD-50")], found[FIXED][auto])
    lead = apart(FIXED, PLAIN, auto)
    hidden = comparison.paired(found["MMC-100"][still], found["MMC-100"][at(LABEL)])
    rows = [
        (
            "pang2020rethinking",
            "MMC-10 is ahead of SCE: PGD-10, PGD-50",
            "36.0% against 3.7%; 24.8% against 3.6%",
            *ahead("MMC-10", "SCE", near),
            "the attack starts at a random point, where few gradients are 0. From δ = 0, where that of "
            f"MMC-10 is on {percent('MMC-10', 'silent')} of the images, it leaves "
            f"{against('MMC-10', 'SCE', still)}. Adapted to the label's logit it leaves "
            f"{percent('MMC-10', at(LABEL))} of MMC-10, and to the margin "
            f"{percent('MMC-10', at('margin'))}",
        ),
        (
            "pang2018max",
            "MMLDA-10 is ahead of SCE: PGD-10, PGD-50",
            "16.5% against 3.7%; 9.7% against 3.6%",
            *ahead("MMLDA-10", "SCE", near),
            "it hangs on the rate of SCE: trained at 0.05 instead of 0.2, SCE has "
            f"{percent('SCE, rate 0.05', at('PGD-50'))} under PGD-50. Nothing is hidden: AutoAttack "
            f"leaves {against('MMLDA-10', 'SCE', auto)}",
        ),
        (
            "pang2020rethinking",
            "MMC-10 is ahead of MMLDA-10: PGD-10, PGD-50",
            "36.0% against 16.5%; 24.8% against 9.7%",
            *ahead("MMC-10", "MMLDA-10", near),
            "from a random point it is behind. PGD-50 from δ = 0 leaves "
            f"{against('MMC-10', 'MMLDA-10', still)}, AutoAttack {against('MMC-10', 'MMLDA-10', auto)}",
        ),
        (
            "pang2020rethinking",
            "the best centres are ahead of random ones: PGD-10, PGD-50",
            "36.0% against 29.2%; 24.8% against 18.4%",
            *ahead("MMC-10", "MMC-10, random centres", near),
            "only where the gradient is lost, which is exactly 0 on "
            f"{against('MMC-10', 'MMC-10, random centres', 'silent')} of the images: PGD-50 from δ = 0 "
            f"leaves {against('MMC-10', 'MMC-10, random centres', still)}, AutoAttack "
            f"{against('MMC-10', 'MMC-10, random centres', auto)}",
        ),
        (
            "pang2020rethinking",
            "after PGD training MMC-10 is ahead of SCE: PGD-10, PGD-50",
            "56.3% against 55.4%; 55.0% against 53.9%",
            *ahead(FIXED, PLAIN, near),
            f"{FEW}: a lead of one point, as published, would be too small for them",
        ),
        (
            "pang2020rethinking",
            "the same at twice the radius of training: PGD-10, PGD-50",
            "37.4% against 34.1%; 27.7% against 21.5%",
            *ahead(FIXED, PLAIN, far),
            FEW,
        ),
        (
            "pang2020rethinking",
            "PGD on the cross-entropy, then on the label's logit",
            "93.24% → 45.71%, by a user of the published code",
            f"centres of length 100, PGD-50 from δ = 0: {percent('MMC-100', still)} → "
            f"{percent('MMC-100', at(LABEL))}, {shown(hidden)} points",
            hidden.low > 0,
            "the label's logit finds no more than the cross-entropy",
        ),
        (
            "tramer2020adaptive",
            f"an adapted attack breaks MMC-10: at most {BROKEN:g} % are left",
            "about 0.5 %",
            f"worst case {percent('MMC-10', at('worst case'))}; centres of length 100: "
            f"{percent('MMC-100', at('worst case'))}; SCE: {percent('SCE', at('worst case'))}",
            max(found["MMC-10"][at("worst case")]) <= BROKEN,
            "more is left by all our attacks together",
        ),
        (
            "croce2020reliable",
            "MMC-10 after PGD training: PGD-50, then AutoAttack",
            "55.0% → 43.48%",
            f"{percent(FIXED, at('PGD-50'))} → {percent(FIXED, auto)}, {shown(lost)} points lost",
            lost.low > 0,
            "at the radius of training PGD-50 misses next to nothing. At twice the radius: "
            f"{percent(FIXED, at('PGD-50', far))} → {percent(FIXED, at('AutoAttack', far))}, and SCE "
            f"{percent(PLAIN, at('PGD-50', far))} → {percent(PLAIN, at('AutoAttack', far))}",
        ),
        (
            "croce2020reliable",
            "after PGD training MMC-10 is not ahead of SCE: AutoAttack",
            "43.48% against 44.04%",
            f"{against(FIXED, PLAIN, auto)}, {shown(lead)} points",
            lead.high < 0 or same(lead),
            "three seeds leave it open, or it is ahead",
        ),
    ]
    return [judge(*row) for row in rows]


def judge(source: str, what: str, published: str, ours: str, holds: bool, why: str) -> Figure:
    """A claim that is shown, or one that is not and says why."""
    verdict = (SMALLER, "") if holds else (FAILED, why)
    return Figure(source, what, f"CIFAR-10: {published}", ours, *verdict)


TEXT = """## Centres as far apart as they can be, on MNIST

Published by [Pang et al. 2018](references.md#cite-pang2018max) (MMLDA) and
[2020](references.md#cite-pang2020rethinking) (MMC); SCE is the usual softmax cross-entropy. The same
here: centres of length 10 (MMC-1 and MMC-100: of length 1 and 100), SGD with momentum 0.9, PGD training
with ten steps. Different: the first {on.y.shape[0]:,} images of MNIST instead of CIFAR-10, 784-200-64
and a last layer instead of a ResNet with 256 features, ε = {near:g} and {far:g} instead of 8/255 and
16/255, {on.epochs} epochs in batches of 100, and a rate for each setting: of those tried the one with
most of 4,000 other training images right, without an attack. The centre loss has λ = 0.1, L-GM α = 0.3
and λ = 0.1. PGD training, at ε = {near:g}, climbs the loss that it minimises.

Accuracy on the first {on.y_test.shape[0]} test images in percent, mean over {seeds} seeds, which decide
first weights, batches and random centres. First the cross-entropy, by PGD as in the published code: from
a random point, in steps of ε/4 (there 2/255 at both radii), and only the last point counts.

{published}

Then others, at ε = {near:g} but for the last column. *Gradient 0*: on how many images the gradient of
the cross-entropy is exactly 0 in float32. *From δ = 0*: PGD-50 on the cross-entropy that starts at the
image and counts every point; so do the next two, on the label's logit by itself (`mahalanobis.mmc`) and
on the margin. *Features*: towards each other centre (`mahalanobis.towards_centre`). AutoAttack has
{auto[steps]} steps and {auto[queries]} queries. *Worst case*: by any attack of both tables.

{others}

At its centre of length C the label leads by C² · 10/9. From a lead of 104 on the other classes have the
probability 0 in float32, and an attack from δ = 0 stays there, at any ε. For C = 10 a random start is
enough to get away, for C = 100 it is not. An attack on the label's logit moves, but away from the own
centre need not be towards another. The published code leaves out the ½ of −½‖z − μ‖²: leads are twice
as large there.

Both sides: the authors say that an attack has to be adapted, for example to the label's logit
([issue 1 of their code](https://github.com/P2333/Max-Mahalanobis-Training/issues/1), where a user
measured what the last table quotes). [Tramèr et al. 2020](references.md#cite-tramer2020adaptive) report
that theirs breaks MMC; it is not in their repository, where readers say that they
[did not get as far](https://github.com/wielandbrendel/adaptive_attacks_paper/issues/4). After PGD
training, at twice its radius, AutoAttack leaves more of MMC-10 than of SCE, too: {lead}.

*Reproduced at smaller scale*: where an effect is claimed, our interval (95 %, paired by seed, each by
itself) lies on that side of 0; where none is, within {same:g} points of 0. *Did not reproduce* means
that this data and these networks do not show it, not that it is wrong where it was made.

{claims}

All networks took {seconds:.0f} CPU seconds in one thread.
"""


def section(pair: data.Data) -> tuple[str, list[Figure]]:
    """Every setting by every attack, and every claim."""
    on = task(pair, 2000, 200, 50)
    found, seconds = measured(SETTINGS, on, "geometry")
    near, far = RADII
    published = [at(name, eps) for eps in RADII for name in PUBLISHED]
    others = [at(name) for name in (*OURS, "features", "AutoAttack", "worst case")]
    lead = comparison.paired(*(found[name][at("AutoAttack", far)] for name in (FIXED, PLAIN)))
    figures = claims(found)
    text = TEXT.format(
        on=on,
        near=near,
        far=far,
        seeds=SEEDS,
        same=SAME,
        auto=AUTO,
        published=accuracies(found, {"clean": "clean", **{name: name for name in published}}),
        others=accuracies(
            found,
            {"silent": "gradient 0"}
            | {name: name.removesuffix(f", {near:g}") for name in others}
            | {at("worst case", far): at("worst case", far)},
        ),
        lead=f"{shown(lead)} points",
        claims=tables.table(
            ("claim", "published", "ours", "status"),
            ((f.what, f.published, f.ours, f.status) for f in figures),
        ),
        seconds=seconds,
    )
    return text, figures


def accuracies(found: Found, heads: dict[str, str]) -> str:
    """The table of these columns, by the heads that they are given: means over the seeds."""
    rows = [(name, *(f"{mean(columns[key]):.1f}" for key in heads)) for name, columns in found.items()]
    return tables.table(("", *heads.values()), rows, range(1, len(heads) + 1))
