"""What is wrong with an argument is said in words, by every public function."""

import importlib
import inspect
import math
import operator
import pkgutil
import re

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import adv_lib
from adv_lib import data, evaluation, linear, models, plots, training, widgets
from adv_lib.threat import Ball
from adv_lib.widgets import Control

NAN, INF = math.nan, math.inf
w, b, x, y = torch.tensor([1.0, -2.0]), torch.tensor(0.5), torch.rand(4, 2), torch.tensor([1, -1, 1, 1])
W, B, labels = torch.eye(3, 2), torch.zeros(3), torch.tensor([0, 1, 2, 0])
ball, boxed = Ball(2, 0.1), Ball(2, 0.1, (0, 1))
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

    def call(x_bad):
        getattr(boxed, method)(*((x_bad,) if method == "sample" else (torch.ones(4, 2), x_bad)))

    name = f"threat.Ball.{method}"
    yield name, lambda: call(x + 1), "x must lie in the box [0, 1] from"
    yield name, lambda: call(with_entry(x, -0.01)), "x must lie in the box -0.01"
    if method != "sample":
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


def fit(data=(x, y), inner=lambda m, x, y: m(x).squeeze(1), epochs=1, lr=0.1, **options):
    return next(training.fit(models.linear(2, 1), data, inner, epochs=epochs, lr=lr, **options))


def slider(*controls, draw=lambda v: plt.figure(), alt=str):
    return widgets.slider(draw, alt, *controls, caption="c")


def table():
    """(public name, the call that fails, words its message must contain)."""
    yield "threat.Ball", lambda: Ball(3, 0.1), "p must be 1, 2 or math.inf 3"
    yield "threat.Ball", lambda: Ball(0, 0.1), "p must be"
    yield "threat.Ball", lambda: Ball(NAN, 0.1), "p must be nan"
    yield "threat.Ball", lambda: Ball("inf", 0.1), "p must be 'inf'"
    yield "threat.Ball", lambda: Ball(2, -0.1), "eps ≥ 0 -0.1"
    yield "threat.Ball", lambda: Ball(2, NAN), "eps finite nan"
    yield "threat.Ball", lambda: Ball(2, INF), "eps finite inf"
    yield "threat.Ball", lambda: Ball(2, torch.tensor([0.1, -0.1])), "eps ≥ 0"
    yield "threat.Ball", lambda: Ball(2, torch.tensor([0.1, NAN])), "eps finite"
    yield "threat.Ball", lambda: Ball(2, torch.ones(3, 1)), "eps one per sample"
    yield "threat.Ball", lambda: Ball(2, 0.1, (1, 0)), "box lo < hi (1, 0)"
    yield "threat.Ball", lambda: Ball(2, 0.1, (0, 0)), "box lo < hi"
    yield "threat.Ball", lambda: Ball(2, 0.1, (0, NAN)), "box lo < hi nan"
    yield "threat.Ball", lambda: Ball(2, 0.1, (-INF, 1)), "box lo < hi inf"
    for method in ("support", "argmax", "project", "contains", "sample"):
        yield from batches(method)
        yield from inputs_in_the_box(method)

    yield "data.load", lambda: data.load("imagenet"), "unknown 'imagenet' digits mnist cifar10"
    yield "data.load", lambda: data.load(None), "unknown None digits"
    yield "data.binary", lambda: data.binary(tiny, 1, 1), "two different classes [0, 1] 1 and 1"
    yield "data.binary", lambda: data.binary(tiny, 0, 7), "two different classes [0, 1] 0 and 7"

    yield "models.linear", lambda: models.linear(0, 1), "at least 1 [0, 1]"
    yield "models.linear", lambda: models.linear(2, -1), "at least 1 [2, -1]"
    yield "models.mlp", lambda: models.mlp([]), "input output []"
    yield "models.mlp", lambda: models.mlp([3]), "input output [3]"
    yield "models.mlp", lambda: models.mlp([3, 0, 2]), "at least 1 [3, 0, 2]"

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
    yield "training.fit", lambda: fit(lr=0), "lr > 0 lr=0"
    yield "training.fit", lambda: fit(lr=NAN), "lr > 0 nan"
    yield "training.fit", lambda: fit(batch_size=0), "batch_size ≥ 1 =0"

    yield "evaluation.rate", lambda: evaluation.rate(torch.zeros(0, dtype=torch.bool)), "non-empty (0,)"
    yield "evaluation.rate", lambda: evaluation.rate(torch.tensor([0.0, 1.0])), "boolean float32"
    yield "evaluation.rate", lambda: evaluation.rate(torch.tensor([[True]])), "(n,) (1, 1)"
    yield "evaluation.rate", lambda: evaluation.rate(torch.tensor(True)), "(n,) ()"

    yield "plots.images", lambda: plots.images(torch.rand(2, 1, 3, 3), ["one"]), "title 2 1"
    yield "plots.images", lambda: plots.images(torch.rand(2, 3, 3), ["a", "b"]), "(n, C, H, W) (2, 3, 3)"
    yield "plots.circle", lambda: plots.circle(0.5), "p ≥ 1 0.5"
    yield "plots.line", lambda: plots.line(plt.figure().subplots(), torch.zeros(2), 0.0), "w not 0"
    yield "plots.line", lambda: plots.line(plt.figure().subplots(), torch.ones(3), 0.0), "(2,) (3,)"

    yield "widgets.slider", lambda: slider(), "at least one control"
    yield "widgets.slider", lambda: slider(Control("p", [])), "values"
    yield "widgets.slider", lambda: slider(Control("p", [1, 2], start=2)), "start"
    yield "widgets.slider", lambda: slider(Control("p", [1, 2], start=-1)), "start"
    yield "widgets.slider", lambda: slider(Control("p", [1]), alt=lambda v: " "), "alt text"


TABLE = list(table())

# Nothing to refuse: these take any value of their type, or only hold what others checked.
HARMLESS = {
    "data.Data",
    "evaluation.Rate",
    "linear.logistic",
    "plots.use_style",
    "training.Epoch",
    "widgets.Control",
    "widgets.Slider",
}


@pytest.mark.parametrize(
    ("name", "call", "words"), TABLE, ids=[f"{n}: {words}" for n, _, words in TABLE]
)
def test_a_bad_argument_is_named_in_words(name, call, words):
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    plt.close("all")
    missing = [word for word in words.split() if word not in str(caught.value)]
    assert not missing, str(caught.value)


def public_names():
    """Every public function, class and method of adv_lib, but for the checks, which never raise."""
    for module in pkgutil.iter_modules(adv_lib.__path__):
        if module.name == "checks":
            continue
        members = vars(importlib.import_module(f"adv_lib.{module.name}"))
        for name, member in members.items():
            if getattr(member, "__module__", "") != f"adv_lib.{module.name}" or name.startswith("_"):
                continue
            if inspect.isclass(member) or inspect.isfunction(member):
                yield f"{module.name}.{name}"
            if name == "Ball":
                yield from (
                    f"threat.Ball.{m}"
                    for m, f in vars(member).items()
                    if re.match("[a-z]", m) and callable(f)
                )


def test_no_public_function_is_missing_from_the_table():
    assert set(public_names()) - {name for name, _, _ in TABLE} == HARMLESS


def test_a_loss_that_is_not_finite_is_an_arithmetic_error_and_not_a_bad_argument():
    with pytest.raises(FloatingPointError, match="epoch 1"):
        fit(inner=lambda m, x, y: m(x).squeeze(1) / 0)
