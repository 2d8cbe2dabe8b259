"""MNIST, small networks: the tricks of adversarial training against one base recipe, seed by seed.

Source: Pang et al. 2021, tables 2 to 8 and the takeaways, there on CIFAR-10 with ResNets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import attacks, comparison, data, losses, models, recipe, schedules, training
from adv_lib.comparison import Paired
from adv_lib.optimisers import SGD, Adam
from adv_lib.stack import Stack
from adv_lib.threat import Ball

from . import networks, tables
from .results import FAILED, SMALLER, Figure
from .timing import Timer

BALL = Ball(math.inf, 0.1, (0, 1))
SEEDS = 8
PGD = partial(attacks.pgd, steps=5, keep="last")
SAME = 2.0  # points: an interval within ± this counts as no effect
SOURCE = "pang2021bag"

Inner = training.Inner | training.Varying
Found = dict[str, list[list[float]]]  # a recipe's name → clean, PGD-10, worst case; of every seed


# ---- the recipes ----


def against(attack: training.Attack, loss: training.Loss = losses.cross_entropy) -> Inner:
    """Training against an attack that sees BatchNorm in train mode, as the base recipe does."""
    return training.adversarial(attack, BALL, loss=loss, mode="train")


def staged(first: Callable, second: Callable, third: Callable) -> Inner:
    """Three attacks one after the other, at the parts of the run where the publication changes them."""
    return recipe.Staged([(0, against(first)), (40 / 110, against(second)), (70 / 110, against(third))])


FRIENDLY = [partial(attacks.friendly, steps=5, tolerance=t) for t in range(3)]
FEWER = [partial(PGD, steps=steps) for steps in (1, 3, 5)]
INNERS: dict[str, Callable[[training.Loss, list[torch.Generator]], Inner]] = {
    "PGD": lambda loss, _: against(PGD, loss),
    "eval mode": lambda loss, _: training.adversarial(PGD, BALL, loss=loss),
    "fewer steps": lambda *_: staged(*FEWER),
    "friendly": lambda *_: staged(*FRIENDLY),
    "AWP": lambda *_: recipe.awp(PGD, BALL, 0.01),
    "TRADES": lambda loss, draws: training.trades(BALL, draws, loss=loss, mode="train"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but its seed; what it is for a network is the base recipe."""

    inner: str = "PGD"
    optimiser: SGD | Adam = field(default_factory=lambda: SGD(momentum=0.9))
    batch: int = 50
    widths: tuple[int, ...] = (100, 100)
    decay: float = 5e-4
    share: float = 0.0
    activation: type[nn.Module] = nn.ReLU
    rate: float = 0.05
    warm: bool = False

    @property
    def group(self) -> tuple:
        """What all members of a stack must have in common."""
        return self.inner, self.optimiser, self.batch, self.widths

    @property
    def schedule(self) -> schedules.Schedule:
        """Down by ten at 1/2 and at 3/4 of the run, after a warm-up over a tenth if there is one."""
        steps = schedules.step(self.rate)
        return schedules.warm_up(steps, 0.1) if self.warm else steps


BASE = Recipe()
RECIPES = {
    "base": BASE,
    "weight decay 1e-4": replace(BASE, decay=1e-4),
    "weight decay 5e-3": replace(BASE, decay=5e-3),
    "weight decay 2e-2": replace(BASE, decay=2e-2),
    "label smoothing 0.1": replace(BASE, share=0.1),
    "label smoothing 0.3": replace(BASE, share=0.3),
    "swish": replace(BASE, activation=nn.SiLU),
    "softplus": replace(BASE, activation=nn.Softplus),
    "warm-up of the rate": replace(BASE, warm=True),
    "attack in eval mode": replace(BASE, inner="eval mode"),
    "Adam, rate 1e-3": replace(BASE, optimiser=Adam(), rate=1e-3),
    "Adam, rate 3e-3": replace(BASE, optimiser=Adam(), rate=3e-3),
    "batches of 200": replace(BASE, batch=200),
    "batches of 200, rate × 4": replace(BASE, batch=200, rate=schedules.scaled(0.05, 200, 50)),
    "1, then 3, then 5 attack steps": replace(BASE, inner="fewer steps"),
    "friendly attack, tolerance 0, 1, 2": replace(BASE, inner="friendly"),
    "AWP": replace(BASE, inner="AWP"),
    "TRADES": replace(BASE, inner="TRADES"),
    "TRADES, weight decay 2e-2": replace(BASE, inner="TRADES", decay=2e-2),
}
LARGE, TRADES, BOTH = "weight decay 2e-2", "TRADES", "TRADES, weight decay 2e-2"
PAIRS = [  # what is compared, and with what
    *((name, "base") for name in RECIPES if name not in ("base", "AWP", BOTH)),
    ("batches of 200, rate × 4", "batches of 200"),
    ("AWP", "attack in eval mode"),  # as AWP's attack sees the network
    (BOTH, LARGE),
    (BOTH, "base"),
    (TRADES, LARGE),
]
SMALL = replace(BASE, batch=60)
CAPACITY = {
    f"{name} {width}": replace(SMALL, widths=(width, width), activation=activation)
    for width in (15, 100)
    for name, activation in (("ReLU", nn.ReLU), ("swish", nn.SiLU), ("softplus", nn.Softplus))
}


class Task(NamedTuple):
    """Images to train on and to judge by, and how many epochs."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    epochs: int


def task(pair: data.Data, train: int, test: int, epochs: int) -> Task:
    """The first images of a data set."""
    x, y, x_test, y_test = pair
    return Task(x[:train], y[:train], x_test[:test], y_test[:test], epochs)


def seeded(number: int, first: int = 0) -> torch.Generator:
    """The generator of this member of a stack: member i has the seed i mod SEEDS."""
    return torch.Generator().manual_seed(first + number % SEEDS)


def trained(recipes: list[Recipe], on: Task) -> Stack:
    """Every recipe from every seed, as one stack: the seeds of the first, then of the second, …"""
    first, each = recipes[0], [made for made in recipes for _ in range(SEEDS)]
    widths = [on.x[0].numel(), *first.widths, 10]
    members = [
        models.mlp(widths, seeded(i), norm=True, activation=made.activation)
        for i, made in enumerate(each)
    ]
    shares = [made.share for made in each]
    loss = recipe.smoothing(shares) if any(shares) else losses.cross_entropy
    stack = Stack(members).train()
    run = training.fit(
        stack,
        (on.x, on.y),
        INNERS[first.inner](loss, [seeded(i, 1000) for i in range(len(each))]),
        epochs=on.epochs,
        lr=schedules.each([made.schedule for made in each]),
        batch_size=first.batch,
        optimiser=replace(first.optimiser, weight_decay=tuple(made.decay for made in each)),
        generator=[seeded(i, 500) for i in range(len(each))],
    )
    for _ in run:
        pass
    return stack.eval()


def judged(stack: Stack, on: Task) -> list[Tensor]:
    """Accuracy of every member, in percent: clean, PGD-10, worst case of two APGDs."""
    parts = zip(on.x_test.split(100), on.y_test.split(100), strict=True)
    found = [_right(stack, stack.rows(x), stack.rows(y)) for x, y in parts]
    return [
        100 * torch.cat(rows).view(len(on.y_test), -1).double().mean(0)
        for rows in zip(*found, strict=True)
    ]


def _right(stack: Stack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are right as they are, under PGD-10, and under every attack."""

    def right(attack: training.Attack | None = None) -> Tensor:
        moved = x if attack is None else x + attack(stack, x, y, BALL)
        with torch.no_grad():
            return losses.correct(stack(moved), y)

    clean = right()
    weak = right(partial(attacks.pgd, steps=10, loss=losses.cross_entropy))
    worst = clean & weak & right(partial(attacks.apgd, steps=30))
    worst &= right(partial(attacks.apgd, steps=30, loss=losses.margin_loss))
    return clean, weak, worst


def measured(recipes: dict[str, Recipe], on: Task, name: str) -> tuple[Found, float]:
    """What every recipe reaches, and the CPU seconds that this took; each stack's is kept in .bench."""
    groups: dict[tuple, list[str]] = {}
    for key, made in recipes.items():
        groups.setdefault(made.group, []).append(key)
    stacks = [keys[i : i + 3] for keys in groups.values() for i in range(0, len(keys), 3)]

    def find(keys: list[str]) -> dict:
        timer = Timer()
        columns = judged(trained([recipes[key] for key in keys], on), on)
        own = {key: slice(i * SEEDS, (i + 1) * SEEDS) for i, key in enumerate(keys)}
        found = {key: [column[own[key]].tolist() for column in columns] for key in keys}
        print(f"  {', '.join(keys)}: {timer.cpu():.0f} CPU seconds", flush=True)
        return {"seconds": timer.cpu(), "found": found}

    kept = [networks.once(f"{name}_{keys[0]}", partial(find, keys)) for keys in stacks]
    every = {key: value for part in kept for key, value in part["found"].items()}
    return every, sum(part["seconds"] for part in kept)


# ---- what the publication claims ----


class Claim(NamedTuple):
    """A published claim, ours in words, and whether ours shows it; why is said if not."""

    what: str
    published: str
    ours: str
    holds: bool
    why: str


def shown(difference: Paired) -> str:
    """A difference in points with its interval."""
    mean, low, high, _ = difference
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def marked(difference: Paired) -> str:
    """The same, bold where the interval leaves out 0."""
    apart = difference.low > 0 or difference.high < 0
    return f"**{shown(difference)}**" if apart else shown(difference)


def same(difference: Paired) -> bool:
    """Whether the whole interval lies within SAME points of 0."""
    return difference.low > -SAME and difference.high < SAME


def gains(found: Found, name: str, column: int) -> tuple[list[float], list[float]]:
    """What this activation adds to ReLU, seed by seed: in the narrow network, and in the wide one."""

    def added(width: int) -> list[float]:
        pair = zip(found[f"{name} {width}"][column], found[f"ReLU {width}"][column], strict=True)
        return [a - b for a, b in pair]

    return added(15), added(100)


CLEAN, WEAK, WORST = range(3)
FEW = "the sign is the published one, but eight seeds and so many comparisons do not tell it from 0"
WIDE = f"no effect is shown either way: for eight seeds ± {SAME:g} points are too narrow"


def claims(found: Found, narrow: Found, apart: dict[tuple[str, str], list[Paired]]) -> list[Claim]:
    """Every claim of the takeaways, and what else the publication says of these tricks.

    An effect is shown where its interval lies on the side of 0 that the publication names; of two values
    of a trick one is enough. No effect is shown where the interval lies within SAME points of 0.
    """

    def of(name: str, to: str = "base") -> list[Paired]:
        return apart[name, to]

    def mean(name: str, column: int) -> str:
        return f"{sum(found[name][column]) / SEEDS:.1f}%"

    slight, large = of("weight decay 1e-4"), of(LARGE)
    tenth, third = of("label smoothing 0.1"), of("label smoothing 0.3")
    scaled = of("batches of 200, rate × 4", "batches of 200")
    still, warm = of("attack in eval mode"), of("warm-up of the rate")
    friendly, fewer = of("friendly attack, tolerance 0, 1, 2"), of("1, then 3, then 5 attack steps")
    adam = [of(f"Adam, rate {rate}")[WORST] for rate in ("1e-3", "3e-3")]
    smooth = {name: gains(narrow, name, WORST) for name in ("swish", "softplus")}
    more = {name: comparison.paired(*gain, comparisons=len(smooth)) for name, gain in smooth.items()}

    def ranking(column: int, judge: str, published: str, why: str) -> Claim:
        up, down = of(BOTH)[column], of(TRADES, LARGE)[column]
        equal = f"{shown(of(TRADES)[column])}, {shown(of(BOTH, LARGE)[column])}"
        return Claim(
            f"weight decay decides who is ahead, TRADES or PGD training: {judge}",
            f"WRN-34-10: {published}",
            f"TRADES {shown(up)} points where it has 2e-2 and PGD 5e-4, {shown(down)} where it is the "
            f"other way; both 5e-4, both 2e-2: {equal}",
            up.low > 0 and down.high < 0,
            why,
        )

    return [
        Claim(
            "(i) weight decays that differ slightly, 1e-4 and 5e-4: AutoAttack",
            "WRN-34-10: 46.43% → 52.19%",
            f"worst case {mean('weight decay 1e-4', WORST)} → {mean('base', WORST)}; "
            f"1e-4 against 5e-4: {shown(slight[WORST])} points",
            slight[WORST].high < 0,
            "in our 300 steps a decay of 5e-4 shrinks weights by 4 %, in the published 43,000 to e⁻²⁰",
        ),
        Claim(
            "(i) weight decay moves robust accuracy, and hardly the clean one",
            "WRN-34-10, 5e-4 against 1e-4: AutoAttack +5.76 points, clean +0.20",
            f"2e-2 against 5e-4: worst case {shown(large[WORST])} points, clean {shown(large[CLEAN])}",
            large[WORST].low > 0 and same(large[CLEAN]),
            WIDE,
        ),
        Claim(
            "(ii) moderate label smoothing, 0.1 and 0.3: PGD-10",
            "ResNet-18: +0.46, +0.76 points",
            f"{shown(tenth[WEAK])}, {shown(third[WEAK])} points",
            max(tenth[WEAK].low, third[WEAK].low) > 0,
            "both intervals include 0; 0.3 costs clean accuracy, which it does not on CIFAR-10",
        ),
        Claim(
            "(ii) moderate label smoothing, 0.1 and 0.3: AutoAttack",
            "ResNet-18: +0.25, +0.73 points",
            f"worst case {shown(tenth[WORST])}, {shown(third[WORST])} points",
            max(tenth[WORST].low, third[WORST].low) > 0,
            "the opposite at 0.3, which costs clean accuracy too, as it does not on CIFAR-10",
        ),
        Claim(
            "(ii) larger batches, a rate scaled in proportion against the same rate: PGD-10",
            "ResNet-18, batches of 512: 50.69% → 53.36% (base 53.58%)",
            f"batches of 200: {mean('batches of 200', WEAK)} → "
            f"{mean('batches of 200, rate × 4', WEAK)} (base {mean('base', WEAK)}), "
            f"{shown(scaled[WEAK])} points",
            scaled[WEAK].low > 0,
            FEW,
        ),
        Claim(
            "(iii) attack in eval mode: clean accuracy up",
            "six networks: +0.89 to +1.91 points",
            f"{shown(still[CLEAN])} points",
            still[CLEAN].low > 0,
            FEW,
        ),
        Claim(
            "(iii) attack in eval mode: robust accuracy about the same",
            "six networks, AutoAttack: −0.34 to +0.24 points",
            f"worst case {shown(still[WORST])} points",
            same(still[WORST]),
            WIDE,
        ),
        Claim(
            "(iv) an attack that stops early: clean accuracy up",
            "ResNet-18: +3.15 to +4.04 points",
            f"friendly attack {shown(friendly[CLEAN])} points; fewer steps at first: "
            f"{shown(fewer[CLEAN])}",
            friendly[CLEAN].low > 0,
            FEW,
        ),
        Claim(
            "(iv) an attack that stops early: AutoAttack down",
            "ResNet-18: −1.91 to −2.55 points",
            f"worst case: friendly attack {shown(friendly[WORST])} points; fewer steps at first: "
            f"{shown(fewer[WORST])}",
            friendly[WORST].high < 0,
            f"{FEW}; fewer steps at first, which is another way to stop early, do lower it",
        ),
        Claim(
            "(v) smooth activations add more where capacity is small",
            "softplus against ReLU, PGD-10: +0.72 points (ResNet-18), −0.16 (WRN-34-10)",
            "digits, worst case, widths 15 and 100: "
            + "; ".join(
                f"{name} {sum(a) / SEEDS:+.1f} and {sum(b) / SEEDS:+.1f} points, "
                f"apart by {shown(more[name])}"
                for name, (a, b) in smooth.items()
            ),
            max(difference.low for difference in more.values()) > 0,
            FEW,
        ),
        ranking(
            WEAK,
            "PGD-10",
            "TRADES +5.33 points with 5e-4 against 2e-4, −2.00 with 2e-4 against 5e-4; equal: "
            "+2.52, +0.81",
            FEW,
        ),
        ranking(
            WORST,
            "AutoAttack",
            "TRADES +5.11 points with 5e-4 against 2e-4, −1.25 with 2e-4 against 5e-4; equal: "
            "+2.22, +1.64",
            "in the worst case TRADES is behind at equal decay here, and where only it has the larger "
            "one ahead by too little for eight seeds",
        ),
        Claim(
            "Adam in place of SGD: AutoAttack",
            "ResNet-18, rate 1e-4: −4.47 points",
            f"rates 1e-3, 3e-3: worst case {shown(adam[0])}, {shown(adam[1])} points",
            max(difference.high for difference in adam) < 0,
            "it hangs on the rate: with one of two Adam is behind, with the other it is not",
        ),
        Claim(
            "warm-up of the rate changes nothing: AutoAttack",
            "ResNet-18: −0.14 to −0.39 points",
            f"worst case {shown(warm[WORST])} points",
            same(warm[WORST]),
            WIDE,
        ),
    ]


TEXT = """## The tricks of adversarial training, on MNIST

Published by [Pang et al. 2021](references.md#cite-pang2021bag), who change one thing at a time in a
base recipe. The same here: that design, SGD with momentum 0.9, weight decay 5e-4, a step size that
falls twice by ten (at 1/2 and 3/4 of the run, published: 100/110 and 105/110), an attack that sees
BatchNorm in train mode, TRADES with β = 6. Different: the first {on.y.shape[0]:,} images of MNIST
instead of CIFAR-10, 784-100-100-10 with BatchNorm instead of ResNet-18 and WRN-34-10, ε = {eps:g}
instead of 8/255, {on.epochs} epochs in batches of {base.batch} with step size {base.rate:g} instead of
110 in batches of 128 with 0.1, five attack steps from δ = 0 (TRADES: ten from noise) instead of ten
from a random point, no crops, the last epoch instead of the best one, and as the worst case of every
image PGD-10 and two runs of `attacks.apgd`, 30 steps each on the log-odds and on the margin, instead
of AutoAttack.

The base: accuracy on the first {on.y_test.shape[0]} test images in percent, mean over {seeds} seeds.
All others: differences in points, paired by seed, which decides the first weights and the batches. The
intervals of a column hold together with probability 95 % over seeds ({count} comparisons, Bonferroni);
bold ones leave out 0.

{table}

A friendly attack stops where it has misled the network for the first, second or third time; this
tolerance grows after 40/110 and 70/110 of the run, as published, and so do the attack steps above it.
AWP's attack sees the network in eval mode, so that it is compared with that.

The takeaways of the publication, (i) to (v), and what else it says of these tricks. *Reproduced at
smaller scale*: where it names an effect, our interval lies on that side of 0; where it names none,
within {same:g} points of 0. For (v), 64-w-w-10 with w = 15 and w = 100 are trained on
{digits.y.shape[0]} images of digits, {digits.epochs} epochs in batches of {small.batch}, and judged on
{digits.y_test.shape[0]} others: what an activation adds to ReLU at one width, less what it adds at the
other, in two comparisons. *Did not reproduce* means that this data and these networks do not show it,
not that it is wrong where it was made.

{claims}

All networks took {seconds:.0f} CPU seconds in one thread.
"""


def section(pair: data.Data) -> tuple[str, list[Figure]]:
    """Every trick against its base, and every claim."""
    on, digits = task(pair, 1000, 500, 15), task(data.load("digits"), 600, 300, 12)
    found, seconds = measured(RECIPES, on, "recipe")
    narrow, more = measured(CAPACITY, digits, "recipe_digits")
    apart = {
        (name, to): [
            comparison.paired(a, b, comparisons=len(PAIRS))
            for a, b in zip(found[name], found[to], strict=True)
        ]
        for name, to in PAIRS
    }
    rows = [("base", "–", *(f"{sum(column) / SEEDS:.1f}" for column in found["base"]))]
    rows += [(name, to, *map(marked, differences)) for (name, to), differences in apart.items()]
    figures, judged_claims = [], []
    for claim in claims(found, narrow, apart):
        status = SMALLER if claim.holds else FAILED
        if not claim.holds and not claim.why:
            raise ValueError(f"{claim.what}: {claim.ours}: find out why, and say it")
        why = "" if claim.holds else claim.why
        figures.append(Figure(SOURCE, claim.what, claim.published, claim.ours, status, why))
        judged_claims.append((claim.what, claim.published, claim.ours, status))
    text = TEXT.format(
        on=on,
        digits=digits,
        eps=BALL.eps,
        base=BASE,
        small=SMALL,
        seeds=SEEDS,
        same=SAME,
        count=len(PAIRS),
        table=tables.table(("recipe", "against", "clean", "PGD-10", "worst case"), rows, range(2, 5)),
        claims=tables.table(("claim", "published", "ours", "status"), judged_claims),
        seconds=seconds + more,
    )
    return text, figures
