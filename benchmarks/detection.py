"""MNIST, small networks: reverse cross-entropy, its detectors, and attacks that know them.

Source: Pang et al. 2018 (Towards Robust Detection of Adversarial Examples), there with a ResNet-32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import attacks, comparison, data, detection, losses, models, schedules, training
from adv_lib.comparison import Paired
from adv_lib.detection import KernelDensity, LocalDimension, Rejecting, Score
from adv_lib.optimisers import SGD
from adv_lib.stack import Stack
from adv_lib.threat import Ball

from . import networks, tables
from .recipe import Task, shown, task
from .results import FAILED, SMALLER, Figure
from .timing import Timer

SOURCE = "pang2018detection"
SEEDS = 3
BOX = (0, 1)
RADII = (0.1, 0.2)
CLASSES, BODY = 10, (200, 64)
RATES = {"CE": 0.05, "RCE": 1.0}
WIDTHS = {"CE": 1 / 0.26, "RCE": 0.1 / 0.26}  # σ², as in the published code
LOSSES = {"CE": losses.cross_entropy, "RCE": detection.reverse_cross_entropy}
ALARMS = 0.05
SURE = 0.99  # which part of the clean images C&W-hc is to be surer than
NEAR, HIGH = 5.0, 90.0  # AUC × 100: what counts as near 0, and as above .9

Found = dict[str, dict[str, list[float]]]  # CE or RCE → a column → a number of every seed


class Scale(NamedTuple):
    """How many images for what, and how many steps."""

    many: int = 1000  # test images for FGSM, BIM and ILCM
    few: int = 150  # for C&W, and for the attacks that know the detector
    fewest: int = 30  # for JSMA
    other: int = 1000  # the last test images, for thresholds and for κ
    kept: int = 1000  # training images a class, for the density
    batch: int = 100  # training images for LID, and which of them are near
    neighbours: int = 20
    steps: int = 40  # of PGD
    cw: int = 200  # steps of C&W, for each c
    targets: int = 3  # how many classes an attack that knows the detector aims at


FULL = Scale()


def seeded(number: int, first: int = 0) -> torch.Generator:
    """The generator of this seed."""
    return torch.Generator().manual_seed(first + number)


def trained(loss: str, on: Task) -> list[nn.Sequential]:
    """One network for each seed, which decides weights and batches; by RCE with its logits reversed."""
    widths = [on.x[0].numel(), *BODY, CLASSES]
    stack = Stack([models.mlp(widths, seeded(seed)) for seed in range(SEEDS)])
    run = training.fit(
        stack,
        (on.x, on.y),
        partial(training.clean, loss=LOSSES[loss]),
        epochs=on.epochs,
        lr=schedules.step(RATES[loss]),
        optimiser=SGD(momentum=0.9),
        generator=[seeded(seed, 300) for seed in range(SEEDS)],
    )
    for _ in run:
        pass
    members = stack.eval().members()
    return [detection.reversed_logits(member) for member in members] if loss == "RCE" else members


# ---- the detectors ----


def detectors(network: nn.Sequential, loss: str, on: Task, scale: Scale) -> dict[str, Score]:
    """The scores of the publication, and LID, on features of training images."""
    with torch.no_grad():
        h = network[:-1](on.x)
        predicted = network[-1](h).argmax(1)
    own = [(predicted == c).nonzero()[: scale.kept, 0] for c in range(CLASSES)]
    kept, width = torch.cat(own), math.sqrt(WIDTHS[loss])
    return {
        "confidence": detection.confidence,
        "non-ME": detection.non_maximal_entropy,
        "K-density": KernelDensity(h[kept], predicted[kept], width),
        "LID": LocalDimension(h[: scale.batch], scale.neighbours),
    }


PUBLISHED_SCORES = ("confidence", "non-ME", "K-density")
SCORES = (*PUBLISHED_SCORES, "LID")

# ---- attacks that know nothing of a detector, and how well it tells them apart ----

PUBLISHED = {  # AUC × 100 of PUBLISHED_SCORES on MNIST
    "FGSM": {"CE": (79.7, 66.8, 98.8), "RCE": (98.8, 98.6, 99.4)},
    "BIM": {"CE": (88.9, 70.5, 90.0), "RCE": (91.7, 90.6, 91.8)},
    "ILCM": {"CE": (98.4, 50.4, 96.2), "RCE": (100.0, 97.0, 98.6)},
    "JSMA": {"CE": (98.6, 60.1, 97.7), "RCE": (100.0, 99.4, 99.0)},
    "C&W": {"CE": (98.6, 64.1, 99.4), "RCE": (100.0, 99.5, 99.8)},
    "C&W-hc": {"CE": (0.0, 40.0, 91.1), "RCE": (0.1, 93.4, 99.6)},
}
BALLS = ("FGSM", "BIM", "ILCM")  # attacks within a radius, which is not known
FOUND = "broken"  # the images that are right before and wrong after


def rows(attack: str) -> list[str]:
    """The names under which an attack is run: with each radius, if it has one."""
    return [f"{attack}, ε = {eps:g}" for eps in RADII] if attack in BALLS else [attack]


def at(name: str, score: str) -> str:
    """The column of a score under an attack."""
    return f"{name}: {score}"


def attacked(
    network: nn.Sequential, on: Task, scale: Scale
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Of every attack: its name, images, labels, and δ."""
    x, y = on.x_test[: scale.many], on.y_test[: scale.many]
    for eps in RADII:
        for name in BALLS:
            attack = getattr(attacks, name.lower())
            yield f"{name}, ε = {eps:g}", x, y, attack(network, x, y, Ball(math.inf, eps, BOX))

    x, y = x[: scale.few], y[: scale.few]
    goals = (y + torch.randint(1, CLASSES, y.shape, generator=seeded(0, 500))) % CLASSES
    cw = partial(attacks.cw, ball=Ball(2, math.inf, BOX), steps=scale.cw, targets=goals)
    with torch.no_grad():
        clean = detection.confidence(network(on.x_test[-scale.other :]))
    yield "C&W", x, y, cw(network, x, y)
    kappa = clean.quantile(SURE).item()
    yield "C&W-hc", x, y, cw(network, x, y, confidence=max(kappa, 0.0))

    x, y = x[: scale.fewest], y[: scale.fewest]
    with torch.no_grad():
        least = network(x).scatter(1, y[:, None], math.inf).argmin(1)
    yield "JSMA", x, y, attacks.jsma(network, x, y, Ball(math.inf, 1, BOX), targets=least)


def apart(network: nn.Sequential, scores: dict[str, Score], on: Task, scale: Scale) -> dict[str, float]:
    """AUC × 100 of every score under every attack, and of how many images: right before, wrong after."""
    found = {}
    for name, x, y, delta in attacked(network, on, scale):
        with torch.no_grad():
            clean, moved = (_parts(network, v) for v in (x, x + delta))
            fooled = losses.correct(clean[0], y) & ~losses.correct(moved[0], y)
            found[at(name, FOUND)] = 100 * fooled.double().mean().item()
            for key, score in scores.items():
                found[at(name, key)] = 100 * detection.auc(score(*clean)[fooled], score(*moved)[fooled])
    return found


def _parts(network: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features."""
    h = network[:-1](x)
    return network[-1](h), h


# ---- attacks that know it ----

NOTHING = "no detector"
UNAWARE, AWARE, ALARMED = "PGD", "knows it", "false alarms"


def knowing(model: Rejecting, on: Task, scale: Scale) -> list[Callable]:
    """The three attacks that know the detector, with PGD inside."""
    pgd = partial(attacks.pgd, steps=scale.steps)
    some, labels = on.x[: scale.kept], on.y[: scale.kept]
    good = model.judged(some, labels)[0] & model.accepts(some)
    return [
        detection.climb(detection.constrained, pgd),
        detection.targeted(pgd, scale.targets),
        detection.matching(some[good], labels[good], pgd, scale.targets),
    ]


def evaded(network: nn.Sequential, scores: dict[str, Score], on: Task, scale: Scale) -> dict[str, float]:
    """Percent wrong and accepted at 5 % false alarms, of all images, under PGD and under the union.

    Without a detector: wrong, under the same attacks, whatever detector they were after.
    """
    x, y, ball = on.x_test[: scale.few], on.y_test[: scale.few], Ball(math.inf, RADII[0], BOX)
    pgd = partial(attacks.pgd, steps=scale.steps)
    found, wrong = {}, torch.zeros(len(x), dtype=torch.bool)
    for key in PUBLISHED_SCORES:
        calm = Rejecting(network, scores[key]).judged(
            on.x_test[-scale.other :], on.y_test[-scale.other :]
        )
        limit = detection.threshold(calm[1], ALARMS).value
        model = Rejecting(network, scores[key], limit)
        unaware = detection.highest(model, x, y, ball, [pgd])
        aware = detection.highest(model, x, y, ball, knowing(model, on, scale)).maximum(unaware)
        wrong |= aware > -math.inf
        clean = model.accepts(on.x_test[: scale.many])
        shares = {UNAWARE: unaware >= limit, AWARE: aware >= limit, ALARMED: ~clean}
        found |= {at(name, key): 100 * hits.double().mean().item() for name, hits in shares.items()}
        found[at(UNAWARE, NOTHING)] = 100 * (unaware > -math.inf).double().mean().item()
    return found | {at(AWARE, NOTHING): 100 * wrong.double().mean().item(), at(ALARMED, NOTHING): 0.0}


def judged(network: nn.Sequential, loss: str, on: Task, scale: Scale) -> dict[str, float]:
    """Every number of one network."""
    with torch.no_grad():
        right = losses.correct(network(on.x_test), on.y_test)
    scores = detectors(network, loss, on, scale)
    found = {"right": 100 * right.double().mean().item()}
    return found | apart(network, scores, on, scale) | evaded(network, scores, on, scale)


def measured(on: Task, scale: Scale, name: str) -> tuple[Found, float]:
    """What both losses reach, and the CPU seconds that this took; each one's is kept in .bench."""

    def find(loss: str) -> dict:
        timer = Timer()
        each = []
        for network in trained(loss, on):
            each.append(judged(network, loss, on, scale))
            print(f"  {loss}: {timer.cpu():.0f} CPU seconds", flush=True)
        found = {column: [numbers[column] for numbers in each] for column in each[0]}
        return {"seconds": timer.cpu(), "found": found}

    kept = {loss: networks.once(f"{name}_{loss}", partial(find, loss)) for loss in LOSSES}
    return {loss: part["found"] for loss, part in kept.items()}, sum(p["seconds"] for p in kept.values())


# ---- what the publication claims ----

FEW = "three seeds do not tell it from 0 at every radius"


def published(attack: str, loss: str, score: str) -> float:
    """The published AUC × 100."""
    return PUBLISHED[attack][loss][PUBLISHED_SCORES.index(score)]


def gain(found: Found, column: str) -> Paired:
    """What RCE adds to CE."""
    return comparison.paired(found["RCE"][column], found["CE"][column])


def claims(found: Found) -> list[Figure]:
    """Every claim next to ours.

    A gain is shown where its interval lies above 0, at both radii if the attack has one.
    """
    every = [name for attack in PUBLISHED for name in rows(attack)]
    return [
        *(_gains(found, attack) for attack in PUBLISHED),
        _sure(found),
        _dense(found, every),
    ]


def _gains(found: Found, attack: str) -> Figure:
    columns = [at(name, "non-ME") for name in rows(attack)]
    added = [gain(found, column) for column in columns]
    ours = "; ".join(
        f"{mean(found['CE'][column]):.1f} → {mean(found['RCE'][column]):.1f}, {shown(difference)}"
        for column, difference in zip(columns, added, strict=True)
    )
    before, after = (published(attack, loss, "non-ME") for loss in LOSSES)
    holds = min(difference.low for difference in added) > 0
    return judge(f"non-ME gains by RCE: {attack}", f"{before} → {after}", ours, holds, FEW)


def _sure(found: Found) -> Figure:
    both = {loss: found[loss][at("C&W-hc", "confidence")] for loss in LOSSES}
    return judge(
        f"C&W-hc leaves confidence an AUC near 0 (at most {NEAR:g}), CE and RCE",
        " and ".join(str(published("C&W-hc", loss, "confidence")) for loss in LOSSES),
        " and ".join(f"{mean(values):.1f}" for values in both.values()),
        max(max(values) for values in both.values()) <= NEAR,
        "in some networks it is larger",
    )


def _dense(found: Found, every: list[str]) -> Figure:
    ours = {name: found["RCE"][at(name, "K-density")] for name in every}
    below = [name for name, values in ours.items() if min(values) <= HIGH]
    least = min(published(attack, "RCE", "K-density") for attack in PUBLISHED)
    return judge(
        f"RCE with K-density: above {HIGH:g} under all six attacks",
        f"{least} and more",
        "; ".join(f"{name}: {mean(values):.1f}" for name, values in ours.items()),
        not below,
        f"in {len(every) - len(below)} of {len(every)} rows it is, not in {', '.join(below)}. {WIDER}",
    )


WIDER = "In a trial with one network no other σ brought BIM at ε = 0.2 above 64"


def judge(what: str, published: str, ours: str, holds: bool, why: str) -> Figure:
    """A claim that is shown, or one that is not and says why."""
    verdict = (SMALLER, "") if holds else (FAILED, why)
    return Figure(SOURCE, what, f"AUC × 100: {published}", ours, *verdict)


TEXT = """## Detectors of attacks, and reverse cross-entropy, on MNIST

Published by [Pang et al. 2018](references.md#cite-pang2018detection), on MNIST, too. The same here:
SGD with momentum 0.9 and a rate that falls by ten at 1/2 and at 3/4 of the run; the logits of RCE
reversed; a density of {scale.kept:,} training images a class, with σ² = 1/0.26 for CE and 0.1/0.26
for RCE as in the [published code](https://github.com/P2333/Reverse-Cross-Entropy); BIM and ILCM in
ten steps of ε/10; JSMA towards the least likely class, C&W towards a random one. Different:
784-200-64-10 instead of a ResNet-32; {on.epochs} epochs in batches of 100 on the first
{on.y.shape[0]:,} training images instead of 20,000 batches of 128; and a rate for each loss,
{rates[CE]:g} and {rates[RCE]:g}: of three tried, with one seed, the one with most of the other 4,000
right (RCE: 0.5 had as many). The published code goes through ε = 0.02, 0.04, …, 0.2; at which of them
the published numbers were found we do not know, so here are two. C&W has {scale.cw} steps for each of
five c, not thousands. C&W-hc asks for a lead of κ, in the published code 10. Here clean images often
lead by more: κ is what the log-odds of the answer stay below on {sure:.0%} of {scale.other:,} other
test images.

AUC × 100 (chance is 50), published → ours, mean over {seeds} seeds, which decide first weights and
batches: on the first {scale.many:,} test images for FGSM, BIM and ILCM, {scale.few} for C&W,
{scale.fewest} for JSMA. As published, only those count that are right before and wrong after: *broken*
is their share of all, in percent. LID takes {scale.neighbours} neighbours among {scale.batch} training
images; it is not in the publication. Right without an attack: {right}.

{aucs}

An AUC below 50 is information, too: it has the wrong sign. C&W towards a random class often does not
arrive in the RCE networks; its AUC is that of the images where it does.

Not published: an attacker who knows the detector. Percent of the first {scale.few} test images that
are wrong *and* accepted, at ε = {near:g} in ℓ∞. The threshold rejects {alarms:.0%} of {scale.other:,}
other test images; *rejected* is how many of the first {scale.many:,} it does reject. PGD has
{scale.steps} steps and knows nothing. *Knows it* is, image by image, the worst of PGD and of three
attacks with PGD inside: `detection.constrained`, `targeted` and `matching`, the last two towards
{scale.targets} classes each. *No detector*: wrong, under all of these attacks.

{undetected}

RCE less CE, where the attacker knows: {less} points (95 %, paired by seed). No attack proves that
there is none better.

*Reproduced at smaller scale*: where a gain is claimed, our interval (95 %, paired by seed, each by
itself) lies above 0, at both radii; where a level is, it holds for every network, attack and radius.
*Did not reproduce* means that these networks do not show it, not that it is wrong where it was made.

{claims}

All networks took {seconds:.0f} CPU seconds in one thread.
"""


def section(pair: data.Data) -> tuple[str, list[Figure]]:
    """Every detector by every attack, those that know it, and every claim."""
    on, scale = task(pair, 56_000, 10_000, 10), FULL
    found, seconds = measured(on, scale, "detection")
    figures = claims(found)
    text = TEXT.format(
        on=on,
        scale=scale,
        rates=RATES,
        sure=SURE,
        alarms=ALARMS,
        seeds=SEEDS,
        near=RADII[0],
        right=", ".join(f"{mean(found[loss]['right']):.1f}% ({loss})" for loss in LOSSES),
        aucs=aucs(found),
        undetected=undetected(found),
        less=", ".join(
            f"{score} {shown(gain(found, at(AWARE, score)))}" for score in (NOTHING, *PUBLISHED_SCORES)
        ),
        claims=tables.table(
            ("claim", "published", "ours", "status"),
            ((f.what, f.published.removeprefix("AUC × 100: "), f.ours, f.status) for f in figures),
        ),
        seconds=seconds,
    )
    return text, figures


def aucs(found: Found) -> str:
    """The table of AUCs, published → ours."""

    def cells(attack: str, name: str, loss: str) -> Iterator[str]:
        yield f"{mean(found[loss][at(name, FOUND)]):.0f}"
        for score in PUBLISHED_SCORES:
            yield f"{published(attack, loss, score)} → {mean(found[loss][at(name, score)]):.1f}"
        yield f"{mean(found[loss][at(name, 'LID')]):.1f}"

    lines = [
        (name, loss, *cells(attack, name, loss))
        for attack in PUBLISHED
        for name in rows(attack)
        for loss in LOSSES
    ]
    return tables.table(("attack", "trained by", FOUND, *SCORES), lines, range(2, 3 + len(SCORES)))


def undetected(found: Found) -> str:
    """The table of what is wrong and accepted."""
    columns = [(name, loss) for name in (ALARMED, UNAWARE, AWARE) for loss in LOSSES]
    heads = {ALARMED: "rejected", UNAWARE: UNAWARE, AWARE: AWARE}
    lines = [
        (score, *(f"{mean(found[loss][at(name, score)]):.1f}" for name, loss in columns))
        for score in (NOTHING, *PUBLISHED_SCORES)
    ]
    head = ("detector", *(f"{heads[name]}, {loss}" for name, loss in columns))
    return tables.table(head, lines, range(1, len(head)))
