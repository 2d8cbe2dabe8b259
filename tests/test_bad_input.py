"""What is wrong with an argument is said in words, by every public function."""

import inspect
import math
import operator
import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from asking import ASKED, WEIGHED, takes
from package import public, public_methods
from torch import nn
from torch.nn.utils import prune

from adv_lib import (
    _arguments,
    adaptive,
    affine,
    attacks,
    bounds,
    branching,
    comparison,
    conjugates,
    danskin,
    data,
    dent,
    detection,
    diagnostics,
    dual,
    ensembles,
    evaluation,
    exact,
    linear,
    losses,
    mahalanobis,
    models,
    optimisers,
    plots,
    recipe,
    schedules,
    smoothing,
    stack,
    suite,
    training,
    widgets,
)
from adv_lib.stack import Stack
from adv_lib.threat import Ball
from adv_lib.widgets import Control

NAN, INF = math.nan, math.inf
w, b, y = torch.tensor([1.0, -2.0]), torch.tensor(0.5), torch.tensor([1, -1, 1, 1])
x = torch.rand(
    4, 2, generator=torch.Generator().manual_seed(1)
)  # net is right on some, or no attack runs
W, B, labels = torch.eye(3, 2), torch.zeros(3), torch.tensor([0, 1, 2, 0])
ball, boxed = Ball(2, 0.1), Ball(2, 0.1, (0, 1))
net, cube, eps = models.mlp([2, 4, 3]), Ball(INF, 0.1, (0, 1)), torch.linspace(0, 1, 3)
tiny = data.Data(x, torch.tensor([0, 1, 0, 1]), x, torch.tensor([0, 1, 0, 1]))


def with_entry(t, value):
    """A copy of t whose first entry is value."""
    t = t.clone()
    t.view(-1)[0] = value
    return t


def batches(method):
    """The batches that every method of Ball refuses."""
    name, of = f"threat.Ball.{method}", operator.attrgetter(method)
    yield name, lambda: of(ball)(torch.ones(4, 2, dtype=torch.int64)), "floating-point int64"
    yield name, lambda: of(ball)(torch.ones(2)), "batch (n, *shape) (2,)"
    yield name, lambda: of(ball)(with_entry(x, NAN)), "finite NaN"
    yield name, lambda: of(ball)(with_entry(x, INF)), "finite infinity"
    yield name, lambda: of(Ball(2, torch.ones(3)))(x), "eps 3 entries 4 samples"


def inputs_in_the_box(method):
    """The inputs x that every method of Ball with a box refuses."""
    alone = method in ("sample", "region")

    def call(x_bad):
        getattr(boxed, method)(*((x_bad,) if alone else (torch.ones(4, 2), x_bad)))

    name = f"threat.Ball.{method}"
    yield name, lambda: call(x + 1), "x must lie in the box [0, 1] from"
    yield name, lambda: call(with_entry(x, -0.01)), "x must lie in the box -0.01"
    if not alone:
        yield name, lambda: call(with_entry(x, NAN)), "x must lie in the box nan"
        yield name, lambda: call(x[:3]), "x must match the batch (4, 2) (3, 2)"
        yield name, lambda: call(x.double()), "x must match the batch float32 float64"


def binary_cases(function):
    """What every function of a two-class model refuses."""
    takes = inspect.signature(function).parameters

    def call(**changed):
        arguments = {"w": w, "b": b, "x": x, "y": y, "ball": ball} | changed
        function(**{name: arguments[name] for name in takes})

    name = f"linear.{function.__name__}"
    yield name, lambda: call(w=torch.ones(3)), "w (d,) x (n, *d) (3,) (4, 2)"
    yield name, lambda: call(w=torch.ones(1, 2)), "w (d,) (1, 2)"
    yield name, lambda: call(x=torch.ones(2)), "x (n, *d) (2,)"
    yield name, lambda: call(y=torch.tensor([0, 1, 1, 0])), "4 labels −1 +1 [0, 1]"
    yield name, lambda: call(y=y[:3]), "4 labels (3,)"
    yield name, lambda: call(y=y[:, None]), "4 labels (4, 1)"
    yield name, lambda: call(y=y > 0), "labels −1 +1 bool"
    yield name, lambda: call(y=y * NAN), "labels −1 +1 nan"
    yield name, lambda: call(x=with_entry(x, NAN)), "finite NaN"
    yield name, lambda: call(w=with_entry(w, INF)), "finite infinity"
    if "b" in takes:
        yield name, lambda: call(b=torch.tensor(NAN)), "finite NaN"
        yield name, lambda: call(b=torch.ones(3)), "b () (3,)"


def class_cases(function):
    """What every function of a K-class model refuses."""

    def call(W=W, b=B, x=x, y=labels):
        function(W, b, x, y, ball)

    name = f"linear.{function.__name__}"
    yield name, lambda: call(W=torch.eye(3)), "W (K, d) x (n, *d) (3, 3) (4, 2)"
    yield name, lambda: call(W=torch.ones(2)), "W (K, d) (2,)"
    yield name, lambda: call(b=torch.zeros(2)), "b (K,) (2,)"
    yield name, lambda: call(b=torch.tensor(0.0)), "b (K,) ()"
    yield name, lambda: call(x=torch.ones(2)), "x (n, *d) (2,)"
    yield name, lambda: call(y=labels + 1), "4 labels 0 2 [1, 2, 3]"
    yield name, lambda: call(y=labels - 1), "4 labels 0 2 -1"
    yield name, lambda: call(y=labels[:3]), "4 labels (3,)"
    yield name, lambda: call(y=labels.float()), "int64 labels float32"
    yield name, lambda: call(y=labels.int()), "int64 labels int32"
    yield name, lambda: call(x=with_entry(x, NAN)), "finite NaN"
    yield name, lambda: call(W=with_entry(W, NAN)), "finite NaN"
    yield name, lambda: call(b=with_entry(B, NAN)), "finite NaN"


def whole_sets(function):
    """What every function of a whole two-class training set refuses."""

    def call(x=x, y=y):
        function(x, y, 2 if function is linear.largest_margin else ball)

    name = f"linear.{function.__name__}"
    yield name, lambda: call(y=torch.ones(4)), "both classes [1.0]"
    yield name, lambda: call(x[:0], y[:0]), "both classes"
    yield name, lambda: call(y=torch.tensor([0, 1, 0, 1])), "labels −1 +1"
    yield name, lambda: call(x=x[:3]), "3 labels"
    yield name, lambda: call(x=torch.ones(4)), "x (n, *d) (4,)"
    yield name, lambda: call(x=with_entry(x, NAN)), "finite NaN"


def logits_and_labels(function, name=None):
    """What every loss refuses."""
    z, y, targeted = torch.rand(4, 3), labels, function in (losses.targeted, losses.targeted_all)
    name = name or f"losses.{function.__name__}"

    def call(z=z, y=y, targets=(labels + 1) % 3):
        function(z, targets if function is losses.targeted_all else y, *([targets] if targeted else []))

    yield name, lambda: call(z=z[0]), "logits (n, K) (3,)"
    yield name, lambda: call(z=torch.rand(4, 1)), "logits (n, K) K ≥ (4, 1)"
    yield name, lambda: call(z=(9 * z).long()), "logits int64"
    which = "targets" if function is losses.targeted_all else "y"
    yield name, lambda: call(**{which: labels + 1}), "labels from 0 to 2 1 to 3"
    yield name, lambda: call(**{which: labels - 1}), "labels from 0 to 2 -1 to 1"
    yield name, lambda: call(**{which: labels[:3]}), "labels (4,) (3,)"
    yield name, lambda: call(**{which: labels[:, None]}), "labels (4,) (4, 1)"
    yield name, lambda: call(**{which: labels.int()}), "int64 labels int32"
    yield name, lambda: call(**{which: labels.float()}), "int64 labels float32"
    if targeted:
        yield name, lambda: call(targets=labels + 5), "from 0 to 2 5 to 7"
        yield name, lambda: call(targets=labels[:2]), "(4,) (2,)"
    if function is losses.targeted:
        yield name, lambda: call(targets=labels), "targets differ labels both the same"


def attacked(name, attack, climbs=True, loss=True):
    """What every attack refuses; loss: whether it takes one."""
    image, right = x.clone(), 2 * torch.eye(3)[labels]  # the answers to which let no sample go
    shortest = name in ("attacks.deepfool", "attacks.ddn", "attacks.cw", "attacks.fab")
    cube = Ball(2 if name in ("attacks.ddn", "attacks.cw") else INF, 0.1, (0, 1))

    def call(model=net, x=x, y=labels, ball=cube, **options):
        attack(model, x, y, ball, **options)

    yield name, lambda: call(x=x + 1), "x must lie in the box [0, 1] from"
    yield name, lambda: call(x=with_entry(x, -0.01)), "x must lie in the box -0.01"
    yield name, lambda: call(x=with_entry(x, NAN)), "finite NaN"
    if name != "attacks.cw":  # which needs a box
        free = Ball(cube.p, 0.1)
        yield name, lambda: call(x=with_entry(x, NAN), ball=free), "finite NaN"
        yield name, lambda: call(x=with_entry(x, INF), ball=free), "finite infinity"
    yield name, lambda: call(x=(9 * x).long()), "floating-point int64"
    yield name, lambda: call(x=x[0], y=labels[:2]), "batch (n, *shape) (2,)"
    yield name, lambda: call(ball=Ball(cube.p, torch.ones(3), (0, 1))), "eps 3 entries 4 samples"
    yield name, lambda: call(ball=Ball(cube.p, -0.1)), "eps ≥ 0 -0.1"
    for options, at in (({}, "y"), ({"y": labels}, "targets")):
        which = partial(call, **options)
        yield name, lambda f=which, at=at: f(**{at: labels + 1}), "labels from 0 to 2"
        yield name, lambda f=which, at=at: f(**{at: labels - 1}), "labels from 0 to 2 -1"
        yield name, lambda f=which, at=at: f(**{at: labels[:3]}), "4 labels (3,)"
        yield name, lambda f=which, at=at: f(**{at: labels[:, None]}), "4 labels (4, 1)"
        yield name, lambda f=which, at=at: f(**{at: (labels + 1.0) % 3}), "int64 labels float32"
    yield name, lambda: call(y=torch.tensor([1, -1, 1, 1])), "labels from 0 to 2 -1"
    yield name, lambda: call(targets=labels), "targets differ labels both the same"
    yield name, lambda: call(models.linear(2, 1)), "logits (4, K) K ≥ 2 (4, 1)"
    yield name, lambda: call(lambda x: net(x)[:, 0]), "logits (4, K) (4,)"
    yield name, lambda: call(lambda x: net(x)[:2]), "logits (4, K) (2, 3)"
    yield name, lambda: call(lambda x: net(x) * NAN), "NaN"
    if name != "attacks.rays":  # to which an infinite logit is the largest
        yield name, lambda: call(lambda x: net(x) / 0), "NaN"
    if not climbs:
        return
    margin, no_slope = losses.margin_loss, "does not depend on x autograd"
    if shortest:
        yield name, lambda: call(ball=Ball(cube.p, torch.full((4, 2), 0.1), (0, 1))), "one eps a sample"
        yield name, lambda: call(ball=Ball(cube.p, NAN)), "eps nan"
    else:
        yield name, lambda: call(ball=Ball(INF, INF)), "finite eps a box no end"
    if loss:
        yield name, lambda: call(loss=lambda z, y: margin(z, y).mean()), "loss (4,) one a sample ()"
        yield name, lambda: call(loss=lambda z, y: margin(z, y)[:, None]), "loss (4,) (4, 1)"
        yield name, lambda: call(loss=lambda z, y: margin(z, y)[:2]), "loss (4,) (2,)"
        yield name, lambda: call(loss=lambda z, y: margin(z, y) * NAN), "NaN"
        yield name, lambda: call(loss=lambda z, y: torch.zeros(4)), no_slope
    yield name, lambda: call(lambda x: right + torch.rand(4, 3)), no_slope
    yield name, lambda: call(lambda x: net(x.detach())), no_slope
    yield name, lambda: call(lambda x: net(image[: len(x)]) - 0 * x.detach().sum()), no_slope
    yield name, lambda: call(lambda x: net(x) + (x - x.detach()).abs().sqrt().sum()), "gradient NaN"


def measured(name, function, *more):
    """What every measure of robust accuracy refuses."""

    def call(attack=attacks.fgsm, y=labels, ball=cube, **options):
        function(net, x, y, ball, [attack], *more, **options)

    yield name, lambda: call(y=labels[:3]), "inputs labels 4 3"
    yield name, lambda: call(y=labels.float()), "int64 labels float32"
    yield name, lambda: call(y=labels + 1), "labels from 0 to 2"
    yield name, lambda: call(batch_size=0), "batch_size ≥ 1 0"
    yield name, lambda: call(batch_size=-1), "batch_size ≥ 1 -1"
    yield name, lambda: call(ball=Ball(INF, -0.1)), "eps ≥ 0 -0.1"
    yield name, lambda: call(lambda *_: 0.2 * torch.ones_like(_[1])), "outside Ball"
    yield (
        name,
        lambda: call(lambda *_: torch.zeros(len(_[1]), 1), ball=Ball(INF, 0.1)),
        "return 1)",
    )
    yield name, lambda: call(lambda *_: NAN * _[1]), "finite NaN"
    yield name, lambda: call(partial(attacks.pgd, steps=-1)), "steps ≥ 0 -1"


def networks(name, function, takes_labels=True):
    """What everything that bounds a network, or searches it, refuses."""

    def call(model=net, x=x, y=labels, ball=cube, **options):
        function(model, x, *([y] if takes_labels else []), ball, **options)

    yield name, lambda: call(x=x + 1), "x must lie in the box [0, 1] from"
    yield name, lambda: call(x=with_entry(x, NAN)), "finite NaN"
    yield name, lambda: call(x=with_entry(x, INF), ball=Ball(INF, 0.1)), "finite infinity"
    yield name, lambda: call(x=(9 * x).long()), "floating-point int64"
    yield name, lambda: call(x=x[0], y=labels[:1]), "batch (n, *shape) (2,)"
    yield name, lambda: call(x=x[:0], y=labels[:0]), "at least one (0, 2)"
    yield name, lambda: call(x=torch.rand(4, 3)), "'1' fit (3,) Linear(in_features=2"
    yield name, lambda: call(ball=Ball(INF, torch.ones(3))), "eps 3 entries 4 samples"
    yield name, lambda: call(ball=Ball(INF, -0.1)), "eps ≥ 0 -0.1"
    yield name, lambda: call(lambda x: x), "nn.Sequential function"
    yield name, lambda: call(nn.Sequential(nn.Linear(2, 3), nn.Tanh())), "Sequential '1' Tanh"
    if takes_labels:
        yield name, lambda: call(y=labels + 1), "4 labels 0 2 [1, 2, 3]"
        yield name, lambda: call(y=labels - 1), "4 labels 0 2 -1"
        yield name, lambda: call(y=labels[:3]), "4 labels (3,)"
        yield name, lambda: call(y=labels[:, None]), "4 labels (4, 1)"
        yield name, lambda: call(y=labels.float()), "int64 float32"
        yield name, lambda: call(y=labels.int()), "int64 int32"


CHANGES = [  # what makes a call something else than the weights, and on which layer
    ("forward hook", "1.0", lambda layer: layer.register_forward_hook(lambda _, a, out: -out)),
    ("forward hook", "1.0", lambda layer: layer.register_forward_pre_hook(lambda _, a: (-a[0],))),
    ("forward hook", "1", lambda layer: layer.register_forward_hook(lambda _, a, out: -out)),
    ("forward hook", "", lambda layer: layer.register_forward_pre_hook(lambda _, a: (-a[0],))),
    ("forward hook", "1.0", lambda layer: prune.random_unstructured(layer, "weight", 0.5)),
    ("forward of its own", "1.0", lambda layer: setattr(layer, "forward", torch.negative)),
    ("forward of its own", "", lambda layer: setattr(layer, "forward", torch.negative)),
]


class Negated(nn.Linear):
    """A Linear that is called in another way."""

    def __call__(self, h):
        return -super().__call__(h)


class SaysOtherwise(nn.Linear):
    """The same, where no rule looks."""

    def _call_impl(self, h):
        return -self.forward(h)


def changed(at, change):
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3)))
    change(model.get_submodule(at))
    affine.affine_pieces(model, (4,))


def pieces():
    """Layers that are no affine pieces, and those that do not fit, by name."""
    name, of = (
        "affine.affine_pieces",
        lambda *layers, shape=(4,): affine.affine_pieces(nn.Sequential(*layers), shape),
    )
    first, image = nn.Linear(4, 3), (1, 4, 4)
    accepted = "Linear Conv2d BatchNorm1d AvgPool2d Normalise Flatten ReLU Dropout Identity"
    yield name, lambda: of(nn.MaxPool2d(2), shape=image), f"{accepted} '0' MaxPool2d"
    yield name, lambda: of(nn.ConvTranspose2d(1, 1, 2), shape=image), f"{accepted} '0' ConvTranspose2d"
    blind = nn.BatchNorm1d(3, track_running_stats=False)
    yield name, lambda: of(first, blind, nn.ReLU()), "running statistics '1' BatchNorm1d"
    for layer, shape in (
        (nn.BatchNorm1d(4), (3,)),
        (nn.BatchNorm1d(3), (3, 4)),
        (nn.BatchNorm2d(3), (3,)),
        (nn.BatchNorm2d(3), image),
        (models.Normalise([0.0, 0.0], [1.0, 1.0]), image),
        (nn.AvgPool2d(5), image),
        (nn.AvgPool2d(2), (4, 4)),
    ):
        words = f"'0' fit {shape} {type(layer).__name__}"
        yield name, lambda layer=layer, shape=shape: of(layer, shape=shape), words
    for pool in (nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(2, 2, 1, count_include_pad=False)):
        yield name, lambda p=pool: of(p, shape=image), "ceil_mode counts what it pads '0' AvgPool2d"
    yield name, lambda: of(nn.AdaptiveAvgPool2d(3), shape=image), "divides (4, 4) '0' AdaptiveAvgPool2d"
    still = models.Normalise([0.5], [0.0])
    yield name, lambda: of(still, shape=image), "finite NaN infinity '0' Normalise"
    for what, at, change in CHANGES:
        yield name, lambda at=at, change=change: changed(at, change), f"weights say {what} {at!r}"
    yield name, lambda: of(first, Negated(3, 3)), "weights say __call__ '1' Negated"
    yield name, lambda: of(first, SaysOtherwise(3, 3)), "model does layers say SaysOtherwise"
    yield name, lambda: of(first, nn.Sequential(nn.ReLU(), nn.Tanh())), "'1.1' Tanh"
    yield name, lambda: of(first, nn.Softmax(1)), "'1' Softmax"
    yield name, lambda: of(first, Custom()), "'1' Custom"
    yield name, lambda: of(first, Squared()), "'1' Squared"
    yield name, lambda: affine.affine_pieces(Custom(), (4,)), "Sequential '' Custom"
    yield name, lambda: affine.affine_pieces(models.mlp, (4,)), "nn.Sequential function"
    yield name, lambda: of(nn.Linear(16, 3), shape=image), "'0' fit (1, 4, 4) Linear"
    yield name, lambda: of(nn.Linear(4, 3), shape=image), "'0' fit (1, 4, 4) Linear"
    yield name, lambda: of(nn.Flatten(), nn.Linear(15, 3), shape=image), "'1' fit (16,) Linear"
    yield name, lambda: of(nn.Conv2d(2, 3, 3), shape=image), "'0' fit (1, 4, 4) Conv2d(2,"
    yield name, lambda: of(nn.Conv2d(1, 3, 5), shape=image), "'0' fit (1, 4, 4) Conv2d(1,"
    yield name, lambda: of(nn.Conv2d(4, 3, 3), shape=(4, 4)), "'0' fit (4, 4) Conv2d"
    reflecting = nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect")
    yield name, lambda: of(reflecting, shape=image), "'0' Conv2d padding_mode=reflect"
    yield name, lambda: of(nn.Flatten(2), shape=image), "'0' Flatten(start_dim=2 all axes"
    yield name, lambda: of(nn.Flatten(1, 2), shape=image), "'0' Flatten end_dim=2"
    yield name, lambda: of(nn.Flatten(0), shape=image), "'0' Flatten(start_dim=0"
    for value in (NAN, INF):
        for which in ("weight", "bias"):
            broken = nn.Linear(4, 3)
            getattr(broken, which).data.view(-1)[0] = value
            yield name, lambda f=broken: of(nn.ReLU(), f), "finite NaN infinity '1' Linear"


def of_conjugates():
    """Slopes and sets that no conjugate takes."""
    whole, one = (9 * x).long(), torch.ones(4, 2)
    yield "conjugates.absolute", lambda: conjugates.absolute(whole), "floating-point int64"
    yield "conjugates.absolute", lambda: conjugates.absolute(with_entry(x, NAN)), "finite NaN"
    yield "conjugates.absolute", lambda: conjugates.absolute(with_entry(x, -INF)), "finite infinity"
    for p in (0, 3, NAN, None):
        yield "conjugates.norm", lambda p=p: conjugates.norm(x, p), f"p must be 1, 2 or math.inf {p}"
    yield "conjugates.norm", lambda: conjugates.norm(x[0], 2), "batch (n, *shape) (2,)"
    yield "conjugates.norm", lambda: conjugates.norm(whole, 2), "floating-point int64"
    yield "conjugates.norm", lambda: conjugates.norm(with_entry(x, NAN), 2), "finite NaN"

    name = "conjugates.ball"

    def at(y=one, x=x, ball=ball):
        conjugates.ball(y, x, ball)

    for region in (ball, boxed):
        call = partial(at, ball=region)
        yield name, lambda f=call: f(y=one[0], x=x[0]), "batch (n, *shape) (2,)"
        yield name, lambda f=call: f(y=with_entry(one, NAN)), "finite NaN"
        yield name, lambda f=call: f(x=with_entry(x, NAN)), "finite NaN"
        yield name, lambda f=call: f(x=x[:, :1]), "x like y (4, 2) (4, 1)"
        yield name, lambda f=call: f(x=x[0]), "x like y (4, 2) (2,)"
        yield name, lambda f=call: f(x=x.double()), "x like y float32 float64"
        yield name, lambda f=call: f(y=whole, x=whole), "floating-point int64"
    yield name, lambda: at(x=x + 1, ball=boxed), "x must lie in the box [0, 1] from"
    yield name, lambda: at(ball=Ball(2, torch.ones(3))), "eps 3 entries 4 samples"

    for name, call in (
        ("conjugates.box", lambda y=one, l=-one, u=one: conjugates.box(y, l, u)),
        ("conjugates.relu", lambda y=one, l=-one, u=one: conjugates.relu(one, y, l, u)),
        ("conjugates.relu", lambda y=one, l=-one, u=one: conjugates.relu(y, y, l, u)),
    ):
        yield name, lambda f=call: f(l=2 * one), "lower ≤ upper"
        yield name, lambda f=call: f(l=with_entry(-one, NAN)), "finite NaN"
        yield name, lambda f=call: f(u=with_entry(one, INF)), "finite infinity"
        yield name, lambda f=call: f(y=with_entry(one, NAN)), "finite NaN"
        yield name, lambda f=call: f(y=one[:3]), "one shape (3, 2) (4, 2)"
        yield name, lambda f=call: f(u=one[:1]), "one shape (4, 2) (1, 2)"
        yield name, lambda f=call: f(*[one.long()] * 3), "floating-point int64"
    yield "conjugates.box", lambda: conjugates.box(one[0], -one[0], one[0]), "batch (n, *shape) (2,)"

    name, s = "conjugates.legendre", torch.linspace(-1, 1, 5)

    def star(s=s, f=s, y=s):
        conjugates.legendre(s, f, y)

    yield name, lambda: star(f=s[:3]), "(m,) (5,) (3,)"
    yield name, lambda: star(y=x), "(5,) (4, 2)"
    yield name, lambda: star(s=x, f=x[:, 0], y=torch.ones(3, 3)), "(4, 2) (3, 3)"
    yield name, lambda: star(s=torch.ones(5, 1, 1), y=torch.ones(2, 1, 1)), "(5, 1, 1)"
    yield name, lambda: star(s=s[:0], f=s[:0]), "(0,)"
    yield name, lambda: star(f=with_entry(s, NAN)), "numbers +∞"
    yield name, lambda: star(f=with_entry(s, -INF)), "numbers +∞"
    yield name, lambda: star(f=s + INF), "not all +∞"
    yield name, lambda: star(s=with_entry(s, NAN)), "finite NaN"
    yield name, lambda: star(y=with_entry(s, INF)), "finite infinity"
    yield name, lambda: star(f=s.double()), "one type float32 float64"
    yield name, lambda: star(s=s.long(), f=s.long(), y=s.long()), "floating-point int64"


def of_the_dual_network():
    """Bounds, slopes and multipliers that fit no network."""
    pieces, layers = affine.affine_pieces(net, (2,)), bounds.pre_activations(net, x, cube)
    wide = bounds.Bounds(-torch.ones(4, 4), torch.ones(4, 4))
    half = torch.full((4, 4), 0.5)
    name, lines = "dual.lines", partial(dual.lines, wide)
    for value in (-0.1, 1.1, NAN, INF):
        yield name, lambda v=value: lines(with_entry(half, v)), "slopes in [0, 1]"
    yield name, lambda: lines(half[:3]), "slopes (4, 4) (3, 4)"
    yield name, lambda: lines(half[:, :3]), "slopes (4, 4) (4, 3)"
    yield name, lambda: lines(torch.full((4, 3, 5), 0.5)), "slopes (4, 4) (4, 3, 5)"
    yield name, lambda: lines("zero"), "'dual', 'crown' 'zero'"
    yield name, lambda: dual.lines(bounds.Bounds(*wide[::-1]), "dual"), "lower > upper"
    for end in (0, 1):
        ends = [*wide]
        ends[end] = with_entry(ends[end], NAN)
        yield name, lambda ends=ends: dual.lines(bounds.Bounds(*ends), "crown"), "NaN"
    relus = [dual.lines(layer, "dual") for layer in layers]
    c = torch.eye(3)[labels][:, None]
    nu, _ = dual.multipliers(pieces, relus, c)
    name = "dual.value"
    yield name, lambda: dual.value(pieces, [], x, cube, nu), "2 multipliers 1 bounds 2 0"
    yield name, lambda: dual.value(pieces, 2 * layers, x, cube, nu), "2 multipliers 1 bounds 2 2"
    yield name, lambda: dual.value(pieces, layers, x, cube, nu[1:]), "2 multipliers 1 bounds 1 1"
    yield name, lambda: dual.value(pieces, layers, x, cube, [nu[0] * NAN, nu[1]]), "finite NaN"
    yield name, lambda: dual.value(pieces, layers, x, cube, [nu[0], nu[1] * INF]), "finite"
    yield name, lambda: dual.value(pieces, layers, x + 1, cube, nu), "x must lie in the box"
    crossed = [bounds.Bounds(layers[0].upper + 1, layers[0].lower)]
    yield name, lambda: dual.value(pieces, crossed, x, cube, nu), "lower ≤ upper"
    climb = partial(dual.ascend, pieces, layers, x, cube.region(x), c)
    yield "dual.ascend", lambda: climb([half[:, None]], -1), "steps ≥ 0 -1"
    yield "dual.ascend", lambda: climb([2 * half[:, None] + 1], 1), "slopes in [0, 1]"
    name, searched = "branching.search", partial(branching.search, None, [(1.0, None)])
    yield name, lambda: searched(width=0), "width ≥ 1 0"
    yield name, lambda: searched(node_limit=0), "node_limit ≥ 1 0"
    yield name, lambda: searched([]), "roots of 1 questions 0"
    yield name, lambda: searched([[0], [1]]), "roots of 1 questions 2"


def chosen_slopes():
    """Slopes that fit no network, and methods that take none."""
    half, K = torch.full((4, 4), 0.5), 3
    for method in dual.SLOPES:
        given = partial(bounds.margins, net, x, labels, cube, method)
        for bad, words in (
            ([], "(n, *shape) [(4, 4)] (n, K, *shape) K = 3 []"),
            ([half, half], "[(4, 4)] [(4, 4), (4, 4)]"),
            ([half[:3]], "[(4, 4)] [(3, 4)]"),
            ([half[:, None].expand(4, K + 1, 4)], "K = 3 [(4, 4, 4)]"),
            ([half + 1], "slopes in [0, 1]"),
            ([with_entry(half, NAN)], "slopes in [0, 1] nan"),
            ([with_entry(half, -0.1)], "slopes in [0, 1] -0.1"),
        ):
            yield "bounds.margins", lambda f=given, bad=bad: f(slopes=bad), words
    for method in ("interval", "lp"):
        given = partial(bounds.margins, net, x, labels, cube, method, slopes=[half])
        yield "bounds.margins", given, f"slopes 'dual' 'crown' {method!r}"
    name, best = "bounds.best_slopes", partial(bounds.best_slopes, net, x, labels, cube)
    yield name, lambda: best(steps=-1), "steps ≥ 0 -1"
    name, robust = "bounds.robust_loss", partial(bounds.robust_loss, net, x, labels, cube)
    for method in ("lp", "best", None):
        yield name, lambda m=method: robust(m), f"'interval', 'dual', 'crown' {method!r}"


class Custom(nn.Module):
    """A network with layers of the right kinds that does something else with them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.ReLU()

    def forward(self, x):
        return self.second(self.first(x)) ** 2


class Squared(nn.ReLU):
    """A ReLU by name only."""

    def forward(self, x):
        return super().forward(x) ** 2


def along(x=x[:1], y=labels[:1], directions=(x[1:2],), distances=(eps,), **options):
    return diagnostics.loss_along(net, x, y, directions, *distances, **options)


def fit(data=(x, y), inner=lambda m, x, y: m(x)[:, 0], epochs=1, lr=0.1, model=None, **options):
    model = model or models.linear(2, 1)
    return next(training.fit(model, data, inner, epochs=epochs, lr=lr, **options))


def of_inner_maxima():
    """Arguments that no inner maximum takes: some when it is made, some when it is asked."""
    g = torch.Generator().manual_seed(0)
    makers = {
        "clean": lambda ball: training.clean,
        "adversarial": partial(training.adversarial, attacks.fgsm),
        "fast": partial(training.fast, generator=g),
        "trades": partial(training.trades, generator=g),
        "certified": training.certified,
        "awp": lambda ball: recipe.awp(attacks.fgsm, ball, 0.1),
        "Free": lambda ball: recipe.Free(ball, 2),
        "mixed": lambda ball: training.mixed(training.clean, 0.5),
    }
    for name, make in makers.items():
        module = "recipe" if name in ("awp", "Free") else "training"
        name, inner = f"{module}.{name}", partial(make(cube), net)
        yield name, lambda f=inner: f(x, labels + 1), "0 2"
        yield name, lambda f=inner: f(x, labels - 1), "0 2"
        yield name, lambda f=inner: f(x, labels.float()), "int64 float32"
        yield name, lambda f=inner: f(x, labels[:3]), "labels (3,)"
        if make(cube) is training.clean or "mixed" in name:
            continue
        yield name, lambda f=inner: f(x + 1, labels), "x must lie in the box [0, 1]"
        nan = "in the box nan" if "trades" in name or "Free" in name else "finite NaN"
        yield name, lambda f=inner: f(with_entry(x, NAN), labels), nan
        yield name, lambda m=make: m(Ball(INF, -0.1)), "eps ≥ 0 -0.1"
        if "fast" not in name and "Free" not in name:
            per_sample = make(Ball(INF, torch.ones(3), (0, 1)))
            yield name, lambda f=per_sample: f(net, x, labels), "eps 3 4"
    for eps in (torch.ones(4), torch.ones(4, 2)):
        yield "training.fast", lambda e=eps: training.fast(Ball(INF, e), g), "one eps tensor"
    for beta in (-1, NAN, INF):
        yield "training.trades", lambda b=beta: training.trades(cube, g, b), f"beta ≥ 0 {beta}"
    yield "training.fast", lambda: training.fast(cube, None), "a generator None"
    yield "training.trades", lambda: training.trades(cube, None), "a generator None"
    for method in ("lp", "exact", None):
        inner = training.certified(cube, method)
        yield "training.certified", lambda f=inner: f(net, x, labels), f"'dual' {method!r}"
    for share in (-0.1, 1.1, NAN):
        mixed = partial(training.mixed, training.clean, share)
        yield "training.mixed", mixed, f"share from 0 to 1 {share}"
    for begin, end in ((0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (NAN, 0.5), (0.1, NAN)):
        ramp = partial(training.Ramp, training.certified, cube, begin, end)
        yield "training.Ramp", ramp, f"0 ≤ begin < end ≤ 1 {begin} {end}"


def of_recipes():
    """Numbers, modes, stages and networks that no recipe of training takes."""
    draws = torch.Generator()
    for mode in ("test", None):
        modes = partial(training.adversarial, attacks.fgsm, cube, mode=mode)
        yield "training.adversarial", modes, f"mode eval train {mode!r}"
        yield "training.trades", partial(training.trades, cube, draws, mode=mode), f"train {mode!r}"
    for gamma in (-0.1, NAN, INF, "1", [0.1, -0.1]):
        yield "recipe.awp", partial(recipe.awp, attacks.fgsm, cube, gamma), f"gamma ≥ 0 {gamma!r}"
    moves = recipe.awp(attacks.fgsm, cube, 0.1)
    yield "recipe.awp", lambda: moves(lambda v: v @ W.T, x, labels), "nn.Module function"
    yield "recipe.awp", lambda: recipe.awp(lambda *_: None, cube, 0.1)(net, x, labels), "NoneType"
    two = recipe.awp(attacks.fgsm, cube, (0.1, 0.2, 0.3))
    pair = Stack([net, net])
    yield "recipe.awp", lambda: two(pair, x, labels), "each of 2 networks 3"
    for replays in (0, -1, 1.5):
        yield "recipe.Free", partial(recipe.Free, cube, replays), f"replays ≥ 1 {replays}"
    yield "recipe.Free", lambda: recipe.Free(Ball(INF, torch.ones(4)), 2), "one eps tensor"
    free = recipe.Free(cube, 2)
    free(net, x, labels)
    yield "recipe.Free", lambda: free(net, torch.zeros(4, 3), labels), "inputs (4, 2) (4, 3)"
    for share in (-0.1, 1.1, NAN, "0.1", [0.5, 2]):
        yield "recipe.smoothing", partial(recipe.smoothing, share), f"share from 0 to 1 {share!r}"
    dealt = recipe.smoothing([0.1, 0.2, 0.3])
    yield "recipe.smoothing", lambda: dealt(x, labels % 2), "one number for each network 3 4 rows"
    for begins in ((), (0.1,), (0, 0.5, 0.5), (0, 0.5, 0.2), (0, 1), (0, NAN)):
        stages = [(begin, training.clean) for begin in begins]
        yield "recipe.Staged", partial(recipe.Staged, stages), f"begin at 0 later {list(begins)}"
    smoothed, z = losses.smoothed, torch.rand(4, 3)
    yield from logits_and_labels(partial(smoothed, share=0.1), "losses.smoothed")
    for share in (-0.1, 1.1, NAN):
        yield "losses.smoothed", partial(smoothed, z, labels, share), f"share from 0 to 1 {share}"
    for share in (torch.ones(3), torch.ones(4, 1)):
        yield "losses.smoothed", partial(smoothed, z, labels, share), f"one a row {(*share.shape,)}"
    for activation, words in ((3, "int"), (lambda: 3, "int"), ("relu", "str")):
        made = partial(models.mlp, [2, 3], activation=activation)
        yield "models.mlp", made, f"activation module {words}"
    for decay in (-0.1, NAN, INF, "0.1", [], [0.1, -1]):
        for rule in (optimisers.SGD, optimisers.Adam):
            name = f"optimisers.{rule.__name__}"
            yield name, partial(rule, weight_decay=decay), "weight_decay ≥ 0 one a network"
    both = partial(fit, optimiser=optimisers.Adam(weight_decay=(0.1, 0.2)))
    yield "training.fit", both, "weight_decay each of 1 networks 2"
    yield "optimisers.SGD", lambda: optimisers.SGD(nesterov=True), "momentum > 0 nesterov 0"
    for betas in ((0.9,), (0.9, 1.0), (-0.1, 0.9), (NAN, 0.9)):
        yield "optimisers.Adam", partial(optimisers.Adam, betas), f"two betas [0, 1) {betas}"
    for epsilon in (0, -1, NAN):
        yield "optimisers.Adam", partial(optimisers.Adam, epsilon=epsilon), f"epsilon > 0 {epsilon}"
    for name in ("step", "linear", "cosine", "one_cycle"):
        for lr in (0, -1, NAN, INF, "0.1", None):
            yield f"schedules.{name}", partial(getattr(schedules, name), lr), f"0 < lr < ∞ {lr!r}"
    for at in ((0.5, 0.5), (0.7, 0.2), (-0.1,), (1.1,), (NAN,)):
        yield "schedules.step", partial(schedules.step, 0.1, at), f"increasing from 0 to 1 {at}"
    for factor in (0, -1, NAN, INF):
        yield "schedules.step", partial(schedules.step, 0.1, factor=factor), f"factor > 0 {factor}"
    for part in (0, -0.1, NAN, 1.1):
        yield "schedules.one_cycle", partial(schedules.one_cycle, 0.1, part), f"peak < 1 {part}"
        warm = partial(schedules.warm_up, schedules.linear(0.1), part)
        yield "schedules.warm_up", warm, f"over ≤ 1 {part}"
    yield "schedules.warm_up", lambda: schedules.warm_up(0.1, 0.5), "schedules float"
    yield "schedules.each", lambda: schedules.each([]), "schedules none"
    yield "schedules.each", lambda: schedules.each([schedules.linear(0.1), 0.1]), "schedules float"
    yield "schedules.scaled", lambda: schedules.scaled(0, 128), "0 < lr 0"
    for size in (0, 1.5):
        yield "schedules.scaled", partial(schedules.scaled, 0.1, size), f"batch_size ≥ 1 {size}"
        yield "schedules.scaled", partial(schedules.scaled, 0.1, 1, size), f"base ≥ 1 {size}"
    friendly = partial(attacks.friendly, net, x, labels, cube)
    yield "attacks.friendly", lambda: friendly(steps=0), "steps ≥ 1 0"
    yield "attacks.friendly", lambda: friendly(tolerance=-1), "tolerance ≥ 0 -1"
    for size in (0, -0.1, NAN, INF):
        yield "attacks.friendly", partial(friendly, step_size=size), f"step_size > 0 {size}"
    yield "stack.dealt", lambda: stack.dealt([1, 2, 3], x), "each network 3 4 rows"
    yield "stack.dealt", lambda: stack.dealt([], x), "each network 0"
    yield "stack.aligned", lambda: stack.aligned([1, 2, 3], x), "each of 4 networks 3"


def of_comparisons():
    """Runs that are no pairs, and numbers that are no probabilities."""
    name, pair = "comparison.paired", comparison.paired
    yield name, lambda: pair([1.0], [2.0]), "at least two 1 and 1"
    yield name, lambda: pair([], []), "at least two 0 and 0"
    yield name, lambda: pair([1.0, 2.0], [1.0, 2.0, 3.0]), "as many 2 and 3"
    for bad in (NAN, INF):
        yield name, lambda b=bad: pair([1.0, b], [1.0, 2.0]), f"finite {bad}"
    for level in (0, 1, NAN, 95):
        yield name, lambda v=level: pair([1, 2], [3, 4], level=v), f"0 < level < 1 {level}"
        yield "comparison.power", lambda v=level: comparison.power(1, 1, 3, v), f"level < 1 {level}"
        needed = partial(comparison.seeds_needed, 1, 1, level=level)
        yield "comparison.seeds_needed", needed, f"level < 1 {level}"
    for count in (0, -1, 1.5):
        yield name, lambda c=count: pair([1, 2], [3, 4], comparisons=c), f"comparisons ≥ 1 {count}"
    for p in ([], [1.1], [-0.1, 0.5], [NAN]):
        yield "comparison.holm", partial(comparison.holm, p), "p-values from 0 to 1 at least one"
    for deviation in (0, -1, NAN, INF):
        yield "comparison.power", partial(comparison.power, 1, deviation, 3), f"> 0 {deviation}"
    for effect in (NAN, INF):
        yield "comparison.power", partial(comparison.power, effect, 1, 3), f"finite effect {effect}"
    for seeds in (1, 0, 2.5):
        yield "comparison.power", partial(comparison.power, 1, 1, seeds), f"seeds ≥ 2 {seeds}"
    needed = comparison.seeds_needed
    yield "comparison.seeds_needed", lambda: needed(0, 1), "effect other than 0 0"
    yield "comparison.seeds_needed", lambda: needed(1e-6, 1), "million seeds 1e-06"
    for wanted in (0, 1, NAN):
        yield "comparison.seeds_needed", partial(needed, 1, 1, wanted), f"power < 1 {wanted}"


def of_slopes():
    """What is no function of a batch of δ, no set of δ, no direction, no gradients."""

    def g(theta, delta):
        return delta * theta[0]

    theta, S = torch.ones(2), torch.linspace(0, 1, 3)
    for name, call in (
        ("danskin.maximisers", danskin.maximisers),
        ("danskin.directional_derivative", lambda g, t, S: danskin.directional_derivative(g, t, t, S)),
    ):
        yield name, lambda c=call: c(g, theta, S[:0]), "at least one δ empty"
        yield name, lambda c=call: c(lambda t, d: t, theta, S), "(3,) numbers (2,)"
        yield name, lambda c=call: c(lambda t, d: d * NAN, theta, S), "NaN"
        yield name, lambda c=call: c(lambda t, d: d * INF + 1, theta, S[1:]), "infinity"
        for ends in ((1.0, 0.0), (0.0, INF), (NAN, 1.0)):
            low, high = ends
            words = f"low ≤ high {low} {high}"
            yield name, lambda c=call, e=ends: c(g, theta, e), words
    slope = partial(danskin.directional_derivative, g, theta, S=S)
    yield "danskin.directional_derivative", lambda: slope(gamma=torch.ones(3)), "gamma (2,) (3,)"
    yield "danskin.directional_derivative", lambda: slope(gamma=theta.double()), "float32 float64"

    for function in (danskin.min_norm_point, danskin.descent_direction):
        name = f"danskin.{function.__name__}"
        yield name, lambda f=function: f(torch.zeros(0, 3)), "(m, *shape) at least one (0, 3)"
        yield name, lambda f=function: f(torch.tensor(1.0)), "(m, *shape) ()"
        yield name, lambda f=function: f(torch.ones(2, 3, dtype=torch.int64)), "gradients int64"
        yield name, lambda f=function: f(with_entry(x, NAN)), "finite NaN"
        yield name, lambda f=function: f(with_entry(x, INF)), "finite infinity"
    for name, call in (
        ("min_norm_weights", danskin.min_norm_weights),
        ("product_weights", lambda gram: danskin.product_weights(gram, 1)),
    ):
        yield f"danskin.{name}", lambda c=call: c(torch.ones(2, 3)), "products (m, m) (2, 3)"
        yield f"danskin.{name}", lambda c=call: c(torch.ones(3)), "products (m, m) (3,)"
        yield f"danskin.{name}", lambda c=call: c(torch.ones(0, 0)), "at least one (0, 0)"
        yield f"danskin.{name}", lambda c=call: c(NAN * torch.eye(2)), "finite NaN"
    weights = danskin.product_weights
    yield "danskin.product_weights", lambda: weights(torch.eye(4), 3), "(m·3, m·3) (4, 4)"
    yield "danskin.product_weights", lambda: weights(torch.eye(4), 0), "parts ≥ 1 0"


def of_ddd():
    """Arguments that the attacks and gradients of DDD do not take."""
    g = torch.Generator().manual_seed(0)
    draw = partial(danskin.perturbations, net, x, labels)
    for name, call in (("danskin.perturbations", draw), ("danskin.ddd", danskin.ddd)):

        def call(ball=cube, m=2, generator=g, call=call, name=name, **options):
            order = (ball, generator, m) if name == "danskin.ddd" else (ball, m, generator)
            call(*order, **options)

        yield name, lambda c=call: c(m=0), "m at least 1 0"
        yield name, lambda c=call: c(steps=0), "steps at least 1 0"
        yield name, lambda c=call: c(generator=None), "a generator None"
        yield name, lambda c=call: c(ball=Ball(2, torch.ones(4))), "one eps tensor"
        yield name, lambda c=call: c(ball=Ball(2, -1)), "eps ≥ 0 -1"
    yield "danskin.ddd", lambda: danskin.ddd(cube, g, parts=0), "parts ≥ 1 0"
    for m in (1, 2):
        inner = danskin.ddd(cube, g, m)
        yield "danskin.ddd", lambda f=inner: f(net, x, labels + 1), "0 2"
        yield "danskin.ddd", lambda f=inner: f(net, x + 1, labels), "x must lie in the box"
        yield "danskin.ddd", lambda f=inner: f(net, x, labels[:3]), "labels"
    rows, both = x.view(2, 2, 2), labels.view(2, 2)
    yield "danskin.gram", lambda: danskin.gram(net, rows, labels), "(r, b, *shape) (2, 2, 2) (4,)"
    yield "danskin.gram", lambda: danskin.gram(net, rows[:0], both[:0]), "(r, b, *shape) (0, 2, 2)"
    yield "danskin.gram", lambda: danskin.gram(net, rows, both + 1), "0 2"
    still = models.mlp([2, 3]).requires_grad_(False)
    yield "danskin.gram", lambda: danskin.gram(still, rows, both), "require a gradient 0 of them"


def of_the_geometry():
    """Numbers, centres, features and losses of which there is no geometry."""
    mu = torch.eye(3, 2)
    for name in ("centres", "random_centres", "robust_radius"):
        call = getattr(mahalanobis, name)
        call = partial(call, norm=1) if name == "random_centres" else call
        call = (lambda L, d, f=call, **o: f(L, **o)) if name == "robust_radius" else call
        for L in (1, 0, -2, 2.5):
            yield f"mahalanobis.{name}", partial(call, L, 3), f"classes ≥ 2 {L}"
        for norm in (0, -1, NAN, INF, "1"):
            yield f"mahalanobis.{name}", partial(call, 3, 3, norm=norm), f"norm > 0 {norm!r}"
    for d in (0, 1.5):
        yield "mahalanobis.centres", partial(mahalanobis.centres, 3, d), f"features ≥ 1 {d}"
        yield "mahalanobis.random_centres", partial(mahalanobis.random_centres, 3, d, 1), f"≥ 1 {d}"
    yield "mahalanobis.centres", partial(mahalanobis.centres, 10, 8), "at least 9 features 8"
    name, means = "mahalanobis.means", mahalanobis.means
    yield name, lambda: means(x[0], labels, 3), "features (n, d) (2,)"
    yield name, lambda: means(x, labels[:3], 3), "as many int64 labels (3,)"
    yield name, lambda: means(x, labels.float(), 3), "int64 labels float32"
    yield name, lambda: means(labels[:, None], labels, 3), "features int64"
    yield name, lambda: means(x, labels, 4), "each label from 0 to 3 [0, 1, 2]"
    yield name, lambda: means(x, labels - 1, 3), "0 to 2 [-1, 0, 1]"
    yield name, lambda: means(x.numpy(), labels, 3), "z tensor ndarray"
    takers = {
        "NearestCentre": mahalanobis.NearestCentre,
        "towards_centre": mahalanobis.towards_centre,
        "Quadratic": lambda mu: mahalanobis.Quadratic(mu, torch.ones(3, 2, 2), B),
        "level_set": lambda mu: mahalanobis.level_set(eps + 1, mu, (2.0, 1.0), (0.0, 0.0)),
        "gsce_density": lambda mu: mahalanobis.gsce_density(eps + 1, eps, 9, mu, (2, 1), (0, 0)),
    }
    for taker, call in takers.items():
        name = f"mahalanobis.{taker}"
        yield name, lambda c=call: c(mu[0]), "centres (L, d) (2,)"
        yield name, lambda c=call: c(mu[:1]), "L ≥ 2 (1, 2)"
        yield name, lambda c=call: c(mu.long()), "centres int64"
        yield name, lambda c=call: c(with_entry(mu, NAN)), "finite centres NaN"
        yield name, lambda c=call: c(mu.numpy()), "centres tensor ndarray"
    name, layer = "mahalanobis.NearestCentre", mahalanobis.NearestCentre(mu)
    yield name, lambda: layer(torch.ones(4, 3)), "2 features (4, 3)"
    yield name, lambda: layer(torch.ones(4, 1)), "2 features (4, 1)"
    pair = (nn.Sequential(nn.Linear(2, 2), mahalanobis.NearestCentre(mu[:L])) for L in (2, 3))
    pair = list(pair)
    yield "stack.Stack", lambda: Stack(pair), "same layers (2, 2) (3, 2)"
    name, form = "mahalanobis.Quadratic", mahalanobis.Quadratic
    yield name, lambda: form(mu, torch.ones(3, 2), B), "precisions (3, 2, 2) (3, 2)"
    yield name, lambda: form(mu, torch.ones(3, 2, 2), B[:2]), "biases (3,) (2,)"
    yield name, lambda: form(mu, 1.0, B), "precisions tensor float"
    yield name, lambda: form(mu, torch.ones(3, 2, 2), B)(torch.ones(4, 3)), "features (n, 2) (4, 3)"
    yield "mahalanobis.as_quadratic", lambda: mahalanobis.as_quadratic(W[0], B), "W (L, d) (2,)"
    yield "mahalanobis.as_quadratic", lambda: mahalanobis.as_quadratic(W, B[:2]), "b (L,) (3, 2) (2,)"
    yield "mahalanobis.as_quadratic", lambda: mahalanobis.as_quadratic(W, 0.0), "b tensor float"
    wide = partial(mahalanobis.large_margin, alpha=0.1, weight=0.1)
    yield from logits_and_labels(mahalanobis.mmc, "mahalanobis.mmc")
    yield from logits_and_labels(wide, "mahalanobis.large_margin")
    for value in (-0.1, NAN, INF, "1"):
        of = partial(mahalanobis.large_margin, x, labels % 2)
        yield "mahalanobis.large_margin", partial(of, value, 0.1), f"alpha ≥ 0 {value!r}"
        yield "mahalanobis.large_margin", partial(of, 0.1, value), f"weight ≥ 0 {value!r}"
        of = partial(mahalanobis.centre_loss, value)
        yield "mahalanobis.centre_loss", of, f"weight ≥ 0 {value!r}"
    name, pulls = "mahalanobis.centre_loss", mahalanobis.centre_loss(0.1)
    yield name, lambda: pulls(lambda v: v @ W.T, x, labels), "nn.Sequential function"
    yield name, lambda: pulls(nn.Linear(2, 3), x, labels), "nn.Sequential Linear"
    yield name, lambda: pulls(net, x, labels + 1), "labels 0 to 2 1 to 3"
    yield name, lambda: pulls(net, x.numpy(), labels), "x tensor ndarray"
    name, near = "mahalanobis.towards_centre", mahalanobis.towards_centre(torch.eye(3, 4), 2)
    goal = (labels + 1) % 3
    yield name, lambda: near(lambda v: v @ W.T, x, labels, cube, goal), "nn.Sequential function"
    yield name, lambda: near(net, x.numpy(), labels, cube, goal), "x tensor ndarray"
    yield name, lambda: near(net, x, labels, 0.1, goal), "Ball 0.1"
    yield name, lambda: near(net, x, labels, cube, goal + 1), "labels 0 to 2 3"
    yield name, lambda: near(models.mlp([2, 5, 3]), x, labels, cube, goal), "4 features (4, 5)"
    far, name = mahalanobis.expected_distance, "mahalanobis.expected_distance"
    for value in (-1.0, NAN, INF):
        yield name, partial(far, torch.tensor([value, 1.0])), f"distances ≥ 0 {value}"
    yield name, lambda: far(1.0), "distance tensor float"
    yield name, lambda: far(torch.tensor([1])), "finite distances [1]"
    two, C = torch.eye(2), eps + 1
    for taker, call in (
        ("level_set", mahalanobis.level_set),
        ("gsce_density", lambda C, *more: mahalanobis.gsce_density(C, C, 9, *more)),
        ("mmc_density", lambda C, *more: mahalanobis.mmc_density(C, C, 9, 2)),
    ):
        name = f"mahalanobis.{taker}"
        for value in (0.0, -1.0, NAN, INF):
            given = with_entry(C, value)
            yield name, partial(call, given, two, (2, 1), (0, 0)), f"losses > 0 {value}"
        yield name, partial(call, 1.0, two, (2, 1), (0, 0)), "loss tensor float"
        if taker == "mmc_density":
            continue
        yield name, partial(call, C, mu, (2, 1), (0, 0)), "two classes 3, 2 and 2"
        yield name, partial(call, C, two, (2,), (0, 0)), "two classes 2, 1 and 2"
        yield name, partial(call, C, two, (2, 1), (0,)), "two classes 2, 2 and 1"
        yield name, partial(call, C, two, (2, INF), (0, 0)), "precisions > 0 inf"
        yield name, partial(call, C, two, (2, 0), (0, 0)), "precisions > 0 (2, 0)"
        yield name, partial(call, C, two, (1, 1), (0, 0)), "different (1, 1)"
        yield name, partial(call, C, two, (2, 1), (0, NAN)), "biases nan"
        yield name, partial(call, C, two, (2, 1), (0, 100)), "bracket positive 1.0"
    for name, call in (
        ("gsce_density", lambda p, N, d: mahalanobis.gsce_density(C, p, N, two, (2, 1), (0, 0))),
        ("mmc_density", lambda p, N, d: mahalanobis.mmc_density(C, p, N, d)),
    ):
        name = f"mahalanobis.{name}"
        yield name, partial(call, C[:2], 9, 2), "the shape of the loss (3,) (2,)"
        yield name, partial(call, -C, 9, 2), "p ≥ 0"
        yield name, partial(call, NAN * C, 9, 2), "p ≥ 0"
        yield name, partial(call, 1.0, 9, 2), "p tensor float"
        yield name, partial(call, C, -1, 2), "samples ≥ 0 -1"
    for d in (0, 2.5):
        yield "mahalanobis.mmc_density", partial(mahalanobis.mmc_density, C, C, 9, d), f"≥ 1 {d}"


def of_ensembles():
    """Members, their logits, weights of losses and margins that make no ensemble."""
    z, one = torch.rand(4, 2, 3), models.mlp([2, 4, 3], torch.Generator().manual_seed(1))
    pair, wide = [net, one], models.mlp([2, 5, 3])
    both = ensembles.Ensemble(pair)
    for name, call in (("Ensemble", ensembles.Ensemble), ("SideBySide", stack.SideBySide)):
        name = f"{'ensembles' if name == 'Ensemble' else 'stack'}.{name}"
        yield name, lambda c=call: c([]), "same layers widths none"
        yield name, lambda c=call: c([net, wide]), "same layers widths 4 5"
        yield name, lambda c=call: c([nn.Sequential(nn.PReLU())]), "Linear PReLU"
    takers = {
        "log_mean": lambda z, y: ensembles.log_mean(z),
        "diversity": ensembles.diversity,
        "adp_loss": partial(ensembles.adp_loss, alpha=2, beta=0.5),
        "mean_probability": ensembles.mean_probability,
        "mean_logits": ensembles.mean_logits,
        "mean_margin": ensembles.mean_margin,
        "strongest": ensembles.strongest,
        "of_member": ensembles.of_member(0),
    }
    for taker, call in takers.items():
        name = f"ensembles.{taker}"
        yield name, lambda c=call: c(z[:, 0], labels), "logits (n, K, L) L ≥ 2 (4, 3)"
        yield name, lambda c=call: c(z[:, :, :1], labels), "L ≥ 2 (4, 2, 1)"
        yield name, lambda c=call: c(z[:, :0], labels), "(n, K, L) (4, 0, 3)"
        yield name, lambda c=call: c((9 * z).long(), labels), "logits int64"
        yield name, lambda c=call: c(z.numpy(), labels), "z tensor ndarray"
        if taker != "log_mean":
            yield name, lambda c=call: c(z, labels + 1), "labels from 0 to 2 1 to 3"
            yield name, lambda c=call: c(z, labels - 1), "labels from 0 to 2 -1 to 1"
            yield name, lambda c=call: c(z, labels[:3]), "labels (4,) (3,)"
            yield name, lambda c=call: c(z, labels.float()), "int64 labels float32"
            yield name, lambda c=call: c(z, labels.tolist()), "y tensor list"
    for value in (-0.1, NAN, INF, "1"):
        for given in ((value, 1), (1, value), ((1.0, value), 1), (1, (1.0, value))):
            words = f"alpha ≥ 0 beta ≥ 0 {value!r}"
            yield "ensembles.adp", lambda p=given: ensembles.adp(*p), words
            if not isinstance(value, str):
                own = [torch.tensor(w).repeat(2) if isinstance(w, tuple) else w for w in given]
                words = "alpha and beta ≥ 0 one a sample"
                yield "ensembles.adp_loss", lambda p=own: ensembles.adp_loss(z, labels, *p), words
    three = torch.ones(3)
    yield "ensembles.adp_loss", lambda: ensembles.adp_loss(z, labels, three, 1), "one a sample (3,)"
    yield "ensembles.adp_loss", lambda: ensembles.adp_loss(z, labels, 1, three), "one a sample (3,)"
    name = "ensembles.adp"
    for members in (0, -1, 1.5, "2"):
        yield name, partial(ensembles.adp, 2, 0.5, members), f"members ≥ 1 None {members!r}"
    alone, dealt = ensembles.adp(2, 0.5), ensembles.adp(2, 0.5, 2)
    yield name, lambda: alone(net, x, labels), "an Ensemble Sequential"
    yield name, lambda: alone(Stack(pair), x, labels), "an Ensemble Stack"
    yield name, lambda: dealt(both, x, labels), "Stack of ensembles of 2 Ensemble"
    yield name, lambda: dealt(net, x, labels), "Stack of ensembles of 2 Sequential"
    yield name, lambda: dealt(Stack([*pair, net]), x, labels), "Stack of ensembles of 2 3 networks"
    yield name, lambda: dealt(Stack(pair), x, labels), "one batch other labels"
    yield name, lambda: dealt(Stack(pair), x, labels[[0, 0, 1, 1]] + 2), "labels from 0 to 2"
    yield name, lambda: alone(both, x, labels + 1), "labels from 0 to 2"

    for taker in ("optimum", "optimal_predictions"):
        name, call = f"ensembles.{taker}", getattr(ensembles, taker)
        for alpha in (0, -1, NAN, INF, "1"):
            yield name, partial(call, alpha, 3, 10), f"alpha > 0 {alpha!r}"
        for members in (0, -1, 1.5, "3"):
            yield name, partial(call, 1, members, 10), f"members ≥ 1 classes ≥ 2 {members!r} 10"
        for classes in (1, 0, 2.5, None):
            yield name, partial(call, 1, 3, classes), f"members ≥ 1 classes ≥ 2 3 {classes!r}"
    yield name, partial(ensembles.optimal_predictions, 1, 2, 10), "members that divide 9 2"

    for k in (-1, 2, 0.5, "0"):
        yield "ensembles.of_member", lambda k=k: ensembles.of_member(k)(z, labels), f"0 to 1 {k!r}"
    name, climbs = "ensembles.climb", ensembles.climb(ensembles.mean_logits)
    yield name, lambda: climbs(net, x, labels, cube), "an Ensemble Sequential"
    yield name, lambda: climbs(Stack(pair), x, labels, cube), "an Ensemble Stack"
    yield name, lambda: climbs(lambda v: v @ W.T, x, labels, cube), "an Ensemble function"
    yield name, lambda: climbs(None, x, labels, cube), "a model NoneType"
    yield name, lambda: climbs(both, x.numpy(), labels, cube), "x tensor ndarray"
    yield name, lambda: climbs(both, x, labels, 0.1), "Ball 0.1"
    yield name, lambda: climbs(both, x, labels + 1, cube), "labels from 0 to 2 3"
    yield name, lambda: climbs(both, x + 1, labels, cube), "x must lie in the box"
    other = ensembles.climb(ensembles.of_member(2))
    yield name, lambda: other(both, x, labels, cube), "a member from 0 to 1 2"
    mean = ensembles.climb(lambda z, y: ensembles.mean_logits(z, y).mean())
    yield name, lambda: mean(both, x, labels, cube), "a loss (4,) one a sample ()"
    for members in (0, -1, 1.5, "2"):
        yield "ensembles.against", partial(ensembles.against, members), f"members ≥ 1 {members!r}"
    name = "ensembles.transfer"
    yield name, lambda: ensembles.transfer([], x, labels, cube), "at least one network none"
    yield name, lambda: ensembles.transfer([None], x, labels, cube), "a model NoneType"
    yield name, lambda: ensembles.transfer(pair, x, labels + 1, cube), "labels from 0 to 2 3"
    for wrong in (lambda *_: None, lambda *_: x[:, :1]):
        yield name, lambda a=wrong: ensembles.transfer(pair, x, labels, cube, a), "return δ (4, 2)"

    name, join = "ensembles.averaged", ensembles.averaged
    yield name, lambda: join([]), "Flatten Linear ReLU none"
    yield name, lambda: join([net, wide]), "same Flatten Linear ReLU 4 5"
    yield name, lambda: join([models.mlp([2, 4, 3], norm=True)]), "Linear ReLU BatchNorm1d"
    yield name, lambda: join([nn.Sequential(net)]), "Flatten Linear ReLU Sequential"
    yield name, lambda: join([nn.Sequential(*net, nn.ReLU())] * 2), "the last one Linear"
    yield name, lambda: join([nn.Sequential(nn.Flatten())]), "the last one Linear"
    yield name, lambda: join([nn.Sequential()]), "the last one Linear"
    name, bound = "ensembles.mean_margins", ensembles.mean_margins
    led = torch.tensor([[[INF, 1.0], [2.0, INF]], [[INF, 1.0], [2.0, INF]]])
    yield name, lambda: bound(led[0]), "margins (K, n, L) (2, 2)"
    yield name, lambda: bound(torch.ones(2, 2, 2)), "one +∞ each row"
    yield name, lambda: bound(torch.full((2, 2, 2), INF)), "one +∞ each row"
    yield name, lambda: bound(torch.stack([led[0], led[0].flip(0)])), "same class for all members"
    yield name, lambda: bound(led.long()), "one +∞ int64"
    yield name, lambda: bound(led.numpy()), "margins tensor ndarray"
    name, margins = "ensembles.margins", ensembles.margins
    yield name, lambda: margins([], x, labels, cube), "at least one member none"
    yield name, lambda: margins(pair, x, labels, cube, "best"), "interval dual crown lp 'best'"
    yield name, lambda: margins(pair, x, labels, boxed, "lp"), "p = inf"
    yield name, lambda: margins([models.mlp([2, 3])], x, labels + 1, cube), "labels 3"


def of_smoothing():
    """Probabilities, counts, draws and noise of no kind that smoothing knows."""
    g, no_number = seeded_at_0(), (0, -0.5, NAN, INF, "1", None, [0.5, 0.5])
    ways = {
        "radius": lambda p, s: smoothing.radius(p, s),
        "radius_between": lambda p, s: smoothing.radius_between(p, 0.1, s),
        "radius_between ": lambda p, s: smoothing.radius_between(0.9, p, s),
        "laplace_radius": lambda p, s: smoothing.laplace_radius(p, s),
    }
    for way, call in ways.items():
        name = f"smoothing.{way.strip()}"
        for p in (-0.1, 1.1, NAN, "0.9", None, [0.9], torch.tensor([0.9, NAN]), torch.tensor(1)):
            yield name, partial(call, p, 1.0), "probabilities from 0 to 1"
        for sigma in no_number:
            yield name, partial(call, 0.9, sigma), f"sigma > 0 {sigma!r}"
    name, exact_p = "smoothing.linear_probability", smoothing.linear_probability
    yield name, lambda: exact_p(0 * w, b, x, y, 1.0), "w not 0"
    yield name, lambda: exact_p(w, b, x, labels, 1.0), "labels −1 +1"
    yield name, lambda: exact_p(w, b, x, y, 0.0), "sigma > 0 0.0"
    name, bound = "smoothing.lower_bound", smoothing.lower_bound
    for count in (-1, 11, 3.0, NAN, "3", None, [3], torch.tensor([3, 11]), torch.tensor([3.0])):
        yield name, partial(bound, count, 10, 0.1), "whole counts from 0 to 10"
    for n in (0, -1, 2.5, None):
        yield name, partial(bound, 0, n, 0.1), f"n ≥ 1 {n!r}"
        yield "smoothing.largest_radius", partial(smoothing.largest_radius, n, 1.0, 0.1), f"n ≥ 1 {n!r}"
    for alpha in (0, 1, -0.1, 1.1, NAN, "0.1", None, [0.1]):
        yield name, partial(bound, 1, 2, alpha), f"0 < alpha < 1 {alpha!r}"
        yield "smoothing.largest_radius", partial(smoothing.largest_radius, 9, 1.0, alpha), "alpha < 1"
        for call in (
            partial(smoothing.Smooth(net, 1.0).predict, x, 9, alpha, g),
            partial(smoothing.Smooth(net, 1.0).certify, x, 9, 9, alpha, g),
        ):
            yield "smoothing.Smooth", call, f"0 < alpha < 1 {alpha!r}"
    for sigma in no_number:
        yield "smoothing.largest_radius", partial(smoothing.largest_radius, 9, sigma, 0.1), "sigma > 0"
        yield "smoothing.Smooth", partial(smoothing.Smooth, net, sigma), f"sigma > 0 {sigma!r}"

    name, pair = "smoothing.Smooth", Stack([net, net])
    yield name, lambda: smoothing.Smooth(None, 1.0), "a classifier NoneType"
    yield name, lambda: smoothing.Smooth(pair, 1.0), "no stack Stack"
    for noise in ("uniform", None):
        yield name, partial(smoothing.Smooth, net, 1.0, noise), f"gaussian laplace {noise!r}"
        yield "smoothing.noisy", partial(smoothing.noisy, 1.0, g, noise), f"gaussian laplace {noise!r}"
    some = smoothing.Smooth(net, 1.0)
    for draws in (0, -1, 2.5, None):
        for call in (
            partial(some.counts, x, draws, g),
            partial(some.predict, x, draws, 0.1, g),
            partial(some.certify, x, 9, draws, 0.1, g),
        ):
            yield name, call, f"draws ≥ 1 {draws!r}"
        yield name, partial(some.certify, x, draws, 9, 0.1, g), f"guesses ≥ 1 {draws!r}"
    for own in (None, 0, [g]):
        yield name, partial(some.counts, x, 9, own), "a torch.Generator"
    asked = {
        name: lambda v, model=net: smoothing.Smooth(model, 1.0).counts(v, 9, g),
        "smoothing.fixed_noise": lambda v, model=net: smoothing.fixed_noise(model, v, 1.0, 2, g)(v),
    }
    for name, call in asked.items():
        yield name, lambda c=call: c(x.numpy()), "x tensor ndarray"
        yield name, lambda c=call: c(x[:0]), "at least one (0, 2)"
        yield name, lambda c=call: c(x[0]), "(n, *shape) (2,)"
        yield name, lambda c=call: c((9 * x).long()), "floating-point int64"
        yield name, lambda c=call: c(with_entry(x, NAN)), "finite NaN"
        yield name, lambda c=call: c(with_entry(x, INF)), "finite infinity"
        yield name, lambda c=call: c(x, lambda v: net(v)[:, 0]), "logits K)"
        yield name, lambda c=call: c(x, lambda v: net(v)[:, :1]), "logits K ≥ 2 1)"
        yield name, lambda c=call: c(x, lambda v: net(v).argmax(1)), "logits int64"
    yield (
        "smoothing.Smooth",
        lambda: smoothing.Smooth(lambda v: net(v) * NAN, 1.0).counts(x, 9, g),
        "NaN",
    )

    name, held = "smoothing.fixed_noise", smoothing.fixed_noise(net, x, 1.0, 2, g)
    yield name, lambda: held(x[:3]), "the 4 samples noise 3"
    yield name, lambda: attacks.pgd(held, x, labels, cube, keep="first"), "the 4 samples noise"
    for draws in (0, -1, 2.5, None):
        yield name, partial(smoothing.fixed_noise, net, x, 1.0, draws, g), f"draws ≥ 1 {draws!r}"
        yield (
            "smoothing.smooth_adversarial",
            partial(smoothing.smooth_adversarial, attacks.pgd, cube, 1.0, draws, g),
            f"draws ≥ 1 {draws!r}",
        )
    trained = {
        "fixed_noise": lambda sigma=1.0, own=g: smoothing.fixed_noise(net, x, sigma, 2, own),
        "noisy": lambda sigma=1.0, own=g: smoothing.noisy(sigma, own)(net, x, labels),
        "smooth_adversarial": lambda sigma=1.0, own=g: smoothing.smooth_adversarial(
            attacks.fgsm, cube, sigma, 2, own
        )(net, x, labels),
    }
    for name, call in trained.items():
        for sigma in (-0.1, NAN, INF, "1", None, (0.1, -0.1)):
            yield f"smoothing.{name}", partial(call, sigma), f"sigma ≥ 0 {sigma!r}"
        yield f"smoothing.{name}", lambda c=call: c(own=None), "a generator None"
        yield f"smoothing.{name}", lambda c=call: c((0.1, 0.2, 0.3)), "one number for each 3 4"
        yield f"smoothing.{name}", lambda c=call: c(own=[g, g, g]), "as many rows 3 4"
    inner = smoothing.noisy(1.0, g), smoothing.smooth_adversarial(attacks.fgsm, cube, 1.0, 2, g)
    for name, f in zip(("noisy", "smooth_adversarial"), inner, strict=True):
        yield f"smoothing.{name}", lambda f=f: f(net, x, labels + 1), "labels from 0 to 2"
        yield f"smoothing.{name}", lambda f=f: f(net, x, labels[:3]), "labels"
        yield f"smoothing.{name}", lambda f=f: f(net, x, labels.tolist()), "y tensor list"
    name = "smoothing.smooth_adversarial"
    make = partial(smoothing.smooth_adversarial, sigma=1.0, draws=2, generator=g)
    yield name, lambda: make(attacks.fgsm, 0.1), "Ball 0.1"
    yield name, lambda: make(lambda *_: 0, cube)(net, x, labels), "return (4, 2) int"

    name, two = "smoothing.Certified", torch.tensor([0, -1])
    found = smoothing.Certified(two, torch.tensor([0.3, 0.0]), torch.tensor([0.9, 0.4]))
    for y_bad in (two, two[:1] + 1, two.abs().int(), two.abs().float()):
        yield name, partial(found.right, y_bad), "2 int64 labels"
    yield name, lambda: found.right([0, 1]), "y tensor list"
    for r in (-0.1, NAN, INF, "1"):
        yield name, partial(found.right, two.abs(), r), f"r ≥ 0 {r!r}"


def seeded_at_0():
    return torch.Generator().manual_seed(0)


def of_detection():
    """Logits, features, scores, thresholds and attacks that no detector takes."""
    g = torch.Generator().manual_seed(2)
    z, h = torch.rand(4, 3, generator=g), torch.rand(4, 5, generator=g)
    s = torch.rand(9, generator=g)
    takers = {
        "confidence": detection.confidence,
        "non_maximal_entropy": detection.non_maximal_entropy,
        "KernelDensity": lambda z: detection.KernelDensity(h, labels, 1.0)(z, h),
        "reverse_cross_entropy": lambda z: detection.reverse_cross_entropy(z, labels),
        "constrained": lambda z: detection.constrained(z, z[:, 0], labels),
        "weakest": lambda z: detection.weakest(z, z[:, 0], labels),
        "penalised": lambda z: detection.penalised(1.0)(z, z[:, 0], labels),
    }
    for taker, call in takers.items():
        name, least = f"detection.{taker}", 3 if taker == "non_maximal_entropy" else 2
        yield name, lambda c=call: c(z[:, 0, None]), f"logits (n, K) K ≥ {least} (4, 1)"
        yield name, lambda c=call: c((9 * z).long()), f"logits (n, K) K ≥ {least} int64"
        if taker in ("confidence", "non_maximal_entropy"):
            yield name, lambda c=call: c(z[0]), "logits (n, K) (3,)"
        if taker not in ("constrained", "weakest", "penalised"):
            yield name, lambda c=call: c(z.numpy()), "z tensor ndarray"
    yield (
        "detection.non_maximal_entropy",
        lambda: detection.non_maximal_entropy(z[:, :2]),
        "K ≥ 3 (4, 2)",
    )
    losses_ = {
        "reverse_cross_entropy": detection.reverse_cross_entropy,
        "constrained": lambda z, y: detection.constrained(z, z[:, 0], y),
        "weakest": lambda z, y: detection.weakest(z, z[:, 0], y),
        "penalised": lambda z, y: detection.penalised(1.0)(z, z[:, 0], y),
    }
    for taker, call in losses_.items():
        name = f"detection.{taker}"
        yield name, lambda c=call: c(z, labels + 1), "labels from 0 to 2 1 to 3"
        yield name, lambda c=call: c(z, labels[:3]), "labels (4,) (3,)"
        yield name, lambda c=call: c(z, labels.float()), "int64 labels float32"
        yield name, lambda c=call: c(z, labels.tolist()), "y tensor list"

    name = "detection.reversed_logits"
    for other in (nn.Sequential(), nn.Sequential(net, nn.ReLU()), nn.Linear(2, 3), None, lambda v: v):
        yield name, partial(detection.reversed_logits, other), "nn.Sequential ends with a Linear got"
    name, bound = "detection.reversal_bounds", detection.reversal_bounds
    for classes in (1, 0, 2.5, "3", None):
        yield name, partial(bound, 0.01, classes), f"classes ≥ 2 {classes!r}"
    for alpha in (-0.1, 0.5, 1, NAN, INF, "0.1", None):
        yield name, partial(bound, alpha, 3), f"0 ≤ alpha < 1/2 {alpha!r}"

    name, dense = "detection.KernelDensity", detection.KernelDensity
    for wrong in (labels[:3], labels[:, None], labels.float(), labels.int()):
        yield name, lambda y=wrong: dense(h, y, 1.0), f"labels (4,) int64 {wrong.dtype}"
    yield name, lambda: dense(h, labels.tolist(), 1.0), "labels tensor list"
    for bandwidth in (0, -1.0, NAN, INF, "1", None):
        yield name, lambda b=bandwidth: dense(h, labels, b), f"bandwidth > 0 {bandwidth!r}"
    absent = dense(h, 0 * labels, 1.0)
    yield name, lambda: absent(-torch.eye(3), h[:3]), "features of every class got none of [1]"
    name, local = "detection.LocalDimension", detection.LocalDimension
    for k in (0, 1, 5, 2.0, "2", None):
        yield name, lambda k=k: local(h, k), f"neighbours from 2 to 4 {k!r}"
    builders = {
        "KernelDensity": lambda h: dense(h, labels, 1.0),
        "LocalDimension": lambda h: local(h, 2),
    }
    for builder, build in builders.items():
        name, score = f"detection.{builder}", build(h)
        yield name, lambda f=build: f(h.tolist()), "features tensor list"
        for wrong in (h[0], h[:0], h[None], (9 * h).long()):
            words = f"features (m, d) at least one {wrong.dtype} {tuple(wrong.shape)}"
            yield name, lambda f=build, w=wrong: f(w), words
        for value in (NAN, INF):
            yield name, lambda f=build, v=value: f(with_entry(h, v)), "finite features NaN infinity"
        for wrong in (h[:, :3], h[0], h.long()):
            words = f"features (n, 5) {wrong.dtype} {tuple(wrong.shape)}"
            yield name, lambda f=score, w=wrong: f(z, w), words
        yield name, lambda f=score: f(z, h.numpy()), "h tensor ndarray"
    name, both = "detection.two_sided", detection.two_sided
    for ends in ((1, 1), (2, 1), (NAN, 1), (0, NAN), ("0", 1), (None, 1)):
        yield name, partial(both, detection.confidence, *ends), f"low < high {ends[0]!r} {ends[1]!r}"

    name, at = "detection.threshold", detection.threshold
    for rate in (0, 0.09, 1, 1.5, -0.1, NAN, "0.5", None):
        yield name, partial(at, s, rate), f"false_alarms from 1/10 to below 1 {rate!r}"
    for level in (0, 1, 95, NAN, "0.95", None):
        yield name, partial(at, s, 0.5, level), f"0 < level < 1 {level!r}"
    pairs = {
        "threshold": [lambda t: at(t, 0.5)],
        "auc": [lambda t: detection.auc(t, s), lambda t: detection.auc(s, t)],
        "roc": [lambda t: detection.roc(t, s), lambda t: detection.roc(s, t)],
    }
    for taker, calls in pairs.items():
        name = f"detection.{taker}"
        for call in calls:
            yield name, lambda c=call: c(s.tolist()), "scores tensor list"
            for wrong in (s[:0], s[None], s[0], labels):
                words = f"scores (n,) at least one {wrong.dtype} {tuple(wrong.shape)}"
                yield name, lambda c=call, w=wrong: c(w), words
            for value in (NAN, INF, -INF):
                yield name, lambda c=call, v=value: c(with_entry(s, v)), "finite scores NaN infinity"

    name, make = "detection.Rejecting", detection.Rejecting
    for other in (nn.Sequential(), nn.Sequential(nn.Linear(2, 3)), nn.Linear(2, 3), None, lambda v: v):
        yield name, partial(make, other), "nn.Sequential of two layers or more got"
    for score, value in (
        (None, 0.0),
        (0.5, 0.0),
        (detection.confidence, NAN),
        (detection.confidence, "0"),
    ):
        yield name, partial(make, net, score, value), f"a score and a threshold {value!r}"
    for wrong in (lambda z, h: z, lambda z, h: z.mean(), lambda z, h: None, lambda z, h: z[:2, 0]):
        yield name, lambda f=wrong: make(net, f).accepts(x), "a score (4,) one a sample got"
    refusing = make(net, threshold=0.1)
    for method in ("judged", "fooled"):
        yield name, lambda m=method: getattr(refusing, m)(x, labels + 1), "labels from 0 to 2 1 to 3"
        yield name, lambda m=method: getattr(refusing, m)(x.tolist(), labels), "x tensor list"
    yield name, lambda: refusing.accepts(x.numpy()), "x tensor ndarray"

    few = partial(attacks.pgd, steps=1)
    knowing = {
        "highest": lambda *given: detection.highest(*given, [few]),
        "climb": detection.climb(detection.constrained, few),
        "targeted": detection.targeted(few),
        "matching": detection.matching(x, labels, few),
    }
    for taker, call in knowing.items():
        name = f"detection.{taker}"
        for other in (net, None, lambda v: v @ W.T):
            yield name, lambda c=call, m=other: c(m, x, labels, cube), "a Rejecting got"
        yield name, lambda c=call: c(refusing, x.numpy(), labels, cube), "x tensor ndarray"
        yield name, lambda c=call: c(refusing, x, None, cube), "y tensor NoneType"
        yield name, lambda c=call: c(refusing, x, labels[:3], cube), "labels (3,)"
        yield name, lambda c=call: c(refusing, x, labels + 1, cube), "labels from 0 to 2 3"
        yield name, lambda c=call: c(refusing, x, labels, 0.1), "Ball 0.1"
        yield name, lambda c=call: c(refusing, x + 1, labels, cube), "x must lie in the box"
    name, highest = "detection.highest", partial(detection.highest, refusing, x, labels, cube)
    for wrong in (lambda *_: None, lambda *_: x[:, :1]):
        yield name, lambda a=wrong: highest([a]), "return δ (4, 2)"
    yield name, lambda: highest([lambda m, x, y, ball: 0.2 + 0 * x]), "δ in samples outside"
    mean = detection.climb(lambda z, g, y: g.mean(), few)
    yield "detection.climb", lambda: mean(refusing, x, labels, cube), "a loss (4,) one a sample ()"
    for weight in (-0.1, NAN, INF, "1", None):
        yield "detection.penalised", partial(detection.penalised, weight), f"weight ≥ 0 {weight!r}"
    name, match = "detection.matching", detection.matching
    yield name, lambda: match(x.tolist(), labels), "images tensor list"
    yield name, lambda: match(x, labels.tolist()), "labels tensor list"
    for images, own in ((x, labels[:3]), (x[:3], labels), (x[:0], labels[:0]), (x, labels.float())):
        yield name, partial(match, images, own), "as many images as labels"
    yield name, partial(match, x, labels[:, None]), "as many images as labels (4, 1)"
    for images in (x[:, :1], x.double()):
        other = match(images, labels, few)
        yield name, lambda a=other: a(refusing, x, labels, cube), "images like x float32 (4, 2)"
    alike = match(x, 0 * labels, few)
    yield name, lambda: alike(refusing, x, labels, cube), "images of several classes [0]"
    for targets in (0, -1, 1.5, "2", None):
        yield name, partial(match, x, labels, few, targets), f"targets ≥ 1 {targets!r}"
        yield "detection.targeted", partial(detection.targeted, few, targets), f"targets ≥ 1 {targets!r}"

    name, proved = "detection.never_fooled", detection.never_fooled
    led = torch.tensor([[INF, 1.0, 2.0], [-1.0, INF, 0.5]])
    yield name, lambda: proved(led[0], 0.5), "margins (n, K) one +∞ (3,)"
    yield name, lambda: proved(torch.ones(2, 2), 0.5), "one +∞ each row"
    yield name, lambda: proved(torch.full((2, 2), INF), 0.5), "one +∞ each row"
    yield name, lambda: proved(led.tolist(), 0.5), "margins tensor list"
    for t in (INF, -INF, NAN, "0.5", None):
        yield name, partial(proved, led, t), f"a finite threshold {t!r}"


def of_dent():
    """Logits, widths and choices that no defense at test time takes."""
    z, image, width = torch.rand(4, 3), torch.rand(4, 1, 2, 3), torch.tensor(1.0)
    for function in (losses.entropy, losses.information):
        name = f"losses.{function.__name__}"
        yield name, lambda f=function: f(z[0]), "logits (n, K) (3,)"
        yield name, lambda f=function: f(z[:, :1]), "K ≥ 2 (4, 1)"
        yield name, lambda f=function: f((9 * z).long()), "logits int64"
    name = "dent.blur"
    yield name, lambda: dent.blur(x, width), "images (n, C, H, W) (4, 2)"
    yield name, lambda: dent.blur(image[0], width), "images (n, C, H, W) (1, 2, 3)"
    yield name, lambda: dent.blur(image, torch.ones(3)), "variance () or (n,) (4, 1, 2, 3) (3,)"
    yield name, lambda: dent.blur(image, torch.ones(4, 1)), "variance () or (n,) (4, 1)"
    yield name, lambda: dent.blur(image, -width), "variance ≥ 0 -1.0"
    yield name, lambda: dent.blur(image, with_entry(torch.ones(4), -0.5)), "variance ≥ 0 -0.5"
    yield name, lambda: dent.blur(image, NAN * width), "variance ≥ 0 nan"
    yield name, lambda: dent.blur(image, with_entry(torch.ones(4), NAN)), "variance ≥ 0 nan"

    name, norms = "dent.Dent", models.mlp([2, 4, 3], norm=True)
    make = partial(dent.Dent, norms)
    yield name, lambda: make(steps=-1), "steps ≥ 0 -1"
    for lr in (0, -1.0, NAN, INF):
        yield name, lambda lr=lr: make(lr=lr), f"lr > 0 {lr}"
    for scope in ("each", None):
        yield name, lambda s=scope: make(scope=s), f"scope batch sample {scope!r}"
    for adapt in ("output", None):
        yield name, lambda a=adapt: make(adapt=a), f"adapt model input both {adapt!r}"
    for optimiser in ("rmsprop", None):
        yield name, lambda o=optimiser: make(optimiser=o), f"optimiser adamod sgd {optimiser!r}"
    bare = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    for model in (net, bare):
        for adapt in ("model", "both"):
            words = "normalisation layers weights none"
            yield name, lambda m=model, a=adapt: dent.Dent(m, adapt=a), words
    for adapt in ("input", "both"):
        blind = make(adapt=adapt)
        yield name, lambda d=blind: d(x), "images (n, C, H, W) (4, 2)"
    for adapt, shaped in (("model", x), ("input", image[..., :2, :1]), ("both", image[..., :2, :1])):
        held = make(scope="sample", adapt=adapt).adapt(shaped)
        for some in (shaped[:3], shaped[:1], torch.cat([shaped, shaped])):
            words = f"the 4 samples adapted got {len(some)}"
            yield "dent.Adapted", lambda f=held, s=some: f(s), words


def of_stacks():
    """Networks that cannot stand side by side, and rows that cannot be dealt out to them."""
    alike, wide = models.mlp([2, 3, 2]), models.mlp([2, 4, 2])
    yield "stack.Stack", lambda: stack.Stack([]), "same layers none"
    yield "stack.Stack", lambda: stack.Stack([alike, wide]), "same layers"
    yield "stack.Stack", lambda: stack.Stack([nn.Sequential(nn.PReLU())]), "Linear PReLU"
    yield "stack.Stack", lambda: stack.Stack([alike, alike])(torch.zeros(3, 2)), "2 networks 3"
    draws = [torch.Generator(), torch.Generator()]
    yield "stack.drawn", lambda: stack.drawn(cube.sample, torch.zeros(3, 2), draws), "2 networks 3"
    yield "stack.drawn", lambda: stack.drawn(cube.sample, torch.zeros(3, 2), []), "0 networks 3"


def of_adaptive_attacks():
    """Numbers of draws and rounds, and tables, that make no sense."""
    for number in (0, -1):
        yield "adaptive.eot", lambda m=number: adaptive.eot(attacks.fgsm, m), f"draws ≥ 1 {number}"
        yield "adaptive.gmsa", lambda r=number: adaptive.gmsa(attacks.fgsm, r), f"rounds ≥ 1 {number}"
    name, defense = "evaluation.table", dent.Dent(models.mlp([2, 4, 3], norm=True), steps=1)
    whole = partial(evaluation.table, whole_batches=True)
    yield from judged(name, lambda x, y, ball, a: whole({"a": [defense]}, x, y, ball, {"b": a}))

    def call(rows=None, given=None, **options):
        rows, given = {"a": [defense]} if rows is None else rows, given or {"FGSM": attacks.fgsm}
        evaluation.table(rows, x, labels, cube, given, whole_batches=True, **options)

    yield name, lambda: call({}), "at least one"
    yield name, lambda: call({"a": []}), "at least one {'a': 0}"
    unequal = {"a": [defense], "b": [defense, defense]}
    yield name, lambda: call(unequal), "as many {'a': 1, 'b': 2}"
    stacked = {"a": [Stack([net, net])]}
    separate = partial(evaluation.table, stacked, x, labels, cube, {"FGSM": attacks.fgsm})
    yield name, separate, "expected whole_batches for a stack"
    for taken in ("clean", "worst"):
        yield name, lambda t=taken: call(given={t: attacks.fgsm}), f"different names {taken}"
    for size in (0, -1):
        yield name, lambda s=size: call(batch_size=s), f"batch_size ≥ 1 {size}"
    yield (
        name,
        lambda: call(given={"mine": lambda d, x, y, ball: x[:, :1] * 0}),
        "mine return (4, 2) (4, 1)",
    )
    yield name, lambda: call(given={"mine": lambda d, x, y, ball: NAN * x}), "finite NaN"


def of_checkpoints():
    """Files that no run goes on from, and folders that hold none."""
    folder = Path(tempfile.mkdtemp())
    a_run = partial(fit, checkpoint=folder / "run")
    a_run()
    state = torch.load(folder / "run", weights_only=True)
    files = {
        "weights": models.mlp([2, 1]).state_dict(),
        "model": {"model": models.mlp([2, 1]).state_dict()},
        "tensor": torch.ones(3),
        "list": [1, 2],
        "half": {k: v for k, v in state.items() if k != "state"},
    }
    for name, content in files.items():
        torch.save(content, folder / name)
    broken = {"text": b"hello", "empty": b"", "cut": (folder / "run").read_bytes()[:99]}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    for name in (*files, *broken):
        yield "training.fit", lambda n=name: fit(checkpoint=folder / n), f"{name} not a checkpoint"
    for changed in ({"epochs": 2}, {"lr": 0.2}, {"lr": lambda done: 0.1}, {"batch_size": 3}):
        yield "training.fit", lambda c=changed: a_run(**c), "run another expected"
    yield "training.fit", lambda: a_run((x[:2], y[:2])), "run another expected"
    watched = {"watch": {"a": lambda m: 1.0}, "best": "a"}
    yield "training.fit", lambda: a_run(**watched), "run another expected"
    for widths in ([2, 3, 1], [3, 1], [2, 2]):
        yield "training.fit", lambda w=widths: a_run(model=models.mlp(w)), "another network"
    yield "training.fit", lambda: fit(checkpoint=folder / "no" / "run"), "folder that exists"


def judged(name, judge):
    """What a table and the search for symptoms refuse alike."""

    def call(x=x, y=labels, ball=cube, attack=attacks.fgsm):
        judge(x, y, ball, attack)

    yield name, lambda: call(y=labels[:3]), "labels 4 3"
    yield name, lambda: call(y=labels + 1), "labels from 0 to 2"
    yield name, lambda: call(x=x[:0], y=labels[:0]), "at least one 0"
    yield name, lambda: call(x=x + 1), "x must lie in the box [0, 1]"
    yield name, lambda: call(attack=lambda *_: 0.2 * torch.ones_like(_[1])), "outside Ball"
    yield name, lambda: call(ball=Ball(INF, -0.1)), "eps ≥ 0 -0.1"


def of_tables():
    """Models, names and proofs that make no table."""
    name = "evaluation.table"
    yield from judged(name, lambda x, y, ball, a: evaluation.table({"a": [net]}, x, y, ball, {"b": a}))

    def call(rows=None, given=None, proofs=None):
        rows, given = {"a": [net]} if rows is None else rows, given or {"FGSM": attacks.fgsm}
        evaluation.table(rows, x, labels, cube, given, proofs)

    yield name, lambda: call({"a": net}), "a list of networks got a network"
    yield name, lambda: call({"a": [net], "b": net}), "a list of networks got a network"
    yield name, lambda: call({}), "at least one"
    yield name, lambda: call({"a": []}), "at least one {'a': 0}"
    yield name, lambda: call({"a": [net], "b": [net, net]}), "as many {'a': 1, 'b': 2}"
    for taken in ("clean", "worst"):
        yield name, lambda t=taken: call(given={t: attacks.fgsm}), f"different names {taken}"
        yield name, lambda t=taken: call(proofs={t: lambda *_: labels > 9}), f"different names {taken}"
    yield name, lambda: call(proofs={"FGSM": lambda *_: labels > 9}), "different names FGSM"
    for answer in (torch.zeros(4), torch.zeros(1).bool(), torch.zeros(4, 3).bool(), torch.tensor(True)):
        proof = {"mine": lambda *_, a=answer: a}
        words = f"mine (4,) bool {answer.dtype} {tuple(answer.shape)}"
        yield name, lambda p=proof: call(proofs=p), words
    yield name, lambda: call(proofs={"mine": lambda *_: labels > -1}), "mine a right on the samples"


def of_symptoms():
    """What masking refuses."""
    name, masking = "diagnostics.masking", diagnostics.masking
    yield from judged(name, lambda x, y, ball, a: masking(net, x, y, ball, a, queries=5))
    yield name, lambda: masking(net, x, labels, Ball(INF, 0.1)), "ball with a box"
    yield name, lambda: masking(net, x, labels, cube, queries=0), "queries ≥ 1 0"
    W = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, -1.0]])
    right = torch.tensor([[0.9, 0.2], [0.2, 0.9]]), torch.tensor([0, 1])  # or no attack is asked
    deaf = partial(masking, lambda v: (v > 0.5).float() @ W, *right, cube)
    yield name, deaf, "does not depend on x autograd"
    yield name, lambda: deaf(partial(attacks.square, queries=5)), "does not depend on x autograd"


def of_landscapes():
    """What a landscape refuses."""
    name, draw = "diagnostics.landscape", partial(diagnostics.landscape, net)
    yield name, lambda: draw(x, labels, ball, eps), "one sample 4"
    yield name, lambda: draw(x[:1], labels[:2], ball, eps), "1 labels (2,)"
    yield name, lambda: draw(x[:1], labels[:1] + 9, ball, eps), "labels from 0 to 2 9"
    yield name, lambda: draw(x[:1], labels[:1], ball, torch.tensor(1.0)), "distances (t,) ()"
    yield name, lambda: draw(x[:1], labels[:1], ball, torch.ones(2, 2)), "distances (t,) (2, 2)"
    yield name, lambda: draw(with_entry(x, NAN)[:1], labels[:1], ball, eps), "finite NaN"


class Returns(nn.Module):
    """A network that hands its logits over in something else."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = models.mlp([4, 5, 3], norm=True), wrap

    def forward(self, x):
        return self.wrap(self.network(x))


def of_kinds():
    """What users pass for a tensor, a ball, a model or a list, by every function that takes one."""
    wide = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    array, listed = wide.numpy(), labels.tolist()
    good = {"model": models.mlp([4, 5, 3]), "x": wide, "y": labels, "ball": cube}
    wrong = [("x", array, "tensor ndarray"), ("y", labels.numpy(), "tensor ndarray")]
    wrong += [("y", listed, "tensor list"), ("ball", 0.1, "Ball 0.1"), ("ball", None, "Ball None")]
    loose = [("model", Returns(lambda z: (z, z)), "model to return logits tuple")]
    loose += [("model", Returns(lambda z: {"logits": z}), "model to return logits dict")]
    loose += [("model", Returns(lambda z: None), "model to return logits NoneType")]
    for calls, cases in ((ASKED, wrong + loose), (WEIGHED, wrong)):
        for title, call in calls.items():
            some = good | ({"model": Returns(lambda z: z)} if calls is ASKED else {})
            for which, value, words in cases:
                if which in takes(call):
                    given = [(some | {which: value})[name] for name in takes(call)]
                    yield title.split(" ")[0], partial(call, *given), words

    for name, attack in (("fgsm", attacks.fgsm), ("square", attacks.square), ("pgd", attacks.pgd)):
        asked = partial(attack, net, x, labels, cube)
        yield f"attacks.{name}", lambda f=asked: f(targets=3), "targets tensor int"
        yield f"attacks.{name}", lambda a=attack: a(None, x, labels, cube), "a model NoneType"
    yield "attacks.pgd", lambda: attacks.pgd(net, x, labels, cube, start=0), "start tensor int"
    for given in (None, "pgd", ["pgd"], [attacks.pgd, None]):
        judged = partial(evaluation.survivors, net, x, labels, cube)
        yield "evaluation.survivors", lambda f=judged, g=given: f(g), "a list of attacks got"
    judged = partial(evaluation.table, {"n": [net]}, x, labels)
    yield "evaluation.table", lambda f=judged: f(cube, {"pgd": None}), "pgd a function NoneType"
    wrong = {"proof": lambda m, x, y, b: [True] * len(x)}
    yield "evaluation.table", lambda f=judged, w=wrong: f(cube, {}, w), "proof a tensor list"
    for sizes in ((10,), (3,), (3, 2)):
        other = Ball(INF, torch.full(sizes, 0.1), (0, 1))
        yield "evaluation.table", lambda f=judged, o=other: f(o, {"pgd": attacks.pgd}), "eps"
    curve = partial(evaluation.robust_accuracy_curve, net, x, labels, cube, [attacks.pgd])
    yield "evaluation.robust_accuracy_curve", lambda f=curve: f(0.1), "radii in increasing order 0.1"
    double = partial(exact.certify, net, x.double(), labels, cube)
    yield "exact.certify", double, "the model's type float32 float64"
    for name, value in (("epochs", 1.5), ("batch_size", None), ("lr", None), ("lr", "0.1")):
        yield "training.fit", lambda n=name, v=value: fit(**{n: v}), "whole numbers epochs batch_size lr"
    judges = {
        "evaluation.survivors": lambda a: evaluation.survivors(net, x, labels, cube, a),
        "evaluation.robust_accuracy": lambda a: evaluation.robust_accuracy(net, x, labels, cube, a),
        "evaluation.robust_accuracy_curve": lambda a: evaluation.robust_accuracy_curve(
            net, x, labels, cube, a, [0.1]
        ),
    }
    nothing = lambda *_: None  # noqa: E731
    for name, judge in judges.items():
        yield name, lambda f=judge: f(attacks.pgd), "list of attacks got function pgd"
        yield name, lambda f=judge: f({"PGD": attacks.pgd}), "list of attacks got dict"
        yield name, lambda f=judge: f([nothing]), "return NoneType"
        yield name, lambda f=judge: f([lambda *_: x.numpy()]), "return numpy.ndarray"
    name, judge = "evaluation.table", evaluation.table
    for attack in (attacks.pgd, [attacks.pgd]):
        yield name, lambda a=attack: judge({"a": [net]}, x, labels, cube, a), "attacks by name"
    yield name, lambda: judge([net], x, labels, cube, {}), "models by name got list"
    yield name, lambda: judge({"a": lambda v: v}, x, labels, cube, {}), "list of networks"
    yield name, lambda: judge({"a": [net]}, x, labels, cube, {"b": nothing}), "return NoneType"
    yield name, lambda: judge({"a": [net]}, x, labels, cube, {}, nothing), "proofs by name function"
    yield "training.adversarial", lambda: training.adversarial(nothing, cube)(net, x, labels), "NoneType"
    yield "adaptive.gmsa", lambda: ASKED["adaptive.gmsa"](net, x, labels, 0.1), "Ball 0.1"

    pairs = torch.utils.data.TensorDataset(x, y)
    for given in (torch.utils.data.DataLoader(pairs), pairs, (x, y, y), tiny, x):
        yield "training.fit", lambda d=given: fit(d), "data two tensors inputs labels"
    yield "training.fit", lambda: fit((x.numpy(), y.numpy())), "two tensors numpy.ndarray"
    yield "training.fit", lambda: fit((x, y.tolist())), "two tensors list"
    yield "training.fit", lambda: fit(model=lambda v: v), "nn.Module function"
    frozen = models.linear(2, 1).requires_grad_(False)
    yield "training.fit", lambda: fit(model=frozen), "parameters 0 of 2"
    unmoved = lambda m, x, y: m(x).detach()[:, 0]  # noqa: E731
    yield "training.fit", lambda: fit(inner=unmoved), "depends on parameters 2 of 2"
    yield "training.fit", lambda: fit(inner=lambda m, x, y: 1.0), "inner tensor float"

    for eps in (None, "0.1", [None], 1j, Ball):
        yield "threat.Ball", lambda e=eps: Ball(2, e), "eps must be a finite number ≥ 0"
    for p in ([2], np.array([2]), torch.tensor(2), None):
        yield "threat.Ball", lambda p=p: Ball(p, 0.1), "p must be"
    channels = torch.zeros(3), torch.ones(3)
    for box in (channels, 1, (0,), (0, 0.5, 1), "01", (None, 1), np.zeros((2, 3)), ((0, 0), (1, 1))):
        yield "threat.Ball", lambda b=box: Ball(2, 0.1, b), "box two numbers (lo, hi)"
    for method in ("support", "argmax", "project", "contains", "sample", "region", "radii"):
        yield f"threat.Ball.{method}", lambda m=method: getattr(ball, m)(x.numpy()), "tensors ndarray"
    for method in ("support", "argmax", "project", "contains"):
        both = lambda m: getattr(boxed, m)(x, x.numpy())  # noqa: E731
        yield f"threat.Ball.{method}", lambda m=method, f=both: f(m), "tensors ndarray"
    for function in (losses.margin, losses.log_odds, losses.cross_entropy, losses.correct):
        at = f"losses.{function.__name__}"
        yield at, lambda f=function: f(torch.rand(4, 3), labels.tolist()), "y tensor list"
        yield at, lambda f=function: f(np.zeros((4, 3)), labels), "z tensor numpy.ndarray"
    yield "models.check_logits", lambda: models.check_logits(x[:, :1], x), "K ≥ 2 (4, 1)"
    yield "models.logits", lambda: models.logits(lambda v: v.long(), x), "tensor logits int64"
    yield "dent.blur", lambda: dent.blur(np.zeros((1, 1, 2, 2)), torch.tensor(1.0)), "x tensor ndarray"
    yield "dent.blur", lambda: dent.blur(torch.zeros(1, 1, 2, 2), 1.0), "variance tensor float"


def slider(*controls, draw=lambda v: plt.figure(), alt=str):
    return widgets.slider(draw, alt, *controls, caption="c")


def predict(question="q", answer=1, why="w", low=0, high=10, **options):
    return widgets.predict(question, answer, why=why, low=low, high=high, **options)


def choose(answer, choices):
    return predict(answer=answer, choices=choices, low=None, high=None)


def point(answer, alt="a square", scale="linear"):
    ax = plt.figure().subplots()
    ax.set(xscale=scale)
    return predict(answer=answer, picture=ax, alt=alt, low=None, high=None)


def table():
    """(public name, the call that fails, words its message must contain)."""
    yield "threat.Ball", lambda: Ball(3, 0.1), "p must be 1, 2 or math.inf 3"
    yield "threat.Ball", lambda: Ball(0, 0.1), "p must be"
    yield "threat.Ball", lambda: Ball(NAN, 0.1), "p must be nan"
    yield "threat.Ball", lambda: Ball("inf", 0.1), "p must be 'inf'"
    yield "threat.Ball", lambda: Ball(2, -0.1), "eps ≥ 0 -0.1"
    yield "threat.Ball", lambda: Ball(2, NAN), "eps finite nan"
    yield "threat.Ball", lambda: Ball(2, -INF), "eps finite -inf"
    yield "threat.Ball", lambda: Ball(2, torch.tensor([[0.1, INF]])), "eps finite one per entry inf"
    yield "threat.Ball", lambda: Ball(2, torch.tensor([0.1, -0.1])), "eps ≥ 0"
    yield "threat.Ball", lambda: Ball(2, torch.tensor([0.1, NAN])), "eps finite"
    yield "threat.Ball", lambda: Ball(2, torch.tensor([[0.1, NAN]])), "eps one per entry nan"
    yield "threat.Ball", lambda: Ball(2, 0.1, (1, 0)), "box lo < hi (1, 0)"
    yield "threat.Ball", lambda: Ball(2, 0.1, (0, 0)), "box lo < hi"
    yield "threat.Ball", lambda: Ball(2, 0.1, (0, NAN)), "box lo < hi nan"
    yield "threat.Ball", lambda: Ball(2, 0.1, (-INF, 1)), "box lo < hi inf"
    endless = Ball(2, INF), Ball(2, torch.tensor([0.1, INF, 0.1, 0.1]))
    for method in ("support", "argmax", "sample", "region"):
        for ball_bad in endless:
            call = lambda m=method, at=ball_bad: getattr(at, m)(x)  # noqa: E731
            yield f"threat.Ball.{method}", call, "finite eps a box no end"
    for method in ("support", "argmax"):
        call = lambda m=method: getattr(Ball(2, INF, (0, 1)), m)(x)  # noqa: E731
        yield f"threat.Ball.{method}", call, "finite eps x, for the box"
    for method in ("support", "argmax", "project", "contains", "sample", "region"):
        yield from batches(method)
        yield from inputs_in_the_box(method)

    plain = (
        losses.cross_entropy,
        losses.log_odds,
        losses.log_odds_slope,
        losses.margin,
        losses.correct,
        losses.margin_loss,
        losses.dlr,
    )
    for function in plain:
        yield from logits_and_labels(function)
    yield from logits_and_labels(losses.targeted)
    yield from logits_and_labels(losses.targeted_all)
    name, worst = "losses.worst_logits", losses.worst_logits
    led = torch.tensor([[INF, 1.0], [2.0, INF]])
    yield name, lambda: worst(led[0]), "margins (n, K) (2,)"
    yield name, lambda: worst(led[:, :, None]), "margins (n, K) (2, 2, 1)"
    yield name, lambda: worst(torch.ones(2, 2)), "one +∞ each row"
    yield name, lambda: worst(torch.full((2, 2), INF)), "one +∞ each row"
    yield name, lambda: worst(torch.ones(2, 2, dtype=torch.int64)), "one +∞ int64"
    ratio = partial(losses.targeted_dlr, torch.rand(4, 4), labels)
    yield "losses.targeted_dlr", lambda: ratio(labels), "targets differ labels both the same"
    yield "losses.targeted_dlr", lambda: ratio(labels + 5), "from 0 to 3 5 to 7"
    few = torch.rand(4, 3)
    yield "losses.targeted_dlr", lambda: losses.targeted_dlr(few, labels, labels), "K ≥ 4 (4, 3)"
    yield "losses.dlr", lambda: losses.dlr(torch.rand(4, 2), labels % 2), "K ≥ 3 (4, 2)"
    name, apart, z = "losses.divergence", losses.divergence, torch.rand(4, 3)
    yield name, lambda: apart(z, z[:3]), "(4, 3) (3, 3)"
    yield name, lambda: apart(z, z[:1]), "(4, 3) (1, 3)"
    yield name, lambda: apart(z[0], z[0]), "logits (n, K) (3,)"
    yield name, lambda: apart(z[:, :1], z[:, :1]), "K ≥ 2 (4, 1)"
    yield name, lambda: apart(z.long(), z.long()), "logits int64"
    yield name, lambda: apart(z, z.long()), "logits int64"
    yield name, lambda: apart(z.long(), z), "logits int64"

    yield from attacked("attacks.fgsm", attacks.fgsm)
    yield from attacked("attacks.friendly", partial(attacks.friendly, steps=3))
    for keep in ("best", "first", "last"):
        yield from attacked("attacks.pgd", partial(attacks.pgd, steps=3, keep=keep))
    yield from attacked("attacks.apgd", partial(attacks.apgd, steps=3))
    for p in (2, INF):
        square = lambda m, x, y, b, p=p, **more: attacks.square(  # noqa: E731
            m, x, y, Ball(p, b.eps, b.box), queries=5, **more
        )
        yield from attacked("attacks.square", square, climbs=False)
    yield from attacked("attacks.spsa", partial(attacks.spsa, steps=2, samples=2), climbs=False)
    yield from attacked("attacks.rays", partial(attacks.rays, queries=5), climbs=False)
    yield from attacked("attacks.ilcm", partial(attacks.ilcm, steps=3), loss=False)
    yield from attacked("attacks.jsma", attacks.jsma, loss=False)
    for name, options in (("deepfool", {}), ("ddn", {}), ("cw", {"searches": 1}), ("fab", {})):
        attack = partial(getattr(attacks, name), **options)
        yield from attacked(f"attacks.{name}", partial(attack, steps=3), loss=False)
        on = Ball(2, 0.1, (0, 1))
        yield f"attacks.{name}", lambda f=attack, b=on: f(net, x, labels, b, steps=0), "steps ≥ 1 0"
        if name in ("ddn", "cw"):
            yield f"attacks.{name}", lambda f=attack: f(net, x, labels, cube), "p = 2 p = inf"
    name, cw = "attacks.cw", partial(attacks.cw, net, x, labels)
    yield name, lambda: cw(ball), "a box Ball"
    yield name, lambda: cw(boxed, searches=0), "searches ≥ 1 0"
    for confidence in (-0.1, NAN, INF):
        yield name, lambda k=confidence: cw(boxed, confidence=k), f"confidence ≥ 0 {confidence}"
    yield "attacks.fab", lambda: attacks.fab(net, x, labels, cube, restarts=0), "restarts ≥ 1 0"
    name, pgd = "attacks.pgd", partial(attacks.pgd, net, x, labels, cube)
    yield name, lambda: pgd(steps=-1), "steps ≥ 0 -1"
    yield name, lambda: pgd(restarts=0), "restarts ≥ 1 0"
    yield name, lambda: pgd(keep="all"), "best first last 'all'"
    yield name, lambda: pgd(keep=None), "best first last None"
    for size in (0, -0.1, NAN, INF):
        yield name, lambda size=size: pgd(step_size=size), f"step_size > 0 {size}"
    for start, words in (
        (torch.ones(4, 2), "start in Δ(x) outside Ball"),
        (torch.zeros(2), "start like x (4, 2) (2,)"),
        (torch.zeros(1, 2), "start like x (4, 2) (1, 2)"),
        (torch.zeros(4, 2).double(), "start like x float32 float64"),
        (torch.zeros(4, 2).long(), "start like x float32 int64"),
        (torch.full((4, 2), NAN), "finite NaN"),
    ):
        yield name, lambda s=start: pgd(start=s), words
    name, apgd = "attacks.apgd", partial(attacks.apgd, net, x, labels, cube)
    yield name, lambda: apgd(steps=0), "steps ≥ 1 0"
    yield name, lambda: apgd(restarts=0), "restarts ≥ 1 0"
    name, square = "attacks.square", partial(attacks.square, net, x, labels)
    yield name, lambda: square(Ball(1, 0.1)), "p = 2 or inf 1"
    yield name, lambda: square(cube, queries=0), "queries ≥ 1 0"
    yield name, lambda: square(cube, keep="last"), "best first 'last'"
    for attack in (attacks.bim, attacks.ilcm):
        steps = partial(attack, net, x, labels, cube, steps=0)
        yield f"attacks.{attack.__name__}", steps, "steps ≥ 1 0"
    name, jsma = "attacks.jsma", partial(attacks.jsma, net, x, labels, cube)
    for theta in (0, -1, NAN, INF):
        yield name, lambda t=theta: jsma(theta=t), f"theta > 0 {theta}"
    for share in (0, -0.1, 1.1, NAN):
        yield name, lambda s=share: jsma(share=s), f"share ≤ 1 {share}"
    name, spsa = "attacks.spsa", partial(attacks.spsa, net, x, labels, cube)
    yield name, lambda: spsa(steps=0), "steps ≥ 1 0"
    yield name, lambda: spsa(samples=0), "samples ≥ 1 0"
    yield name, lambda: spsa(keep="last"), "best first 'last'"
    for size in (0, -0.1, NAN, INF):
        yield name, lambda size=size: spsa(radius=size), f"radius > 0 {size}"
        yield name, lambda size=size: spsa(step_size=size), f"step_size > 0 {size}"
    yield name, lambda: spsa(radius=0.51), "half the width box 0.51"
    name, rays = "attacks.rays", partial(attacks.rays, net, x, labels)
    yield name, lambda: rays(ball), "p = inf 2"
    yield name, lambda: rays(Ball(1, 0.1)), "p = inf 1"
    yield name, lambda: rays(cube, queries=0), "queries ≥ 1 0"
    name, own = "attacks.count", lambda m, x, y, ball: 0 * x
    yield name, lambda: attacks.count(None, net, x, labels, cube), "an attack NoneType"
    yield name, lambda: attacks.count(own, net, x, labels, cube), "of this package"
    halves = lambda m, x, y, ball: attacks.fgsm(m, x[:2], y[:2], ball)  # noqa: E731
    yield name, lambda: attacks.count(halves, net, x, labels, cube), "all samples at once"

    yield from pieces()
    yield from of_conjugates()
    yield from of_the_dual_network()
    yield from chosen_slopes()
    yield from networks("bounds.best_slopes", partial(bounds.best_slopes, steps=2))
    for method in ("interval", *dual.SLOPES):
        yield from networks("bounds.robust_loss", partial(bounds.robust_loss, method=method))
    of_pieces, layer = affine.affine_pieces(net, (2,)), bounds.pre_activations(net, x, cube)[0]
    for method in bounds.METHODS:
        within = partial(bounds.pre_activations, method=method)
        yield from networks("bounds.pre_activations", within, takes_labels=False)
        name, margins = "bounds.margins", partial(bounds.margins, method=method)
        yield from networks(name, margins)
        given = partial(margins, net, x, labels, cube)
        slopes = partial(bounds.best_slopes, net, x, labels, cube)
        for bad, words in (
            ([], "for each ReLU [(4, 4)]"),
            ([layer, layer], "for each ReLU [(4, 4)]"),
            ([bounds.Bounds(layer.lower[:3], layer.upper[:3])], "(4, 4) (3, 4)"),
            ([bounds.Bounds(layer.upper + 1, layer.lower)], "lower ≤ upper"),
            ([bounds.Bounds(NAN * layer.lower, layer.upper)], "NaN"),
            ([bounds.Bounds(layer.lower - INF, layer.upper)], "finite infinity"),
            ([bounds.Bounds(layer.lower, layer.upper + INF)], "finite infinity"),
        ):
            yield name, lambda f=given, bad=bad: f(layer_bounds=bad), words
            if method == "crown":
                yield "bounds.best_slopes", lambda f=slopes, bad=bad: f(layer_bounds=bad), words
    for method in ("exact", None):
        unknown = f"interval dual crown lp {method!r}"
        yield name, lambda m=method: bounds.margins(net, x, labels, cube, m), unknown
        yield "bounds.pre_activations", lambda m=method: bounds.pre_activations(net, x, cube, m), unknown
    for p in (1, 2):
        other, words = Ball(p, 0.1), f"p = math.inf {p}"
        yield name, lambda b=other: bounds.margins(net, x, labels, b, "lp"), words
        yield "bounds.pre_activations", lambda b=other: bounds.pre_activations(net, x, b, "lp"), words
        yield "bounds.problems", lambda b=other: bounds.problems(of_pieces, x, b), words
        for method in exact.SOLVERS:
            given = partial(exact.margins, net, x, labels, other, method=method)
            yield "exact.margins", given, words
        for stages in (exact.PROGRAMS, ["lp"], ["attack", "search"]):
            given = partial(exact.certify, net, x, labels, other, stages=stages)
            yield "exact.certify", given, words
    yield "_arguments.check_batch", lambda: _arguments.check_batch(x[0]), "(n, *shape) (2,)"
    yield "_arguments.check_batch", lambda: _arguments.check_batch(x[:0]), "at least one (0, 2)"
    yield (
        "_arguments.check_labels",
        lambda: _arguments.check_labels(of_pieces, x, labels + 1),
        "0 2 [1, 2, 3]",
    )
    for name, function in (("exact.margins", exact.margins), ("exact.certify", exact.certify)):
        yield from networks(name, function)
        for limit in (0, -1, 1.5, INF, NAN):
            limited = partial(function, net, x, labels, cube, node_limit=limit)
            yield name, limited, f"whole number of nodes ≥ 1 None {limit}"
    searched = partial(exact.margins, net, x, labels, cube)
    for method in ("lp", "crown", 3):
        yield "exact.margins", lambda m=method: searched(method=m), f"dual search mip {method!r}"
    certified = partial(exact.certify, net, x, labels, cube)
    for stages in (["attack", "dual"], [None], [["lp"]], (), "attack", None, 3):
        words = f"a list of stages interval attack crown slopes branches lp search {stages!r}"
        yield "exact.certify", lambda s=stages: certified(stages=s), words
    for seconds in (0, -1.0, NAN, "1", [1]):
        yield "exact.certify", lambda s=seconds: certified(seconds=s), f"seconds > 0 None {seconds!r}"

    yield "data.load", lambda: data.load("imagenet"), "unknown 'imagenet' digits mnist cifar10"
    yield "data.load", lambda: data.load(None), "unknown None digits"
    yield "data.photograph", lambda: data.photograph("nowhere.jpg"), 'expected "flower" "china" nowhere'
    yield "data.photograph", lambda: data.photograph("upload"), "expected Colab upload"
    yield "data.binary", lambda: data.binary(tiny, 1, 1), "two different classes [0, 1] 1 and 1"
    yield "data.binary", lambda: data.binary(tiny, 0, 7), "two different classes [0, 1] 0 and 7"
    yield "data.photograph", lambda: data.photograph("none.jpg"), "flower china upload none.jpg"
    yield "data.photograph", lambda: data.photograph("upload"), "flower china upload Colab"

    yield "models.linear", lambda: models.linear(0, 1), "at least 1 [0, 1]"
    yield "models.linear", lambda: models.linear(2, -1), "at least 1 [2, -1]"
    yield "models.mlp", lambda: models.mlp([]), "input output []"
    yield "models.mlp", lambda: models.mlp([3]), "input output [3]"
    yield "models.mlp", lambda: models.mlp([3, 0, 2]), "at least 1 [3, 0, 2]"
    yield "models.mlp", lambda: models.mlp([3], norm=True), "input output [3]"
    name = "models.convnet"
    yield name, lambda: models.convnet((1, 6, 8), 3), "(C, H, W) divisible by 4 (1, 6, 8)"
    yield name, lambda: models.convnet((1, 8, 10), 3), "divisible by 4 (1, 8, 10)"
    yield name, lambda: models.convnet((8, 8), 3), "(C, H, W) (8, 8)"
    yield name, lambda: models.convnet((0, 8, 8), 3), "(C, H, W) (0, 8, 8)"
    yield name, lambda: models.convnet((1, 0, 8), 3), "(C, H, W) (1, 0, 8)"
    yield name, lambda: models.convnet((1, 8, 8), 0), "at least one class 0"

    yield (
        "linear.weights",
        lambda: linear.weights(models.mlp([2, 3, 1])),
        "Flatten one Linear models.linear",
    )
    yield "linear.weights", lambda: linear.weights(nn.Linear(2, 1)), "Flatten one Linear"
    without_b = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    yield "linear.weights", lambda: linear.weights(without_b), "Flatten one Linear"
    for function in (linear.margin, linear.worst_case, linear.robust_margin, linear.robust_error):
        yield from binary_cases(function)
    three = Ball(INF, torch.full((3,), 0.1))
    yield "threat.Ball.radii", lambda: three.radii(x), "eps 3 entries 4 samples"
    yield "linear.margins", lambda: linear.margins(W, B, x, labels, three), "eps 3 entries 4 samples"
    for shape in ((4, 3), (3, 2), (1, 1, 2), (1, 0)):
        each = Ball(2, torch.full(shape, 0.1))
        words = f"eps {shape} batch (4, 2)"
        yield "threat.Ball.project", lambda b=each: b.project(x), words
        yield "linear.margins", lambda b=each: linear.margins(W, B, x, labels, b), words
        attack = partial(evaluation.survivors, net, x, labels, attacks=[attacks.fgsm])
        yield "evaluation.survivors", lambda b=each, a=attack: a(ball=b), words
    far = torch.ones_like(x)
    far[0] = 0
    yield (
        "evaluation.check_allowed",
        lambda: evaluation.check_allowed("mine", far, x, Ball(INF, 0.1)),
        "expected Ball mine 3 of 4 number 1",
    )
    yield (
        "evaluation.check_allowed",
        lambda: evaluation.check_allowed("mine", x[:2], x, Ball(INF, 0.1)),
        "expected mine (4, 2) (2, 2)",
    )
    for function in (linear.margins, linear.certified, linear.robust_cross_entropy_bound):
        yield from class_cases(function)
    yield (
        "linear.robust_error",
        lambda: linear.robust_error(w, b, x[:0], y[:0], ball),
        "at least one sample",
    )

    for function in (linear.largest_margin, linear.robust_logistic_regression):
        yield from whole_sets(function)
    regression, name = linear.robust_logistic_regression, "linear.robust_logistic_regression"
    yield "linear.largest_margin", lambda: linear.largest_margin(x, y, 3), "p must be 1, 2 or math.inf"
    yield name, lambda: regression(x, y, boxed), "no box"
    yield name, lambda: regression(x, y, Ball(2, torch.ones(4))), "one eps"
    yield name, lambda: regression(y[:, None].float(), y, ball), "no minimum separated 0.1"

    yield "training.fit", lambda: fit((x, y[:3])), "as many inputs as labels 4 and 3"
    yield "training.fit", lambda: fit((x[:0], y[:0])), "data 0 and 0"
    yield "training.fit", lambda: fit(epochs=-1), "epochs ≥ 0 -1"
    yield "training.fit", lambda: fit(lr=0), "lr < ∞ lr=0"
    yield "training.fit", lambda: fit(lr=NAN), "lr < ∞ nan"
    yield "training.fit", lambda: fit(lr=INF), "lr < ∞ inf"
    yield "training.fit", lambda: fit(batch_size=0), "batch_size ≥ 1 =0"
    for momentum in (-0.1, 1.0, NAN):
        yield "optimisers.SGD", lambda m=momentum: optimisers.SGD(m), f"0 ≤ momentum < 1 {momentum}"
    yield from of_recipes()
    yield from of_comparisons()

    for wrong, words in (
        (lambda m, x, y: m(x), "(4,) (4, 1)"),
        (lambda m, x, y: y - m(x), "(4,) (4, 4)"),
        (lambda m, x, y: m(x).mean(), "(4,) ()"),
        (lambda m, x, y: m(x)[:1, 0], "(4,) (1,)"),
    ):
        yield "training.fit", lambda f=wrong: fit(inner=f), f"inner {words}"
    watch = {"clean": lambda m: 1.0}
    yield "training.fit", lambda: fit(best="robust", watch=watch), "best watched ['clean'] 'robust'"
    yield "training.fit", lambda: fit(best="robust"), "best watched [] 'robust'"
    yield from of_inner_maxima()
    yield from of_checkpoints()
    yield from of_slopes()
    yield from of_ddd()
    yield from of_the_geometry()
    yield from of_ensembles()
    yield from of_smoothing()
    yield from of_detection()
    yield from of_dent()
    yield from of_adaptive_attacks()
    yield from of_stacks()

    yield "training.reference", lambda: training.reference("best", tiny), "standard robust 'best'"
    yield "training.reference", lambda: training.reference(None, tiny), "standard robust None"
    yield "training.trained", lambda: training.trained("best", tiny, 0), "normalised 'best'"
    yield (
        "training.reference",
        lambda: training.reference("robust", data.binary(tiny, 0, 1)),
        "labels -1",
    )

    for name in ("survivors", "robust_accuracy"):
        yield from measured(f"evaluation.{name}", getattr(evaluation, name))
        empty = partial(getattr(evaluation, name), net, x[:0], labels[:0], cube)
        yield f"evaluation.{name}", empty, "at least one 0 and 0"
    name, curve = "evaluation.robust_accuracy_curve", evaluation.robust_accuracy_curve
    yield from measured(name, curve, [0.1])
    curve = partial(curve, net, x, labels, cube, [attacks.fgsm])
    yield name, lambda: curve([0.2, 0.1]), "radii increasing [0.2, 0.1]"
    yield name, lambda: curve([-0.1, 0.1]), "eps ≥ 0 -0.1"
    yield name, lambda: curve([0.1, NAN]), "eps finite nan"
    yield from of_tables()
    yield from of_symptoms()
    yield from of_landscapes()
    yield from of_kinds()
    for values in ((), (1.0, NAN), (INF,), (1.0, -INF)):
        yield "evaluation.Spread", partial(evaluation.Spread, values), "finite numbers at least one"
    name = "diagnostics.cross_section"
    cut = partial(diagnostics.cross_section, net)
    yield name, lambda: cut(x, x, x[0], x[0]), "one sample (4, 2)"
    yield name, lambda: cut(x[:1], 0 * x[:1], x[0], x[0]), "other than 0"
    name, run = "suite.autoattack", partial(suite.autoattack, net, x, labels, cube)
    for option in ("steps", "targets", "queries", "batch_size"):
        yield name, lambda o=option: run(**{o: 0}), f"steps, targets queries batch_size ≥ 1 {0}"
    for targets in (0, -1):
        yield (
            "suite.every_target",
            partial(suite.every_target, attacks.pgd, targets),
            f"targets ≥ 1 {targets}",
        )
    name = "diagnostics.loss_along"
    yield name, lambda: along(x=x, y=labels), "one sample 4"
    yield name, lambda: along(x=x[:0], y=labels[:0]), "one sample 0"
    yield name, lambda: along(distances=()), "as many distances as directions 0 and 1"
    yield name, lambda: along(directions=()), "as many distances as directions 1 and 0"
    yield name, lambda: along(directions=(torch.ones(1, 3),)), "directions (1, 2) (1, 3)"
    yield name, lambda: along(directions=(torch.ones(2, 2),)), "directions (1, 2) (2, 2)"
    yield name, lambda: along(directions=(torch.ones(1, 2, dtype=torch.float64),)), "directions float"
    yield name, lambda: along(distances=(torch.tensor(1.0),)), "distances (t,) ()"
    yield name, lambda: along(distances=(torch.ones(2, 2),)), "distances (t,) (2, 2)"
    yield name, lambda: along(y=labels[:2]), "one sample label 2"
    yield name, lambda: along(y=labels[:1] + 9), "labels from 0 to 2 9"
    mean = partial(nn.functional.cross_entropy)
    yield name, lambda: along(loss=mean), "loss one ()"

    yield "evaluation.rate", lambda: evaluation.rate(torch.zeros(0, dtype=torch.bool)), "non-empty (0,)"
    yield "evaluation.rate", lambda: evaluation.rate(torch.tensor([0.0, 1.0])), "boolean float32"
    yield "evaluation.rate", lambda: evaluation.rate(torch.tensor([[True]])), "(n,) (1, 1)"
    yield "evaluation.rate", lambda: evaluation.rate(torch.tensor(True)), "(n,) ()"

    yield "plots.images", lambda: plots.images(torch.rand(2, 1, 3, 3), ["one"]), "title 2 1"
    yield "plots.images", lambda: plots.images(torch.rand(2, 3, 3), ["a", "b"]), "(n, C, H, W) (2, 3, 3)"
    yield "plots.Table", lambda: plots.Table(["a", "b"], [("one",)]), "cell a b one"
    yield "plots.circle", lambda: plots.circle(0.5), "p ≥ 1 0.5"
    yield "plots.line", lambda: plots.line(plt.figure().subplots(), torch.zeros(2), 0.0), "w not 0"
    yield "plots.line", lambda: plots.line(plt.figure().subplots(), torch.ones(3), 0.0), "(2,) (3,)"

    yield "widgets.slider", lambda: slider(), "at least one control"
    yield "widgets.slider", lambda: slider(Control("p", [])), "values"
    yield "widgets.slider", lambda: slider(Control("p", [1, 2], start=2)), "start"
    yield "widgets.slider", lambda: slider(Control("p", [1, 2], start=-1)), "start"
    yield "widgets.slider", lambda: slider(Control("p", [1]), alt=lambda v: " "), "alt text"

    name, two = "widgets.predict", ["a", "b"]
    yield name, lambda: predict(question=" "), "question"
    yield name, lambda: predict(why=""), "why"
    yield name, lambda: predict(low=None), "choices low high picture"
    yield name, lambda: predict(choices=two), "one of choices low high picture"
    yield name, lambda: predict(answer=11), "[low, high] 11 [0, 10]"
    yield name, lambda: predict(answer=NAN), "[low, high] nan"
    yield name, lambda: predict(high=INF), "[low, high] inf"
    yield name, lambda: predict(answer=0, high=0), "[0, 0]"
    yield name, lambda: predict(answer="many"), "numbers 'many'"
    yield name, lambda: choose("a", ["a"]), "two different choices"
    yield name, lambda: choose("a", ["a", "a"]), "two different choices"
    yield name, lambda: choose("a", ["a", " "]), "two different choices"
    yield name, lambda: choose("c", two), "one of the choices 'a' 'b' 'c'"
    yield name, lambda: point((0.5, 0.5), alt=" "), "alt text"
    yield name, lambda: point((0.5, 1.5)), "(x, y) on the picture (0.5, 1.5)"
    yield name, lambda: point((0.5,)), "(x, y) on the picture (0.5,)"
    yield name, lambda: point(0.5), "(x, y) on the picture 0.5"
    yield name, lambda: point((0.5, 0.5), scale="log"), "linear axes log"


TABLE = list(table())
# Nothing to refuse: these take any value of their type, or only hold what others checked.
HARMLESS = {
    "adaptive.Defense",  # a protocol
    "affine.Affine",
    "affine.Bounds",
    "affine.Window",
    "affine.sight",
    "affine.width",
    "attacks.Counts",
    "attacks.Iterate",
    "bounds.interval",  # what it is given comes from affine_pieces and its like
    "bounds.tightened",  # takes what others made
    "branching.Case",
    "branching.Found",
    "branching.Leaf",
    "data.Data",
    "data.folder",
    "detection.Threshold",  # holds what `threshold` found
    "dual.Ascent",
    "dual.Lines",
    "dual.bound",  # these get pieces, lines and regions that others checked
    "dual.branch",
    "dual.forward",
    "dual.in_parts",
    "dual.multipliers",
    "evaluation.Rate",
    "diagnostics.Symptom",
    "evaluation.Table",
    "suite.Outcome",
    "plots.on_a_phone",
    "exact.Certificates",
    "exact.Margins",
    "ladder.Known",  # what exact has checked
    "ladder.Limits",
    "leaves.Leaves",  # all of leaves gets pieces, bounds and regions that exact checked
    "leaves.View",
    "leaves.price",
    "leaves.program",
    "leaves.refined",
    "leaves.share",
    "leaves.spread",
    "programs.mip",  # these two get a relaxation that bounds.problems checked
    "programs.search",
    "linear.logistic",
    "models.Normalise",  # holds the numbers of the weights, which models.imagenet reads
    "models.evaluating",
    "models.imagenet",  # takes nothing; offline it raises what tests/test_models.py expects
    "comparison.Paired",  # holds what `paired` found
    "optimisers.Optimiser",
    "plots.use_style",
    "projections.fill_ellipsoid",
    "projections.fill_largest_first",  # Ball has looked at what they are given
    "projections.fill_sphere",
    "projections.furthest",
    "projections.nearest",
    "projections.norm",
    "projections.onto_hyperplane",
    "projections.shortest",
    "projections.soft_threshold",
    "projections.soften",
    "projections.to_length",
    "relaxation.Relaxation",  # arrays inside; bounds and exact check what comes in
    "relaxation.Solution",
    "relaxation.relax",
    "stack.BatchNorm",  # these two are made by a Stack, which looks at the layers
    "stack.Activation",
    "stack.Linear",
    "stack.matrices",
    "stack.members_of",
    "threat.Ball.subset",  # indexes, and lets the errors of indexing through
    "threat.Region",
    "training.Epoch",
    "training.Settings",
    "training.Varying",  # a protocol
    "training.one_step",
    "training.digest",
    "training.progress",  # passes on what the run raises
    "widgets.Control",
    "widgets.Prediction",
    "widgets.Slider",
}


@pytest.mark.parametrize(
    ("name", "call", "words"),
    TABLE,
    ids=[f"{name}: {words}" for name, _, words in TABLE],
)
def test_a_bad_argument_is_named_in_words(name, call, words):
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    plt.close("all")
    missing = [word for word in words.split() if word not in str(caught.value)]
    assert not missing, str(caught.value)


def test_no_public_function_is_missing_from_the_table():
    names = {name for name, _ in public()} | {name for name, _ in public_methods("threat.Ball", Ball)}
    assert names - {name for name, _, _ in TABLE} == HARMLESS


def test_a_loss_that_is_not_finite_is_an_arithmetic_error_and_not_a_bad_argument():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        fit(inner=lambda m, x, y: m(x).squeeze(1) / 0)


@pytest.mark.parametrize("alpha", [-0.1, NAN, INF])
def test_a_step_size_that_goes_wrong_on_the_way_is_an_arithmetic_error_before_it_reaches_the_weights(
    alpha,
):
    model = models.linear(2, 1)
    before = model[1].weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step size"):
        fit(model=model, lr=lambda done: alpha)
    assert torch.equal(model[1].weight, before)


def test_a_best_that_is_not_a_number_is_an_arithmetic_error_and_other_names_may_be():
    watch = {"a": lambda m: NAN, "b": lambda m: 1.0}
    assert math.isnan(fit(watch=watch, best="b").watched["a"])
    with pytest.raises(FloatingPointError, match="'a' became nan in epoch 1"):
        fit(watch=watch, best="a")
