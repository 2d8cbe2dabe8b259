"""Attacks: what they find is allowed and real, and asking leaves no trace."""

import itertools
import math
import warnings
from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    ORDERS,
    SHAPES,
    entries,
    generators,
    orders,
    problem,
    problems,
    same,
    seeded,
    seeds,
    trained_on_digits,
)
from torch import nn
from torch.linalg import vector_norm

from adv_lib import attacks, evaluation, linear, losses, models
from adv_lib.attacks import auto_pgd, black_box
from adv_lib.evaluation import robust_accuracy
from adv_lib.threat import Ball

RUNS = {
    "fgsm": attacks.fgsm,
    "bim": partial(attacks.bim, steps=5),
    "friendly": partial(attacks.friendly, steps=5, tolerance=1),
    "ilcm": partial(attacks.ilcm, steps=5),
    "jsma": partial(attacks.jsma, share=0.5),
    "pgd best": partial(attacks.pgd, steps=5, restarts=2),
    "pgd first": partial(attacks.pgd, steps=5, restarts=2, keep="first"),
    "pgd last": partial(attacks.pgd, steps=5, restarts=2, keep="last"),
    "apgd": partial(attacks.apgd, steps=6, restarts=2),
    "square": partial(attacks.square, queries=20),
    "spsa": partial(attacks.spsa, steps=3, samples=4),
    "rays": partial(attacks.rays, queries=30),
}
OF_ORDERS = {"square": (2, math.inf), "rays": (math.inf,)}  # all others take any p
WITH_A_LOSS = ("fgsm", "bim", "friendly", "pgd best", "pgd first", "pgd last", "apgd")


def for_p_2(attack):
    """The attack with the ball's p set to 2, the only one that it takes."""

    def run(model, x, y, ball, **options):
        return attack(model, x, y, replace(ball, p=2), **options)

    run.func = attack.func
    return run


SHORTEST = {  # of minimum norm; what they find is looked at in test_minimum_norm.py
    "deepfool": partial(attacks.deepfool, steps=4),
    "ddn": for_p_2(partial(attacks.ddn, steps=6)),
    "cw": for_p_2(partial(attacks.cw, steps=4, searches=2)),
    "fab": partial(attacks.fab, steps=4, restarts=2),
}
CLIMBS = {"pgd": partial(attacks.pgd, steps=10), "apgd": partial(attacks.apgd, steps=10)}
FROM_ZERO = {"fgsm": attacks.fgsm, "bim": attacks.bim, "friendly": attacks.friendly, **CLIMBS}
each_run = pytest.mark.parametrize("attack", RUNS.values(), ids=RUNS)
each_attack = pytest.mark.parametrize("attack", (RUNS | SHORTEST).values(), ids=RUNS | SHORTEST)
each_climb = pytest.mark.parametrize("attack", CLIMBS.values(), ids=CLIMBS)
each_run_and_p = pytest.mark.parametrize(
    ("attack", "p"),
    [
        pytest.param(attack, p, id=f"{name}-{p}")
        for name, attack in RUNS.items()
        for p in OF_ORDERS.get(name, ORDERS)
    ],
)
each_loss = pytest.mark.parametrize("attack", [RUNS[name] for name in WITH_A_LOSS])
from_zero = pytest.mark.parametrize("attack", FROM_ZERO.values(), ids=FROM_ZERO)
each_keep = pytest.mark.parametrize("keep", ["best", "first", "last"])


def taken(attack, ball):
    """The ball, or the one with p = ∞ if the attack has no use for its p."""
    for name, orders_ in OF_ORDERS.items():
        if attack is RUNS[name] and ball.p not in orders_:
            return Ball(math.inf, ball.eps, ball.box)
    return ball


def norms(delta, p):
    return vector_norm(delta.double().flatten(1), ord=p, dim=1)


def watched(attack, *arguments, **options):
    """What an attack returned, and the iterates that its callback saw."""
    seen = []
    return attack(*arguments, callback=seen.append, **options), seen


class Witness:
    """A model that notes every batch it was asked about: inputs, logits, whether gradients were on."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __call__(self, x):
        z = self.model(x)
        self.asked.append((x.detach().clone(), z.detach(), torch.is_grad_enabled() or x.requires_grad))
        return z


# ---- what is found is allowed ----


@settings(max_examples=20)  # for each of the attacks, with up to 16 samples each
@each_run
@given(problems())
def test_what_is_found_is_allowed_and_x_plus_delta_is_in_the_box_without_any_tolerance(attack, problem):
    model, x, y, ball = problem
    ball = taken(attack, ball)
    delta = attack(model, x, y, ball)
    assert (delta.shape, delta.dtype) == (x.shape, x.dtype)
    assert ball.contains(delta, x).all()
    if ball.box:
        assert (x + delta >= 0).all()
        assert (x + delta <= 1).all()
    zero = torch.as_tensor(ball.eps).expand(len(x)) == 0
    assert (delta[zero] == 0).all()


@each_climb
@settings(max_examples=20)
@given(problem=problems())
def test_every_iterate_is_allowed(attack, problem):
    for iterate in watched(attack, *problem, restarts=2)[1]:
        assert problem.ball.contains(iterate.delta, problem.x).all()
        if problem.ball.box:
            moved = problem.x + iterate.delta
            assert ((moved >= 0) & (moved <= 1)).all()


@each_run_and_p
@pytest.mark.parametrize("box", [None, BOX])
def test_a_model_that_never_changes_its_mind_gives_no_nan(attack, p, box):
    model, x, y, ball = problem(p=p, box=box)
    nn.init.zeros_(model[-1].weight)
    delta = attack(model, x, y, ball)
    assert delta.isfinite().all()
    assert ball.contains(delta, x).all()
    if attack is attacks.fgsm:
        assert (delta == 0).all()


@pytest.mark.parametrize("p", ORDERS)
@from_zero
def test_gradients_of_any_size_are_followed(attack, p):
    """Multiplying the loss by a power of two changes no direction, hence no bit."""
    arguments = problem(p=p)
    expected = attack(*arguments, loss=losses.margin_loss)
    for power in (-60, 60):
        got = attack(*arguments, loss=lambda z, y, s=2.0**power: s * losses.margin_loss(z, y))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@each_attack
@pytest.mark.parametrize("shape", SHAPES)
def test_an_empty_batch_gives_an_empty_answer(attack, shape):
    model, x, y, ball = problem(shape=shape)
    delta = attack(model, x[:0], y[:0], ball)
    assert (delta.shape, delta.dtype) == ((0, *shape), x.dtype)


# ---- asking leaves no trace ----


def messy(mode):
    """BatchNorm, dropout, a frozen parameter, one that has a gradient already; in mixed modes too."""
    body = models.mlp([8, 12, 3])
    model = nn.Sequential(*body[:2], nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), body[3])
    model[2].running_var.fill_(0.5)
    model[1].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    for i, module in enumerate(model.modules()):
        module.training = {"train": True, "eval": False, "mixed": i % 2 == 0}[mode]
    return model


def state(model):
    """All that an attack could change in a model, and the global generators."""
    tensors = [v.clone() for v in model.state_dict().values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    return tensors, gradients, modes, [p.requires_grad for p in model.parameters()], generators()


def arguments(p=math.inf, seed=0):
    _, x, y, ball = problem(seed, p=p, dtype=torch.float32)
    return x, y, ball


each_mode = pytest.mark.parametrize("mode", ["train", "eval", "mixed"])


@each_mode
@each_attack
def test_statistics_modes_gradients_flags_and_global_generators_stay_as_they_are(attack, mode):
    model = messy(mode)
    before = state(model)
    attack(model, *arguments())
    attack(model, *arguments(), targets=(arguments()[1] + 1) % 3)
    assert same(state(model), before)


@each_mode
@each_attack
def test_so_they_do_when_the_model_fails_on_the_way(attack, mode):
    model = messy(mode)
    before, calls = state(model), itertools.count(1)

    def fail(*_):
        if next(calls) == (1 if attack is attacks.fgsm else 2):
            raise RuntimeError("stop")

    model[4].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        attack(model, *arguments())
    assert same(state(model), before)


@each_mode
@each_climb
def test_so_they_do_when_the_callback_fails(attack, mode):
    def stop(iterate):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")

    model = messy(mode)
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"):
        attack(model, *arguments(), callback=stop)
    assert same(state(model), before)


@each_attack
def test_so_they_do_when_an_argument_is_refused(attack):
    model, (x, y, ball) = messy("mixed"), arguments()
    before = state(model)
    for bad in ((x + 1, y, ball), (x, y + 5, ball), (x, y[:2], ball)):
        with pytest.raises(ValueError, match=r"expected|must"):
            attack(model, *bad)
    assert same(state(model), before)


@each_attack
def test_the_model_is_asked_in_eval_mode(attack):
    model, (x, y, ball) = messy("train"), arguments()
    expected = attack(messy("eval"), x, y, ball)
    assert torch.equal(attack(model, x, y, ball), expected)


@each_attack
def test_inputs_labels_and_targets_stay_as_they_are_and_get_no_gradient(attack):
    model, (x, y, ball) = messy("train"), arguments()
    targets = (y + 1) % 3
    leaf = x.clone().requires_grad_()
    leaf.grad = torch.ones_like(x)
    copies = x.clone(), y.clone(), targets.clone()
    delta = attack(model, leaf, y, ball, targets=targets)
    assert same([leaf.detach(), y, targets], list(copies))
    assert torch.equal(leaf.grad, torch.ones_like(x))
    assert leaf.requires_grad
    assert torch.equal(delta, attack(model, x, y, ball, targets=targets))


@each_attack
def test_the_result_carries_no_gradient_and_shares_no_memory(attack):
    model, (x, y, ball) = messy("train"), arguments()
    delta = attack(model, x.clone().requires_grad_(), y, ball)
    assert not delta.requires_grad
    assert delta.grad_fn is None
    copy = x.clone()
    delta += 1
    assert torch.equal(x, copy)


@each_attack
def test_a_radius_that_carries_gradients_passes_none_on(attack):
    x, y, _ = arguments()
    eps = torch.full((len(x),), 0.1, requires_grad=True)
    assert not attack(messy("eval"), x, y, Ball(math.inf, eps, BOX)).requires_grad


@pytest.mark.parametrize("enabled", [True, False])
@each_attack
def test_the_answer_is_the_same_with_gradients_switched_off_and_the_switch_stays(attack, enabled):
    model = messy("train")
    expected = attack(model, *arguments())
    with torch.set_grad_enabled(enabled):
        delta = attack(model, *arguments())
        assert torch.is_grad_enabled() == enabled
    assert torch.equal(delta, expected)
    assert not delta.requires_grad


@each_loss
def test_inputs_and_labels_made_in_inference_mode_are_attacked_like_others(attack):
    model, x, y, ball = problem()
    expected = attack(model, x, y, ball, loss=losses.margin_loss)
    with torch.inference_mode():
        x, y = x.clone(), y.clone()
        assert x.is_inference()
        assert torch.equal(attack(model, x, y, ball, loss=losses.margin_loss), expected)
    assert torch.equal(attack(model, x, y, ball, loss=losses.margin_loss), expected)


RANDOM = {name: RUNS[name] for name in ("pgd best", "pgd first", "pgd last", "apgd", "square", "spsa")}


@pytest.mark.parametrize("attack", RANDOM.values(), ids=RANDOM)
def test_the_generator_decides_the_result_and_moves_on(attack):
    inputs = problem(eps=0.1)
    generator = seeded(5)
    first, second = (attack(*inputs, generator=generator) for _ in range(2))
    assert torch.equal(first, attack(*inputs, generator=seeded(5)))
    assert not torch.equal(generator.get_state(), seeded(5).get_state())
    if attack not in (RUNS["pgd best"], RUNS["pgd first"], RUNS["apgd"]):  # these keep the better run
        assert not torch.equal(first, second)
    without = attack(*inputs)
    assert torch.equal(without, attack(*inputs))
    assert torch.equal(without, attack(*inputs, generator=seeded(0)))


@each_attack
def test_a_plain_function_and_a_module_are_attacked_alike(attack):
    model, x, y, ball = problem()
    assert torch.equal(attack(lambda x: model(x), x, y, ball), attack(model, x, y, ball))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("attack", RANDOM.values(), ids=RANDOM)
def test_logits_may_have_another_type_than_the_inputs(attack, dtype):
    model, x, y, ball = problem(dtype=torch.float32)
    delta = attack(lambda x: model(x).to(dtype), x, y, ball)
    assert delta.dtype == torch.float32
    assert ball.contains(delta, x).all()


# ---- every sample for itself ----


SHAPED = [(p, box, SHAPES[2 + (i + bool(box)) % 3]) for i, p in enumerate(ORDERS) for box in (None, BOX)]


ALONE = {**FROM_ZERO, **{name: RUNS[name] for name in ("ilcm", "jsma", "rays")}}  # draw nothing


@pytest.mark.parametrize(("p", "box", "shape"), SHAPED)  # every shape with two of the six balls
@pytest.mark.parametrize("attack", ALONE.values(), ids=ALONE)
def test_a_batch_is_its_samples_one_by_one(attack, p, box, shape):
    p = taken(attack, Ball(p, 0)).p
    eps = torch.tensor([0.0, 0.05, 0.1, 0.3, 0.5, 1.0], dtype=torch.float64)
    whole = problem(shape=shape, p=p, box=box, eps=eps)
    together = attack(*whole)
    for i in range(len(whole.x)):
        torch.testing.assert_close(attack(*whole.row(i)), together[i : i + 1], rtol=0, atol=1e-6)


@each_run_and_p
def test_a_radius_for_each_sample_is_each_sample_with_its_own_radius(attack, p):
    model, x, y, _ = problem(n=4)
    radii = (0.0, 0.02, 0.1, 1.0)
    together = attack(model, x, y, Ball(p, torch.tensor(radii, dtype=torch.float64), BOX))
    for i, eps in enumerate(radii):
        alone = attack(model, x, y, Ball(p, eps, BOX))
        torch.testing.assert_close(together[i], alone[i], rtol=0, atol=1e-9)


@each_loss
def test_the_shape_of_a_sample_does_not_matter_to_gradient_attacks(attack):
    model, x, y, ball = problem(shape=(4, 6))
    assert torch.equal(attack(model, x, y, ball).flatten(1), attack(model, x.flatten(1), y, ball))


# ---- what is reported is what is there ----

LOSSES = (losses.cross_entropy, losses.log_odds, losses.margin_loss, losses.dlr)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@each_climb
def test_the_loss_and_the_lead_of_an_iterate_are_those_of_the_model_there(attack, loss):
    model, x, y, ball = problem()
    for iterate in watched(attack, model, x, y, ball, loss=loss, restarts=2)[1]:
        z = model(x + iterate.delta).detach()
        torch.testing.assert_close(iterate.loss, loss(z, y), rtol=0, atol=1e-12)
        torch.testing.assert_close(iterate.margin, losses.margin(z, y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [losses.targeted, losses.targeted_all], ids=lambda loss: loss.__name__)
@each_climb
def test_with_targets_the_lead_is_that_of_the_target_over_all_others(attack, loss):
    model, x, y, ball = problem(K=4, eps=0.5, n=20)
    targets = (y + 1 + torch.arange(20) % 3) % 4
    for iterate in watched(attack, model, x, y, ball, loss=loss, targets=targets)[1]:
        z = model(x + iterate.delta).detach()
        torch.testing.assert_close(iterate.loss, loss(z, y, targets), rtol=0, atol=1e-12)
        others = z.scatter(1, targets[:, None], -math.inf).amax(1)
        torch.testing.assert_close(iterate.margin, others - z[range(20), targets], rtol=0, atol=1e-12)


@each_loss
def test_without_a_loss_the_attack_climbs_the_log_odds_or_the_targets_lead_over_the_label(attack):
    model, x, y, ball = problem()
    targets = (y + 1) % 3
    for default, options in ((losses.log_odds, {}), (losses.targeted, {"targets": targets})):
        got = attack(model, x, y, ball, **options)
        assert torch.equal(got, attack(model, x, y, ball, loss=default, **options))


@pytest.mark.parametrize("name", [name for name in RANDOM if name != "spsa"])
def test_a_targeted_attack_has_arrived_where_the_prediction_is_the_target_and_not_where_it_is_wrong(
    name,
):
    attack = RUNS[name]
    model, x, _, _ = problem(K=4, n=40)
    y = model(x).argmax(1)
    targets = (y + 1 + torch.arange(40) % 3) % 4
    witness = Witness(model)
    delta = attack(witness, x, y, Ball(math.inf, 0.2, BOX), targets=targets)
    standing, arrived, wrong = torch.arange(40), torch.zeros(40).bool(), torch.zeros(40).bool()
    for _, z, _ in witness.asked:
        if len(z) != 40:  # who has arrived is not asked again; who is merely wrong is
            standing = standing[~arrived[standing]]
        arrived[standing] |= z.argmax(1) == targets[standing]
        wrong[standing] |= z.argmax(1) != y[standing]
    reached = model(x + delta).argmax(1) == targets
    assert 0 < reached.sum() < 40
    assert (wrong & ~arrived).any()
    assert not (reached & ~arrived).any() or attack is RUNS["pgd last"]  # which does not look at its end
    assert torch.equal(reached, arrived) or attack is RUNS["pgd last"]


# ---- fgsm ----


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_fgsm_is_the_maximiser_of_the_linearised_loss(loss, p, box):
    model, x, y, ball = problem(p=p, box=box)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model(x), y).sum(), x)
    delta = attacks.fgsm(model, x, y, ball, loss=loss)
    torch.testing.assert_close(delta, ball.argmax(gradient, x), rtol=0, atol=1e-12)
    if p == math.inf and not box:
        assert torch.equal(delta, ball.eps * gradient.sign())


# ---- pgd ----


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("steps", [0, 1, 7])
@each_keep
def test_the_callback_sees_every_start_and_every_step_of_every_restart(keep, steps, restarts):
    inputs = problem(eps=1e-6)._replace(y=problem().model(problem().x).argmax(1))  # nothing breaks
    delta, seen = watched(attacks.pgd, *inputs, steps=steps, restarts=restarts, keep=keep)
    assert [(i.restart, i.step) for i in seen] == [
        (r, s) for r in range(restarts) for s in range(steps + 1)
    ]
    assert torch.equal(delta, attacks.pgd(*inputs, steps=steps, restarts=restarts, keep=keep))


@each_climb
def test_the_first_run_starts_at_0_and_the_others_at_random_points(attack):
    inputs = problem(p=2)
    generator, drawn = seeded(3), seeded(3)
    seen = watched(attack, *inputs, restarts=3, generator=generator)[1]
    zero, *others = (iterate.delta for iterate in seen if iterate.step == 0)
    assert (zero == 0).all()
    for start in others:
        assert torch.equal(start, inputs.ball.sample(inputs.x, drawn))


@each_keep
def test_without_steps_pgd_stays_at_0(keep):
    assert (attacks.pgd(*problem(), steps=0, keep=keep) == 0).all()


# ---- pgd and auto-pgd from a start of the caller's ----


def started(seed=0, p=math.inf, box=BOX, eps=0.3, **options):
    """A problem, and a random point of its Δ(x)."""
    inputs = problem(seed, p=p, box=box, eps=eps, **options)
    return inputs, inputs.ball.sample(inputs.x, seeded(seed + 1))


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
@each_keep
def test_the_first_run_starts_where_it_is_told_to_and_the_others_at_random_points(keep, p, box):
    inputs, start = started(p=p, box=box)
    y = inputs.model(inputs.x + start).argmax(1)  # nothing is broken at the start
    inputs, drawn = inputs._replace(y=y), seeded(3)
    options = {"steps": 2, "restarts": 3, "keep": "last" if keep == "first" else keep}
    seen = watched(attacks.pgd, *inputs, start=start, generator=seeded(3), **options)[1]
    first, *others = (iterate.delta for iterate in seen if iterate.step == 0)
    assert torch.equal(first, start)
    for delta in others:
        assert torch.equal(delta, inputs.ball.sample(inputs.x, drawn))
    seen = watched(attacks.pgd, *inputs, steps=2, start=start, keep=keep)[1]
    assert torch.equal(seen[0].delta, start)


def test_auto_pgd_too_starts_where_it_is_told_to_and_is_never_worse_than_that():
    inputs, start = started()
    drawn = seeded(3)
    options = {"steps": 4, "restarts": 2, "start": start, "generator": seeded(3)}
    delta, seen = watched(attacks.apgd, *inputs, **options)
    first, other = (iterate.delta for iterate in seen if iterate.step == 0)
    assert torch.equal(first, start)
    assert torch.equal(other, inputs.ball.sample(inputs.x, drawn))
    assert (inputs.leads(delta) >= inputs.leads(start)).all()
    zero = torch.zeros_like(start)
    assert torch.equal(attacks.apgd(*inputs, start=zero), attacks.apgd(*inputs))


@each_keep
def test_without_a_start_it_is_0_and_without_steps_one_stays_at_the_start(keep):
    inputs, start = started()
    zero = torch.zeros_like(inputs.x)
    run = partial(attacks.pgd, *inputs, steps=4, restarts=2, keep=keep)
    assert torch.equal(run(start=zero), run())
    assert torch.equal(attacks.pgd(*inputs, steps=0, start=start, keep=keep), start)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_a_run_that_goes_on_from_where_another_ended_is_one_long_run(p, box):
    inputs, start = started(p=p, box=box)
    run = partial(attacks.pgd, *inputs, step_size=0.05, keep="last")
    halfway = run(steps=3, start=start)
    assert torch.equal(run(steps=4, start=halfway), run(steps=7, start=start))


@settings(max_examples=30)
@given(problem=problems(), keep=st.sampled_from(("best", "first", "last")), seed=seeds)
def test_from_any_start_what_is_found_is_allowed_and_the_best_leads_by_no_less_than_the_start(
    problem, keep, seed
):
    model, x, y, ball = problem
    start = ball.sample(x, seeded(seed))
    delta = attacks.pgd(model, x, y, ball, steps=3, restarts=2, start=start, keep=keep)
    assert (delta.shape, delta.dtype) == (x.shape, x.dtype)
    assert ball.contains(delta, x).all()
    if keep == "best":
        assert (problem.leads(delta) >= problem.leads(start) - 1e-5).all()


def test_who_is_broken_at_the_start_stays_there_and_the_others_go_on():
    inputs, start = started(n=20)
    broken = inputs.leads(start) >= 0
    assert 0 < broken.sum() < 20
    delta = attacks.pgd(*inputs, start=start, keep="first")
    assert torch.equal(delta[broken], start[broken])
    assert (delta != start)[~broken].flatten(1).any(1).all()


@pytest.mark.parametrize("steps", [0, 3])
@each_keep
def test_the_start_stays_as_it_is_gets_no_gradient_and_is_not_what_is_returned(keep, steps):
    inputs, start = started()
    copy, leaf = start.clone(), start.clone().requires_grad_()
    expected = attacks.pgd(*inputs, steps=steps, start=start, keep=keep)
    delta = attacks.pgd(*inputs, steps=steps, start=leaf, keep=keep)
    assert torch.equal(delta, expected)
    assert not delta.requires_grad
    assert leaf.grad is None
    expected += 1
    delta += 1
    assert torch.equal(start, copy)
    assert torch.equal(leaf.detach(), copy)


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.apgd])
def test_a_start_that_is_no_perturbation_of_these_images_is_refused(attack):
    (model, x, y, ball), start = started(p=2)
    boxless = Ball(2, 0.3)
    edge = torch.full_like(x, 0.95)
    for start_bad, at, where, words in (
        (start * 0 + 1, x, ball, "outside"),
        (1.001 * 0.3 * start / norms(start, 2)[:, None], x, boxless, "outside"),
        (start * 0 + 0.09, edge, ball, "outside"),  # in the ball, not in the box
        (with_nan(start), x, ball, "finite"),
        (start[:, :4], x, ball, "like x"),
        (start[:3], x, ball, "like x"),
        (start[:1], x, ball, "like x"),  # would broadcast
        (start.float(), x, ball, "like x"),
        (start.float(), x, boxless, "like x"),
    ):
        with pytest.raises(ValueError, match=words):
            attack(model, at, y, where, start=start_bad)


def with_nan(start):
    start = start.clone()
    start[0, 0] = math.nan
    return start


def test_with_targets_and_a_radius_for_each_sample_a_start_is_a_start():
    eps = torch.tensor([0.0, 0.05, 0.1, 0.3, 0.5, 1.0], dtype=torch.float64)
    inputs, start = started(eps=eps)
    targets = (inputs.y + 1) % 3
    delta, seen = watched(attacks.pgd, *inputs, start=start, targets=targets)
    assert torch.equal(seen[0].delta, start)
    assert (start[0] == 0).all()
    assert inputs.ball.contains(delta, inputs.x).all()


@pytest.mark.parametrize("p", ORDERS)
@each_climb
def test_the_best_iterate_is_kept_and_no_other_leads_by_more(attack, p):
    inputs = problem(p=p, n=20)
    delta, seen = watched(attack, *inputs, restarts=3)
    torch.testing.assert_close(
        inputs.leads(delta), -torch.stack([i.margin for i in seen]).amin(0), rtol=0, atol=1e-12
    )
    assert any((delta[k] == i.delta[k]).all() for i in seen for k in range(20))


@pytest.mark.parametrize("p", ORDERS)
def test_the_best_leads_by_no_less_than_the_last(p):
    inputs = problem(p=p, n=20, eps=1.0)
    best, last = (
        inputs.leads(attacks.pgd(*inputs, steps=7, restarts=2, keep=k)) for k in ("best", "last")
    )
    assert (best >= last - 1e-12).all()
    assert (best > last + 1e-6).any()


@pytest.mark.parametrize("p", ORDERS)
@each_climb
def test_more_restarts_never_do_worse(attack, p):
    inputs = problem(p=p, n=20, eps=1.0)
    few, some, many = (inputs.leads(attack(*inputs, restarts=r)) for r in (1, 2, 5))
    assert (few <= some).all()
    assert (some <= many).all()
    assert (few < many - 1e-6).any()


def test_keeping_the_last_gives_the_last_that_the_callback_saw():
    delta, seen = watched(attacks.pgd, *problem(), keep="last", restarts=2)
    assert torch.equal(delta, seen[-1].delta)


def right(**options):
    """A problem whose samples are all classified right."""
    inputs = problem(**options)
    return inputs._replace(y=inputs.model(inputs.x).argmax(1))


@pytest.mark.parametrize("p", ORDERS)
def test_keeping_the_first_breaks_the_samples_that_keeping_the_best_breaks(p):
    inputs = right(p=p, n=40, eps={1: 1.0, 2: 0.4, math.inf: 0.15}[p])
    first, best = (inputs.leads(attacks.pgd(*inputs, keep=k)) >= 0 for k in ("first", "best"))
    assert torch.equal(first, best)
    assert 0 < best.sum() < 40


@pytest.mark.parametrize("attack", [RUNS["pgd first"], RUNS["square"]], ids=["pgd first", "square"])
def test_a_broken_sample_is_never_asked_about_again(attack):
    model, x, y, ball = right(n=40, eps=0.2)
    witness = Witness(model)
    delta = attack(witness, x, y, ball)
    rows = [len(x) for x, _, _ in witness.asked]
    assert rows[0] == 40
    assert rows == sorted(rows, reverse=True)
    broken = (losses.margin_loss(model(x + delta), y) >= 0).sum()
    assert 0 < broken < 40
    assert rows[-1] >= 40 - broken
    if attack is RUNS["square"]:  # exactly those that no query broke
        standing = torch.arange(40)
        for _, z, _ in witness.asked:
            assert len(z) == len(standing)
            standing = standing[losses.margin_loss(z, y[standing]) < 0]


@pytest.mark.parametrize("p", ORDERS)
def test_keeping_the_first_asks_for_each_sample_until_it_breaks_and_no_longer(p):
    inputs = right(p=p, n=40, eps={1: 1.0, 2: 0.4, math.inf: 0.15}[p])
    witness = Witness(inputs.model)
    attacks.pgd(witness, *inputs[1:], keep="first")
    seen = watched(attacks.pgd, *inputs, keep="best")[1]
    standing = torch.stack([i.margin for i in seen]).cummin(0).values > 0  # (steps + 1, n)
    assert [len(x) for x, _, _ in witness.asked] == [40, *standing[:-1].sum(1).tolist()]


@pytest.mark.parametrize("attack", [RUNS["pgd first"], RUNS["square"]], ids=["pgd first", "square"])
def test_a_tie_counts_as_broken(attack):
    _, x, y, ball = problem()
    witness = Witness(lambda x: torch.tensor([[2.0, 2.0, 2.0]]) + 0 * x[:, :1])
    attack(witness, x, y, ball)
    assert [len(x) for x, _, _ in witness.asked] == [6]


@pytest.mark.parametrize("restarts", [1, 3])
def test_when_all_samples_are_broken_the_model_is_asked_no_more(restarts):
    inputs = right(eps=5.0, box=None)
    witness = Witness(inputs.model)
    delta = attacks.pgd(witness, *inputs[1:], keep="first", restarts=restarts)
    assert (inputs.leads(delta) >= 0).all()
    assert all(len(x) > 0 for x, _, _ in witness.asked)


@pytest.mark.parametrize("p", ORDERS)
def test_the_first_step_is_as_long_as_the_step_size_says(p):
    model, x, y, _ = problem()
    x = 0.5 + 0.1 * (x - 0.5)
    seen = watched(attacks.pgd, model, x, y, Ball(p, 0.3, BOX), steps=2, step_size=0.07)[1]
    torch.testing.assert_close(norms(seen[1].delta, p), torch.full((6,), 0.07, dtype=torch.float64))


@pytest.mark.parametrize("p", ORDERS)
def test_without_a_step_size_it_is_two_and_a_half_radii_divided_by_the_steps(p):
    model, x, y, _ = problem()
    x, eps = 0.5 + 0.1 * (x - 0.5), torch.linspace(0.01, 0.3, 6, dtype=torch.float64)
    seen = watched(attacks.pgd, model, x, y, Ball(p, eps, BOX), steps=20)[1]
    torch.testing.assert_close(norms(seen[1].delta, p), 2.5 * eps / 20)


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("p", ORDERS)
def test_one_step_of_the_radius_or_more_without_a_box_is_fgsm(p, factor):
    inputs = problem(p=p, box=None)
    one = attacks.pgd(*inputs, steps=1, step_size=factor * inputs.ball.eps, keep="last")
    torch.testing.assert_close(one, attacks.fgsm(*inputs), rtol=0, atol=1e-12)


def test_in_a_box_one_step_of_any_length_from_the_radius_on_is_fgsm_for_p_infinity():
    inputs = problem()
    one = attacks.pgd(*inputs, steps=1, keep="last")
    torch.testing.assert_close(one, attacks.fgsm(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep_or_apgd", ["best", "first", "last", "apgd"])
@pytest.mark.parametrize("broken", ["logits", "slope"])
def test_a_model_that_turns_nan_on_the_way_is_reported(broken, keep_or_apgd):
    model, x, y, ball = right(eps=1e-3)

    def fails(v):
        moved = (v - x).abs()
        if broken == "logits":
            return model(v) + torch.where(moved.sum() > 0, math.nan, 0.0)
        return model(v) + moved.sqrt().sum(1, keepdim=True) * 1e-9  # finite, and of no finite slope at 0

    apgd = keep_or_apgd == "apgd"
    attack = attacks.apgd if apgd else partial(attacks.pgd, keep=keep_or_apgd)
    with pytest.raises(ValueError, match="NaN"):
        attack(fails, x, y, ball)


# ---- against the truth, which linear models have ----


def linear_problem(seed, p, eps, box, K, n=8, d=6):
    W, b = entries((K, d), seed, "plain"), entries((K,), seed + 1, "plain")
    x = inputs_like(n, d, seed, box)
    y = torch.randint(0, K, (n,), generator=seeded(seed))
    return W, b, lambda x: x.flatten(1) @ W.T + b, x, y, Ball(p, eps, box)


def inputs_like(n, d, seed, box):
    return problem(seed, shape=(d,), n=n, box=box).x


def test_every_attack_of_the_package_is_run_here():
    named = {getattr(run, "func", run) for run in (RUNS | SHORTEST).values()}
    every = {getattr(attacks, name) for name in attacks.__all__ if name.islower()}
    assert named == every - {attacks.count}


@pytest.mark.parametrize("p", ORDERS)
def test_bim_is_pgd_with_steps_that_only_reach_the_border_together_and_fgsm_with_one(p):
    inputs = problem(p=p, n=20)
    for steps in (1, 4):
        size = inputs.ball.eps / steps
        expected = attacks.pgd(*inputs, steps=steps, step_size=size, keep="last")
        torch.testing.assert_close(attacks.bim(*inputs, steps=steps), expected)
    free = problem(p=p, n=20, box=None)  # in a box a step for p = 2 is cut where it meets the edge
    torch.testing.assert_close(attacks.bim(*free, steps=1), attacks.fgsm(*free))


AT_FULL_LENGTH = {
    "pgd": attacks.pgd,
    "pgd last": partial(attacks.pgd, keep="last"),
    "apgd": attacks.apgd,
}
# In a box, shrinking δ takes coordinates off the box's edge again, by as much as a step is long: with
# these the worst margin is missed by a part of what there is to gain.
NEARLY = {("pgd", 2), ("pgd last", 1), ("pgd last", 2), ("apgd", 1), ("apgd", 2)}


def most_missed(name, p, box, possible):
    """How far from the truth an attack may end on a linear model."""
    return 0.06 * possible + 1e-5 if box and (name, p) in NEARLY else torch.full_like(possible, 1e-5)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("name", AT_FULL_LENGTH)
def test_on_a_linear_model_of_two_classes_the_worst_margin_is_reached(name, p, box):
    for seed, eps in enumerate((0.05, 0.3, 1.5)):
        W, b, model, x, y, ball = linear_problem(seed, p, eps, box, 2)
        clean = losses.margin(model(x), y)
        reached = losses.margin(model(x + AT_FULL_LENGTH[name](model, x, y, ball)), y)
        exact = linear.margins(W, b, x, y, ball).amin(1)
        assert (reached - exact <= most_missed(name, p, box, clean - exact)).all()
        assert (reached - exact >= -1e-5).all()


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_on_a_linear_model_of_many_classes_the_worst_margin_towards_each_target_is_reached(p, box):
    W, b, model, x, y, ball = linear_problem(0, p, 0.3, box, 4)
    exact = linear.margins(W, b, x, y, ball)
    for shift in (1, 2, 3):
        targets = (y + shift) % 4
        seen = watched(attacks.pgd, model, x, y, ball, targets=targets)[1]
        reached = torch.stack([i.loss for i in seen]).amax(0)
        expected = -exact.gather(1, targets[:, None]).squeeze(1)
        missed = expected - reached
        assert (missed <= most_missed("pgd", p, box, expected - seen[0].loss)).all()
        assert (missed >= -1e-5).all()


@settings(max_examples=12)
@each_run
@given(seed=seeds, p=orders, eps=st.sampled_from((0.01, 0.1, 1.0)), box=st.sampled_from((None, BOX)))
def test_on_a_linear_model_no_attack_beats_the_exact_worst_margin(attack, seed, p, eps, box):
    p = taken(attack, Ball(p, eps)).p
    W, b, model, x, y, ball = linear_problem(seed, p, eps, box, 4, n=24)
    exact = linear.margins(W, b, x, y, ball)
    for options in ({}, {"targets": (y + 1) % 4}):
        delta = attack(model, x, y, ball, **options)
        z = model(x + delta)
        assert (losses.margin(z, y) >= exact.amin(1) - 1e-9).all()
        assert (z.gather(1, y[:, None]) - z >= exact.nan_to_num(posinf=0.0) - 1e-9).all()


# ---- an ε for each entry ----


@each_run
@given(problem=problems(), seed=seeds)
@settings(max_examples=15)
def test_with_a_radius_for_each_entry_what_is_found_is_allowed_and_masked_pixels_stay(
    attack, problem, seed
):
    model, x, y, ball = problem
    ball = taken(attack, ball)
    parts = entries((len(x), *x.shape[1:]), seed, "sparse").abs().to(x)
    eps = ball.radii(x).view(-1, *[1] * (x.ndim - 1)) * parts
    ball = Ball(ball.p, eps, ball.box)
    delta = attack(model, x, y, ball)
    assert ball.contains(delta, x).all()
    assert (delta[eps == 0] == 0).all()
    if ball.box:
        assert (x + delta >= 0).all()
        assert (x + delta <= 1).all()


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.bim, CLIMBS["pgd"]])
def test_a_radius_for_each_entry_is_one_radius_for_inputs_in_other_units(attack, p):
    """δ = c ⊙ u: the attack on f(x + c ⊙ u) in u, where the ball has one radius, is the same attack."""
    model, x, y, _ = problem(shape=(2, 3), p=p, box=None)
    c = 4.0 ** -torch.arange(6, dtype=torch.float64).view(1, 2, 3)
    delta = attack(model, x, y, Ball(p, 0.5 * c))
    u = attack(lambda at: model(c * at), x / c, y, Ball(p, 0.5))
    torch.testing.assert_close(delta, c * u, rtol=1e-9, atol=1e-12)


@each_run_and_p
def test_masks_cost_the_attacker_and_a_mask_of_everything_costs_nothing(attack, p):
    model, x, y, ball = problem(shape=(4, 6), p=p, n=20)
    patch = torch.zeros(1, 4, 6, dtype=torch.float64)
    patch[:, 1:3, 2:4] = ball.eps
    whole = attack(model, x, y, Ball(p, torch.full_like(patch, ball.eps), BOX))
    torch.testing.assert_close(whole, attack(model, x, y, ball), rtol=1e-6, atol=1e-9)
    if attack in [RUNS[name] for name in ("pgd first", "ilcm", "jsma", "spsa", "rays")]:
        return  # these stop early, or want something else than a small margin
    part = attack(model, x, y, Ball(p, patch, BOX))
    lead = [losses.margin(model(x + delta), y).mean() for delta in (whole, part, 0 * part)]
    assert lead[0] < lead[1] < lead[2]


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_on_a_linear_model_a_patch_has_an_exact_worst_margin_that_fgsm_reaches(p, box):
    W, b, model, x, y, _ = linear_problem(0, p, 0.3, box, 2, n=24)
    mask = torch.rand(x.shape, generator=seeded(1), dtype=torch.float64) * (x > 0.4)
    ball = Ball(p, mask, box)
    exact = linear.margins(W, b, x, y, ball).amin(1)
    worst = losses.margin(model(x + attacks.fgsm(model, x, y, ball)), y)
    torch.testing.assert_close(worst, exact, rtol=1e-9, atol=1e-9)


# ---- apgd ----


def checkpoints(steps):
    """w_j = ⌈p_j N⌉, p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j − p_{j−1} − .03, .06), exactly."""
    share = [Fraction(0), Fraction(22, 100)]
    while share[-1] <= 1:
        gap = max(share[-1] - share[-2] - Fraction(3, 100), Fraction(6, 100))
        share.append(share[-1] + gap)
    return sorted({math.ceil(part * steps) for part in share[1:-1]})


def test_the_checkpoints_lie_within_the_run_and_never_further_apart_than_before():
    for steps in range(1, 300):
        found = sorted(auto_pgd._checkpoints(steps))
        assert found[0] > 0
        assert found[-1] <= steps
        if steps >= 25:
            gaps = [b - a for a, b in itertools.pairwise([0, *found])]
            assert all(b <= a + 1 for a, b in itertools.pairwise(gaps))  # + 1: rounded up


@pytest.mark.parametrize("steps", [10, 25, 40, 100, 1000])
def test_the_checkpoints_are_those_of_the_paper(steps):
    assert sorted(auto_pgd._checkpoints(steps)) == checkpoints(steps)


def algorithm_1(f, slope, x, eps, steps, box, marks):
    """Croce & Hein 2020, algorithm 1, for one sample and p = ∞, in plain loops: the points visited."""

    def project(v):
        v = torch.maximum(torch.minimum(v, x + eps), x - eps)
        return v.clamp(*box) if box else v

    eta, rho, alpha = 2 * eps, 0.75, 0.75
    points, values = [x], [f(x)]
    best, f_best = x, values[0]
    f_best_then, eta_then, last = None, eta, 0
    current, previous, rises = x, x, 0
    for k in range(steps):
        z = project(current + eta * slope(current).sign())
        step = (
            z
            if k == 0
            else project(current + alpha * (z - current) + (1 - alpha) * (current - previous))
        )
        rises += f(step) > f(current)
        previous, current = current, step
        points.append(current)
        values.append(f(current))
        if values[-1] > f_best:
            best, f_best = current, values[-1]
        if k + 1 in marks:
            stuck = f_best_then is not None and eta_then == eta and f_best_then == f_best
            eta_then, f_best_then = eta, f_best
            if rises < rho * (k + 1 - last) or stuck:
                eta, current = eta / 2, best
            rises, last = 0, k + 1
    return torch.stack(points)


# on these a sample rises in exactly 3/4 of the steps, and one stays at its record without halving
@pytest.mark.parametrize(
    ("steep", "eps", "seed", "box"),
    [(1, 0.4, 3, None), (3, 0.4, 1, None), (1, 0.4, 3, BOX), (10, 0.1, 3, BOX)],
)
def test_apgd_is_algorithm_1_of_the_paper(steep, eps, seed, box):
    """On a curved loss with many hills."""
    waves = entries((6, 4), seed, "plain") * steep

    def model(x):
        f = torch.sin(x.flatten(1) @ waves.T).sum(1) + torch.cos(5 * x.flatten(1)).sum(1)
        return torch.stack([-f, torch.zeros_like(f)], 1)

    x, y = problem(shape=(4,), n=8, box=box).x, torch.zeros(8, dtype=torch.int64)
    seen = watched(attacks.apgd, model, x, y, Ball(math.inf, eps, box), steps=50)[1]
    visited = torch.stack([i.delta for i in seen])

    def f(v):
        return losses.log_odds(model(v[None]), y[:1])[0].item()

    def slope(v):
        v = v.clone().requires_grad_()
        return torch.autograd.grad(losses.log_odds(model(v[None]), y[:1]).sum(), v)[0]

    for i in range(8):
        expected = algorithm_1(f, slope, x[i], eps, 50, box, checkpoints(50)) - x[i]
        torch.testing.assert_close(visited[:, i], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("p", ORDERS)
def test_on_a_hill_apgd_comes_closer_to_the_top_than_steps_of_one_size(p):
    top = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None]

    def model(x):
        return torch.cat([(x - top) ** 2, torch.zeros_like(x)], 1)  # the loss is −(x − top)²

    x, y = torch.full_like(top, 0.5), torch.zeros(19, dtype=torch.int64)
    ball = Ball(p, 0.6, BOX)
    fixed, own = (
        (x + a(model, x, y, ball) - top).abs() for a in (partial(attacks.pgd, steps=100), attacks.apgd)
    )
    assert own.mean() < fixed.mean() / 4
    assert own.max() < fixed.max()


def test_where_every_step_jumps_over_the_ridge_the_steps_become_a_16th_of_the_first():
    x, y, ball = torch.full((1, 1), 0.5).double(), torch.zeros(1, dtype=torch.int64), Ball(math.inf, 0.1)

    def roof(x):
        return torch.cat([(x - 0.501).abs(), torch.zeros_like(x)], 1)

    delta, seen = watched(attacks.apgd, roof, x, y, ball)
    moves = [float((b.delta - a.delta).abs()) for a, b in itertools.pairwise(seen)]
    assert max(moves[:20]) > 0.1
    assert max(moves[90:]) < 0.1 / 16
    assert (x + delta).item() == pytest.approx(0.501, abs=0.001)


# ---- square ----


def asked_by_square(shape, n=4, p=math.inf, **options):
    """The perturbations that square tried, its ball and its answer; on samples that nothing breaks."""
    model, x, _, _ = problem(shape=shape, n=n, box=None)
    hold = lambda x: model(x) + torch.tensor([1e3, 0, 0])  # noqa: E731
    y, witness = torch.zeros(n, dtype=torch.int64), Witness(hold)
    ball = Ball(p, 0.3)
    delta = attacks.square(witness, x, y, ball, **options)
    tried = torch.stack([seen - x for seen, _, _ in witness.asked])
    leads = torch.stack([losses.margin_loss(z, y) for _, z, _ in witness.asked])
    return tried, leads, delta, witness


@pytest.mark.parametrize("queries", [1, 2, 50])
def test_square_never_asks_for_a_gradient_and_at_most_queries_plus_1_times(queries):
    *_, witness = asked_by_square((3, 6, 6), queries=queries)
    assert not any(gradient for _, _, gradient in witness.asked)
    assert queries <= len(witness.asked) <= queries + 1
    assert all(len(x) == 4 for x, _, _ in witness.asked)


@pytest.mark.parametrize("shape", SHAPES)
def test_square_returns_the_best_of_all_it_asked_about(shape):
    tried, leads, delta, _ = asked_by_square(shape, queries=60)
    for i in range(4):
        assert torch.allclose(tried[leads[:, i].argmax(), i], delta[i], rtol=0, atol=1e-12)


def test_square_keeps_what_it_has_until_the_lead_grows():
    _, x, _, ball = problem()
    witness = Witness(lambda x: torch.tensor([[2.0, 1.0, 1.0]]) + 0 * x[:, :1])
    delta = attacks.square(witness, x, torch.zeros(6, dtype=torch.int64), ball, queries=30)
    assert len(witness.asked) >= 30
    assert torch.equal(x + delta, witness.asked[0][0])


@pytest.mark.parametrize("shape", [(8,), (4, 6), (5, 7, 7)])
def test_square_starts_with_vertical_stripes_and_then_repaints_one_square_with_one_sign_a_channel(shape):
    tried, leads, _, _ = asked_by_square(shape, queries=60)
    height, width = (1, *shape)[-2:]
    tried = tried.view(60, 4, -1, height, width)
    torch.testing.assert_close(tried.abs(), torch.full_like(tried, 0.3), rtol=0, atol=1e-12)
    assert (tried[0] - tried[0, ..., :1, :]).abs().max() < 1e-12
    best, lead = tried[0].clone(), leads[0].clone()
    for query in range(1, 60):
        for i in range(4):
            changed = (tried[query, i] - best[i]).abs() > 1e-9  # (C, H, W)
            rows, columns = (changed.any(0).any(k).nonzero() for k in (1, 0))
            if len(rows) and min(height, width) > 1:
                down, across = (int(v.max() - v.min()) + 1 for v in (rows, columns))
                limit = max(1, round(math.sqrt(0.8) * max(height, width)))
                assert max(down, across) <= limit
            for c in range(len(changed)):
                signs = tried[query, i, c][changed[c]].sign()
                assert len(signs.unique()) <= 1  # what changed has one sign in a channel
            if leads[query, i] > lead[i]:
                best[i], lead[i] = tried[query, i], leads[query, i]


def test_the_squares_of_square_shrink():
    tried, leads, _, _ = asked_by_square((1, 16, 16), n=20, queries=200)
    best, lead, size = tried[0].clone(), leads[0].clone(), []
    for query in range(1, 200):
        size.append(((tried[query] - best).abs() > 1e-9).flatten(1).sum(1).double().mean().item())
        better = leads[query] > lead
        best[better], lead[better] = tried[query][better], leads[query][better]
    early, late = sum(size[:10]) / 10, sum(size[-30:]) / 30
    assert early > 30 * late > 0


@pytest.mark.parametrize("shape", SHAPES[1:])  # the hill of a single entry can cancel what is there
def test_for_p_2_square_tries_perturbations_of_full_length_and_moves_length_within_each_channel(shape):
    tried, leads, delta, _ = asked_by_square(shape, p=2, queries=60)
    torch.testing.assert_close(norms(tried.flatten(0, 1), 2), torch.full((240,), 0.3).double())
    for i in range(4):
        torch.testing.assert_close(tried[leads[:, i].argmax(), i], delta[i], rtol=0, atol=1e-12)
    height, width = (1, *shape)[-2:]
    tried = tried.view(60, 4, -1, height, width)
    best, lead = tried[0].clone(), leads[0].clone()
    for query in range(1, 60):
        side = max(3, round(math.sqrt(0.8) * max(height, width)))
        changed = ((tried[query] - best).abs() > 1e-9).flatten(2).sum(2)
        assert (changed <= 2 * (side + 1) ** 2).all()  # two windows
        long = vector_norm(best, dim=(2, 3))
        torch.testing.assert_close(vector_norm(tried[query], dim=(2, 3)), long)
        better = leads[query] > lead
        best[better], lead[better] = tried[query][better], leads[query][better]


def published_hill(height, width):
    """Rectangles around the middle, ever larger and ever lower, on top of each other."""
    hill = torch.zeros(height, width, dtype=torch.float64)
    rows, columns = height // 2 + 1, width // 2 + 1
    top, left = rows - 1, columns - 1
    for k in range(max(rows, columns)):
        hill[
            max(top, 0) : min(top + 2 * k + 1, height), max(0, left) : min(left + 2 * k + 1, width)
        ] += 1 / (k + 1) ** 2
        top, left = top - 1, left - 1
    return hill / hill.norm()


@pytest.mark.parametrize("side", range(2, 12))
def test_the_hills_of_square_are_those_of_its_authors(side):
    halves = published_hill(side // 2, side), -published_hill(side - side // 2, side)
    expected = torch.cat(halves) / math.sqrt(2)
    torch.testing.assert_close(black_box._hill_and_valley(side, side).T, expected)


@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.1), (2, 0.6)])
def test_square_breaks_nearly_as_many_digits_as_pgd_and_with_pixels_in_rows_too(p, eps, digits):
    model, x, y = trained_on_digits(), digits.x_test[:60], digits.y_test[:60]
    ball = Ball(p, eps, BOX)
    pgd = robust_accuracy(model, x, y, ball, [attacks.pgd]).value
    clean = robust_accuracy(model, x, y, ball).value
    for images in (x, x.flatten(1)):
        got = robust_accuracy(model, images, y, ball, [partial(attacks.square, queries=300)]).value
        assert got <= pgd + 0.4 * (clean - pgd)


# ---- ilcm ----


@pytest.mark.parametrize("p", ORDERS)
def test_ilcm_is_bim_on_the_cross_entropy_of_the_class_that_is_ruled_out_most(p):
    model, x, y, ball = problem(p=p, K=4, n=20)
    z = model(x).detach()
    ranked = z.argsort(1)
    least = torch.where(ranked[:, 0] == y, ranked[:, 1], ranked[:, 0])
    assert (ranked[:, 0] == y).any()
    expected = attacks.bim(model, x, y, ball, loss=lambda z, y: -losses.cross_entropy(z, least))
    got = attacks.ilcm(model, x, y, ball)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(attacks.ilcm(model, x, y, ball, targets=least), got)
    assert (losses.cross_entropy(model(x + got), least) < losses.cross_entropy(z, least)).all()


# ---- jsma ----


def most_salient(model, x, target, room):
    """The best pair of entries and its direction, by trying all: the first step of JSMA."""
    J = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x)  # (K, d)
    alpha, beta = J[target], J.sum(0) - J[target]
    best, found = 0.0, torch.zeros_like(x)
    for sign in (1.0, -1.0):
        for i, k in itertools.combinations(range(len(x)), 2):
            a, b = sign * (alpha[i] + alpha[k]), sign * (beta[i] + beta[k])
            inside = all(sign * room[j, int(sign > 0)] > 0 for j in (i, k))
            if a > 0 > b and inside and -a * b > best:
                best, found = -a * b, torch.zeros_like(x)
                found[[i, k]] = sign
    return found


@pytest.mark.parametrize("theta", [0.1, 1.0])
@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_the_first_pair_of_jsma_is_the_most_salient_of_all(p, box, theta):
    inputs = problem(p=p, box=box, K=4, n=12)
    model, x, _, ball = inputs
    z = model(x).detach()
    y, aim = z.topk(2, 1).indices.T  # right, and the strongest rival
    delta = attacks.jsma(model, x, y, ball, theta=theta, share=0.01)
    room = torch.stack([ball.region(x).low, ball.region(x).high], 2)
    for i in range(12):
        move = theta * most_salient(model, x[i], aim[i], room[i])
        expected = ball.project(move[None], x[i : i + 1])
        worse = losses.margin(model(x[i] + expected), y[i : i + 1]) >= losses.margin(z, y)[i]
        torch.testing.assert_close(delta[i : i + 1], torch.where(worse, 0, expected))
    assert (delta != 0).any()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1])
def test_jsma_changes_no_more_entries_than_its_share_allows(share):
    inputs = problem(shape=(4, 6), n=20, eps=0.02)
    changed = (attacks.jsma(*inputs, share=share) != 0).flatten(1).sum(1)
    assert changed.max() <= max(2, 24 * share)
    assert changed.max() >= min(8, max(2, 20 * share))


def test_jsma_reaches_its_targets_and_a_single_entry_has_no_pair():
    inputs = problem(K=4, n=40, eps=1.0)
    y = inputs.model(inputs.x).argmax(1)
    targets = (y + 1 + torch.arange(40) % 3) % 4
    delta = attacks.jsma(*inputs._replace(y=y), share=1, targets=targets)
    assert (inputs.model(inputs.x + delta).argmax(1) == targets).double().mean() > 0.5
    assert (attacks.jsma(*problem(shape=(1,))) == 0).all()


# ---- spsa ----


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("keep", ["first", "best"])
def test_spsa_asks_in_the_box_without_gradients_and_2m_plus_1_times_a_step(keep, box):
    inputs = problem(eps=1e-6, box=box)
    inputs = inputs._replace(y=inputs.model(inputs.x).argmax(1))  # nothing breaks
    witness, (_, *rest) = Witness(inputs.model), inputs
    attacks.spsa(witness, *rest, steps=3, samples=4, keep=keep)
    assert not any(gradient for _, _, gradient in witness.asked)
    assert sum(len(x) for x, _, _ in witness.asked) == 6 * (3 * (2 * 4 + 1) + 1)
    if box:
        assert all((x >= 0).all() and (x <= 1).all() for x, _, _ in witness.asked)


@pytest.mark.parametrize("p", ORDERS)
def test_on_a_linear_model_the_slope_of_spsa_is_the_gradient_on_average(p):
    W, _, model, x, y, ball = linear_problem(0, p, 0.3, None, 2, n=20)
    one = attacks.spsa(model, x, y, ball, steps=1, samples=4000, step_size=0.2, keep="best")
    v = attacks.pgd(model, x, y, ball, steps=1, step_size=0.2, keep="best")
    g = (1 - 2 * y[:, None]) * (W[1] - W[0])  # uphill for every sample
    assert ((g * one).sum(1) >= 0.97 * (g * v).sum(1)).all()


def test_spsa_needs_no_slope_of_the_model(digits):
    model, x, y = trained_on_digits(), digits.x_test[:100], digits.y_test[:100]
    ball = Ball(math.inf, 0.1, BOX)
    blunt = lambda x: model((x * 64).round() / 64).detach()  # noqa: E731
    clean, pgd, spsa = (
        robust_accuracy(m, x, y, ball, a).value
        for m, a in ((model, []), (model, [attacks.pgd]), (blunt, [attacks.spsa]))
    )
    assert spsa <= pgd + 0.3 * (clean - pgd)


def test_with_the_first_kept_spsa_asks_no_more_about_who_is_broken_and_breaks_whom_the_best_breaks():
    inputs = right(n=40, eps=0.15)
    options = {"steps": 10, "samples": 8}
    broken = [inputs.leads(attacks.spsa(*inputs, keep=k, **options)) >= 0 for k in ("first", "best")]
    assert torch.equal(*broken)
    first, best = (
        attacks.count(partial(attacks.spsa, keep=k, **options), *inputs)[1].forward
        for k in ("first", "best")
    )
    assert (best == 10 * 17 + 1).all()
    assert (first < best)[broken[0]].all()
    assert (first == best)[~broken[0]].all()


# ---- rays ----


def by_rays(wrong, x, eps, queries, lo, hi, halvings=10):
    """Chen & Gu 2020 for one sample, in plain loops: the direction, the shortest r, and the queries."""
    asked = 0

    def hit(signs, r):
        nonlocal asked
        asked += 1
        return wrong((r * signs).clamp(lo - x, hi - x))

    signs, r = torch.ones_like(x), math.inf
    if hit(signs, 0.0):
        return signs, 0.0, asked
    level = begin = 0
    while asked < queries and r > eps:
        size = math.ceil(len(x) / 2**level)
        turned = signs.clone()
        turned[begin : begin + size] *= -1
        near, far = 0.0, min(r, hi - lo)
        if hit(turned, far):
            for _ in range(halvings):
                if asked >= queries or far <= eps:
                    break
                middle = (near + far) / 2
                if hit(turned, middle):
                    far = middle
                else:
                    near = middle
            if far < r:
                signs, r = turned, far
        begin += size
        if begin >= len(x):
            level, begin = level + 1, 0
    return signs, r, asked


@pytest.mark.parametrize("queries", [1, 7, 40, 400])
@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5)])
def test_rays_is_the_published_search_sample_by_sample(shape, queries):
    inputs = problem(shape=shape, n=20, eps=0.1)
    model, x, y, _ = inputs
    delta, counts = attacks.count(partial(attacks.rays, queries=queries), *inputs)
    found = 0
    for i in range(20):
        wrong = lambda d, i=i: bool(model((x[i].flatten() + d)[None]).argmax() != y[i])  # noqa: E731
        signs, r, asked = by_rays(wrong, x[i].flatten(), 0.1, queries, *BOX)
        assert counts.forward[i] == counts.labels[i] == asked
        expected = r * signs if r <= 0.1 else 0 * signs
        expected = expected.clamp(-x[i].flatten(), 1 - x[i].flatten())
        torch.testing.assert_close(delta[i].flatten(), expected, rtol=0, atol=1e-12)
        found += 0 < r <= 0.1
    assert found or queries < 400


def test_rays_looks_at_nothing_but_the_class():
    inputs = problem(n=20, eps=0.1)
    expected = attacks.rays(*inputs)
    for answer in (lambda z: torch.nn.functional.one_hot(z.argmax(1), 3).to(z), lambda z: (5 * z).exp()):
        got = attacks.rays(lambda x, answer=answer: answer(inputs.model(x)), *inputs[1:])
        assert torch.equal(got, expected)


@pytest.mark.parametrize("box", [None, BOX])
def test_what_rays_returns_is_broken_or_0_and_with_targets_it_is_the_target(box):
    model, x, _, ball = problem(K=4, n=40, eps=0.2, box=box)
    y = model(x).argmax(1)
    targets = (y + 1 + torch.arange(40) % 3) % 4
    for options in ({}, {"targets": targets}):
        delta = attacks.rays(model, x, y, ball, **options)
        moved, label = (delta != 0).any(1), model(x + delta).argmax(1)
        assert 0 < moved.sum() < 40
        assert (label == targets if options else label != y)[moved].all()
        assert (label == y)[~moved].all()


def endless(box=BOX):
    """A ball with ε = ∞."""
    return Ball(math.inf, math.inf, box)


def test_with_no_radius_at_all_rays_comes_as_near_as_its_queries_take_it():
    """On a linear model of two classes the nearest point of the other is |margin| / ‖w‖₁ away."""
    W, _, _, x, _, _ = linear_problem(3, math.inf, 1.0, BOX, 2, n=40, d=8)
    model, x = lambda x: (x - 0.5) @ W.T, 0.5 + 0.2 * (x - 0.5)
    y = model(x).argmax(1)
    exact = losses.margin(model(x), y) / (W[1] - W[0]).abs().sum()
    near = exact < 0.3  # no box in the way
    delta = attacks.rays(model, x, y, endless())
    assert (model(x + delta).argmax(1) != y)[near].all()
    assert near.sum() > 5
    assert (norms(delta, math.inf) <= 1.01 * exact)[near].all()
    with pytest.raises(ValueError, match="no end"):
        attacks.rays(model, x, y, endless(None))


# ---- what is asked ----


@each_run
def test_what_an_attack_asks_is_counted_sample_by_sample(attack):
    """The first entry of each sample may not move: it says which sample a question is about."""
    model, x, _, ball = problem(n=12, eps=0.15)
    x[:, 0] = torch.linspace(0.1, 0.9, 12)
    y = model(x).argmax(1)
    eps = torch.full((1, 8), 0.15).double()
    eps[0, 0] = 0
    witness, ball = Witness(model), Ball(math.inf, eps, BOX)
    delta, counts = attacks.count(attack, witness, x, y, ball)
    assert torch.equal(delta, attack(model, x, y, ball))
    about = [(x[:, :1] == at[:, 0]).double().argmax(0) for at, *_ in witness.asked]
    slopes = [rows for rows, (_, _, gradient) in zip(about, witness.asked, strict=True) if gradient]
    assert torch.equal(counts.forward, torch.cat(about).bincount(minlength=12))
    taken_ = torch.cat(slopes or [about[0][:0]]).bincount(minlength=12)
    assert torch.equal(counts.backward, taken_ * (2 if attack is RUNS["jsma"] else 1))
    assert torch.equal(counts.labels, counts.forward * (attack is RUNS["rays"]))
    if attack in [RUNS[name] for name in ("pgd first", "square", "spsa", "rays", "jsma")]:
        assert counts.forward.unique().numel() > 1  # who is broken is left alone


def test_counts_of_attacks_within_attacks_add_up_and_nobody_counts_afterwards():
    inputs = problem()
    both = lambda *given: attacks.fgsm(*given) + 0 * attacks.bim(*given)  # noqa: E731
    _, counts = attacks.count(both, *inputs)
    assert (counts.forward == 11).all()
    assert (counts.backward == 11).all()
    nested = lambda *given: attacks.count(attacks.fgsm, *given)[0] + both(*given)  # noqa: E731
    _, counts = attacks.count(nested, *inputs)
    assert (counts.forward == 12).all()

    def fails(*given):
        attacks.fgsm(*given)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        attacks.count(fails, *inputs)
    attacks.fgsm(*inputs)
    assert (counts.forward == 12).all()


def test_a_table_can_have_a_column_of_what_was_asked():
    model, x, y, ball = right()
    table = evaluation.table({"net": [model]}, x, y, ball, {"pgd": RUNS["pgd first"]})
    _, counts = attacks.count(RUNS["pgd first"], model, x, y, ball)
    asked = evaluation.Spread((counts.forward.double().mean(),))
    assert table.markdown(["pgd"], asked={"net": asked}).endswith(f" | {asked:.1f} |")


# ---- saturation ----


def scaled(s):
    model = trained_on_digits()
    return lambda x: s * model(x)


@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.1), (2, 0.6), (1, 2.0)])
@each_climb
def test_multiplying_the_logits_by_64_hides_nothing(attack, p, eps, digits):
    x, y, ball = digits.x_test[:200], digits.y_test[:200], Ball(p, eps, BOX)
    plain, sharp = (robust_accuracy(scaled(s), x, y, ball, [attack]).value for s in (1, 64))
    assert sharp <= plain + 0.02
    assert plain < robust_accuracy(scaled(1), x, y, ball).value - 0.2


@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.1), (2, 0.6), (1, 2.0)])
def test_multiplying_the_logits_by_64_hides_the_broken_samples_from_cross_entropy(p, eps, digits):
    x, y, ball = digits.x_test[:200], digits.y_test[:200], Ball(p, eps, BOX)
    attack = partial(attacks.pgd, loss=losses.cross_entropy)
    plain, sharp = (robust_accuracy(scaled(s), x, y, ball, [attack]).value for s in (1, 64))
    assert sharp > plain + 0.2


# ---- probabilities ----


@each_attack
def test_a_model_that_returns_probabilities_is_warned_of_where_the_attack_is_called(attack):
    model, x, y, ball = problem()
    with pytest.warns(UserWarning, match="probabilities, not logits") as caught:
        attack(lambda x: model(x).softmax(1), x, y, ball)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("K", [2, 10, 1000])
@pytest.mark.parametrize("scale", [1, 10])
def test_probabilities_are_noticed_in_every_type_and_logits_that_look_like_some_are_not(dtype, K, scale):
    z = scale * torch.randn(64, K, generator=seeded(0), dtype=torch.float64)

    def model(at):
        return (z[: len(at)].to(dtype) + at.to(dtype)).softmax(1)

    x, y, free = torch.zeros(64, 1).double(), torch.zeros(64, dtype=torch.int64), Ball(math.inf, 0.1)
    with pytest.warns(UserWarning, match="probabilities"):
        attacks.square(model, x, y, free, queries=1, keep="best")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.square(lambda at: model(at) + 0.05, x, y, free, queries=1, keep="best")
        attacks.square(model, x[:1], y[:1], free, queries=1, keep="best")  # one row is too little
        attacks.square(lambda at: model(at).round(), x, y, free, queries=1, keep="best")  # a vote


def test_a_single_sample_is_enough_once_its_answer_has_moved_a_few_times():
    model, x, y, ball = problem(n=1)
    with pytest.warns(UserWarning, match="probabilities"):
        attacks.pgd(lambda x: model(x).softmax(1), x, y, ball, steps=5)


@pytest.mark.parametrize("logits", [[1.0, 0.0, 0.0], [0.7, 0.3, 0.0], [0.2, 0.2, 0.6]])
def test_a_network_with_logits_that_happen_to_sum_to_1_on_one_sample_is_not_warned_of(logits):
    towards = torch.tensor([[1.0, 0.5, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.pgd(
            lambda x: torch.tensor([logits]) + x @ towards,
            torch.zeros(1, 1),
            torch.tensor([0]),
            Ball(math.inf, 0.1),
        )


@each_attack
def test_logits_are_not_warned_of(attack):
    model, x, y, ball = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, x, y, ball)
        attack(lambda x: model(x).log_softmax(1), x, y, ball)
        attack(lambda x: model(x).abs(), x, y, ball)
