"""Steps by hand: those of torch.optim, and what a stack and a checkpoint ask of them."""

import itertools
import math

import pytest
import torch
from strategies import seeded
from test_stack import agree, images, networks, trained
from torch import nn

from adv_lib import models, training
from adv_lib.optimisers import SGD, Adam
from adv_lib.stack import Stack

OURS_AND_TORCH = {
    "momentum": (SGD(0.9), torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (SGD(0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "decay": (SGD(weight_decay=0.02), torch.optim.SGD, {"weight_decay": 0.02}),
    "nesterov, decay": (
        SGD(0.8, nesterov=True, weight_decay=0.02),
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    ),
    "Adam": (Adam(), torch.optim.Adam, {}),
    "Adam, others": (
        Adam((0.7, 0.9), 1e-3, 0.02),
        torch.optim.Adam,
        {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.02},
    ),
    "AdamW": (Adam(weight_decay=0.1, decoupled=True), torch.optim.AdamW, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OURS_AND_TORCH)
def test_steps_are_those_of_torch(name):
    ours, kind, options = OURS_AND_TORCH[name]
    x, y = images()
    model, other = networks(1)[0], networks(1)[0]
    theirs = kind(other.parameters(), lr=0.05, **options)
    memory = ours.start(model)
    for _ in range(8):
        for network in (model, other):
            network.zero_grad()
            training.clean(network, x, y).mean().backward()
        ours.step(model, memory, 0.05)
        theirs.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


RULES = {
    "nesterov": lambda e: SGD(0.9, nesterov=True),
    "decays": lambda e: SGD(0.5, weight_decay=[0.0, 0.01, 0.1] if e is None else (0.0, 0.01, 0.1)[e]),
    "one decay": lambda e: SGD(weight_decay=0.03),
    "centralised": lambda e: SGD(0.9, centralise=True),
    "centralised, normalised": lambda e: SGD(normalise=True, centralise=True),
    "Adam": lambda e: Adam(weight_decay=[0.0, 0.01, 0.1] if e is None else (0.0, 0.01, 0.1)[e]),
    "AdamW": lambda e: Adam(
        weight_decay=(0.0, 0.01, 0.1) if e is None else (0.0, 0.01, 0.1)[e], decoupled=True
    ),
}
RATES = (0.01, 0.05, 0.2)


@pytest.mark.parametrize("rates", [0.05, RATES])
@pytest.mark.parametrize("name", RULES)
def test_each_member_of_a_stack_ends_where_it_would_alone(name, rates):
    """Adam without BatchNorm: it divides by the gradients of biases before it, which are rounding."""
    alone = networks(3, norm="Adam" not in name)
    stack = Stack(alone)
    trained(stack, training.clean, optimiser=RULES[name](None), lr=rates)
    for e, network in enumerate(alone):
        lr = rates if isinstance(rates, float) else rates[e]
        trained(network, training.clean, optimiser=RULES[name](e), lr=lr)
    agree(stack, alone)


def test_a_centralised_gradient_has_mean_0_over_the_inputs_of_each_output_and_biases_keep_theirs():
    def conv():
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(6, 3))

    for make in (lambda: networks(1, norm=True)[0], lambda: Stack(networks(2, norm=True)), conv):
        torch.manual_seed(0)
        model, (x, y) = make().double(), images(20)
        training.clean(model, x, y).sum().backward()
        before = {name: p.grad.clone() for name, p in model.named_parameters()}
        SGD(centralise=True).step(model, SGD().start(model), 0.0)
        moved = 0
        for name, p in model.named_parameters():
            axes = (1, 2, 3) if p.ndim == 4 else (-1,)
            if torch.equal(p.grad, before[name]):
                assert name.endswith("bias") or p.shape[-1] in (3, 5, 7), name
                continue
            moved += 1
            assert name.endswith("weight")
            mean = before[name].mean(axes, keepdim=True)
            torch.testing.assert_close(p.grad, before[name] - mean)
            assert p.grad.mean(axes).abs().max() < 1e-12
        assert moved == (2 if make is conv else 3)


def test_all_weights_shrink_by_the_same_share_where_the_loss_is_flat():
    model = networks(1)[0]
    before = [p.detach().clone() for p in model.parameters()]
    flat = lambda m, x, y: 0 * training.clean(m, x, y)  # noqa: E731
    list(
        training.fit(
            model, images(), flat, epochs=1, lr=0.5, batch_size=22, optimiser=SGD(weight_decay=0.1)
        )
    )
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), 0.95 * old)


@pytest.mark.parametrize("rule", [SGD(0.9, nesterov=True, weight_decay=0.01), Adam(weight_decay=0.01)])
def test_a_run_that_stops_goes_on_to_the_same_weights(rule, tmp_path):
    options = {"epochs": 4, "lr": 0.05, "batch_size": 5, "optimiser": rule}
    whole = models.mlp([6, 5, 3], seeded(0)).double()
    list(training.fit(whole, images(), training.clean, **options))
    for epochs in (1, 3):
        path = tmp_path / f"{epochs}.pt"
        first = models.mlp([6, 5, 3], seeded(0)).double()
        run = training.fit(first, images(), training.clean, checkpoint=path, **options)
        list(itertools.islice(run, epochs))
        again = models.mlp([6, 5, 3], seeded(1)).double()
        list(training.fit(again, images(), training.clean, checkpoint=path, **options))
        for p, q in zip(again.parameters(), whole.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_rule_says_what_it_is_and_what_it_is_given_cannot_change_it():
    decays = [0.1, 0.2]
    rule = SGD(0.9, weight_decay=decays)
    decays[0] = math.nan
    assert "weight_decay=(0.1, 0.2)" in repr(rule)
    assert rule == SGD(0.9, weight_decay=(0.1, 0.2))
    assert "betas=(0.5, 0.6)" in repr(Adam([0.5, 0.6]))
