"""Nothing changes behind the caller's back: arguments, gradients, modes, global generators."""

import math
import random
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from strategies import BOX, ORDERS

from adv_lib import data, evaluation, linear, models, plots, training, widgets
from adv_lib.threat import Ball

g = torch.Generator().manual_seed(0)
x, y = torch.rand(6, 4, generator=g), torch.tensor([1, -1, 1, 1, -1, -1])
w, b, W, B = (
    torch.randn(4, generator=g),
    torch.tensor(0.1),
    torch.randn(3, 4, generator=g),
    torch.zeros(3),
)
labels, eps = torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6, generator=g)


def draw(value):
    return plt.figure(figsize=(1, 1))


CALLS = {
    "binary": lambda: data.binary(data.Data(x, labels, x, labels), 0, 2),
    "rate": lambda: evaluation.rate(y > 0),
    "images": lambda: plots.images(x.reshape(6, 1, 2, 2), list("abcdef"), signed=True),
    "circle": lambda: plots.circle(1.5),
    "slider": lambda: widgets.slider(draw, str, widgets.Control("v", [1, 2]), caption="c")._repr_html_(),
    "regression": lambda: linear.robust_logistic_regression(x, y, Ball(math.inf, 0.5)),
    "largest_margin": lambda: linear.largest_margin(x, y, 2),
    "mlp": lambda: models.mlp([4, 3, 2]),
}
for p in ORDERS:
    for box in (None, BOX):
        ball = Ball(p, eps, box)
        CALLS |= {
            f"{name} p={p} box={box}": call
            for name, call in {
                "support": lambda ball=ball: ball.support(w - x, x),
                "argmax": lambda ball=ball: ball.argmax(w - x, x),
                "project": lambda ball=ball: ball.project(w - x, x),
                "sample": lambda ball=ball: ball.sample(x),
                "contains": lambda ball=ball: ball.contains(w - x, x),
                "margin": lambda: linear.margin(w, b, x, y),
                "worst_case": lambda ball=ball: linear.worst_case(w, x, y, ball),
                "robust_margin": lambda ball=ball: linear.robust_margin(w, b, x, y, ball),
                "robust_error": lambda ball=ball: linear.robust_error(w, b, x, y, ball),
                "margins": lambda ball=ball: linear.margins(W, B, x, labels, ball),
                "certified": lambda ball=ball: linear.certified(W, B, x, labels, ball),
                "bound": lambda ball=ball: linear.robust_cross_entropy_bound(W, B, x, labels, ball),
            }.items()
        }

each = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def generators():
    legacy = str(np.random.get_state())  # noqa: NPY002, the one that seeds itself globally
    return torch.get_rng_state().tolist(), random.getstate(), legacy


@each
def test_arguments_keep_their_values_and_global_generators_their_state(call):
    given = [x, y, w, b, W, B, labels, eps]
    before, state = [t.clone() for t in given], generators()
    call()
    plt.close("all")
    assert all(torch.equal(t, old) for t, old in zip(given, before, strict=True))
    assert generators() == state


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return isinstance(a, torch.nn.Module | plt.Figure) or a == b


@each
def test_the_answer_is_the_same_twice_and_without_gradients(call):
    first = call()
    with torch.no_grad():
        second = call()
    with torch.inference_mode():
        third = call()
    plt.close("all")
    assert same(first, second)
    assert same(first, third)


@each
def test_no_warning_is_given(call):
    """A warning on stderr fails the build of the book."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    plt.close("all")


def test_inputs_that_carry_gradients_get_none_from_looking_at_them():
    inputs = x.clone().requires_grad_()
    ball = Ball(2, 0.1, BOX)
    delta = ball.sample(inputs)
    assert not delta.requires_grad
    linear.robust_error(w, b, inputs, y, ball)
    ball.contains(delta, inputs)
    assert inputs.grad is None


def test_taking_gradients_of_a_robust_loss_leaves_none_behind():
    model = models.linear(4, 1)
    loss = linear.robust_margin(*linear.weights(model), x, y, Ball(2, 0.1)).sum()
    torch.autograd.grad(loss, list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_training_changes_the_weights_only():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.0), torch.nn.Linear(3, 1))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    inputs, state = x.clone(), generators()
    list(
        training.fit(
            model, (inputs, y), lambda m, x, y: -m(x).squeeze(1), epochs=2, lr=0.1, batch_size=4
        )
    )
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(inputs, x)
    assert generators() == state


def test_a_generator_of_the_caller_moves_on():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    Ball(2, 0.1).sample(x, generator)
    assert not torch.equal(generator.get_state(), before)


def test_a_ball_does_not_change():
    with pytest.raises(AttributeError):
        Ball(2, 0.1).eps = 0.2


def test_loading_data_twice_gives_tensors_of_ones_own(digits):
    mine = data.load("digits")
    mine.x_train.zero_()
    assert data.load("digits").x_train.any()
    assert digits.x_train.any()


# ---- importing ----


def after_importing(*modules):
    """The modules that a fresh interpreter holds after these imports, which print nothing."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_computation_is_imported_without_the_libraries_it_may_not_need():
    modules = ("threat", "data", "models", "linear", "training", "evaluation", "checks.linear_models")
    held = after_importing(*(f"adv_lib.{module}" for module in modules))
    assert (
        held & {"torchvision", "cvxpy", "sklearn", "scipy", "matplotlib", "ipywidgets", "IPython"}
        == set()
    )
    assert "torch" in held


def test_the_figures_are_imported_without_a_kernel_or_a_solver():
    held = after_importing("adv_lib.plots", "adv_lib.widgets")
    assert held & {"torchvision", "cvxpy", "sklearn", "ipywidgets", "IPython"} == set()


def test_the_package_itself_imports_nothing_heavy():
    assert after_importing("adv_lib") & {"torch", "numpy", "matplotlib"} == set()


def test_importing_changes_no_global_setting():
    program = """
import random, warnings
import matplotlib, numpy, torch
def state():
    return [torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
            dict(matplotlib.rcParams), list(warnings.filters)]
before = state()
import adv_lib.checks.linear_models, adv_lib.data, adv_lib.evaluation, adv_lib.linear, adv_lib.models
import adv_lib.plots, adv_lib.threat, adv_lib.training, adv_lib.widgets
assert state() == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
