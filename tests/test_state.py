"""Nothing changes behind the caller's back: arguments, gradients, modes, global generators."""

import copy
import math
import subprocess
import sys
import warnings
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from asking import ASKED, OTHERWISE, WEIGHED, about_models, takes
from package import modules
from strategies import BOX, ORDERS, generators, seeded

from adv_lib import (
    adaptive,
    affine,
    attacks,
    bounds,
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
    leaves,
    linear,
    losses,
    mahalanobis,
    models,
    plots,
    recipe,
    smoothing,
    training,
    widgets,
)
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
targets, net, image = (labels + 1) % 3, models.mlp([4, 5, 3]), torch.rand(6, 1, 4, 4, generator=g)
cube = Ball(math.inf, eps, BOX)
plain = bounds.pre_activations(net, x, cube)
slopes = [torch.rand(layer.lower.shape, generator=g) for layer in plain]
norms = models.mlp([4, 5, 3], norm=True)
pair = [models.mlp([4, 5, 3], norm=True), models.mlp([4, 5, 3], seeded(1), norm=True)]
ensemble, plain_pair = ensembles.Ensemble(pair), [net, models.mlp([4, 5, 3], seeded(1))]
all_logits = torch.randn(6, 2, 3, generator=g)
kept, kept_labels = torch.randn(8, 5, generator=g), torch.arange(8) % 3
densities, dimensions = (
    detection.KernelDensity(kept, kept_labels, 1.5),
    detection.LocalDimension(kept, 4),
)
refusing = {
    "confidence": detection.Rejecting(norms, threshold=0.2),
    "density": detection.Rejecting(norms, densities, -3.0),
    "dimension": detection.Rejecting(norms, detection.two_sided(dimensions, 0.1, 2.0)),
}
pieces, towards = affine.affine_pieces(net, (4,)), torch.randn(6, 2, 3, generator=g)


start = 0.1 * torch.randn(6, 4, generator=g)


def proof(model, x, y, ball):
    return (bounds.margins(model, x, y, ball) > 0).all(1)


def held(adapted):
    """What a defense has moved, and what it answers."""
    return dict(adapted.moved), adapted(image[:, :, :2, :2])


def draw(value):
    return plt.figure(figsize=(1, 1))


CALLS = {
    "binary": lambda: data.binary(data.Data(x, labels, x, labels), 0, 2),
    "rate": lambda: evaluation.rate(y > 0),
    "spread": lambda: (evaluation.Spread((1.0, 2.0)).interval, str(evaluation.Spread((1.0, 2.0)))),
    "images": lambda: plots.images(x.reshape(6, 1, 2, 2), list("abcdef"), signed=True),
    "circle": lambda: plots.circle(1.5),
    "slider": lambda: widgets.slider(draw, str, widgets.Control("v", [1, 2]), caption="c")._repr_html_(),
    "predict": lambda: widgets.predict("?", 1, low=0, high=2, why=".")._repr_html_(),
    "regression": lambda: linear.robust_logistic_regression(x, y, Ball(math.inf, 0.5)),
    "largest_margin": lambda: linear.largest_margin(x, y, 2),
    "mlp": lambda: models.mlp([4, 3, 2]),
    "convnet": lambda: models.convnet((1, 4, 4), 3),
    "cross_entropy": lambda: losses.cross_entropy(x[:, :3], labels),
    "log_odds": lambda: losses.log_odds(x[:, :3], labels),
    "loss_margin": lambda: losses.margin_loss(x[:, :3], labels),
    "dlr": lambda: losses.dlr(x[:, :3], labels),
    "divergence": lambda: losses.divergence(x[:, :3], x[:, 1:]),
    "targeted": lambda: losses.targeted(x[:, :3], labels, targets),
    "targeted_all": lambda: losses.targeted_all(x[:, :3], labels, targets),
    "loss_along": lambda: diagnostics.loss_along(net, x[:1], labels[:1], [x[1:2]], eps),
    "landscape": lambda: diagnostics.landscape(net, x[:1], labels[:1], Ball(2, 0.1, BOX), eps),
    "clean": lambda: training.clean(net, x, labels),
    "smoothed": lambda: losses.smoothed(x[:, :3], labels, eps),
    "awp": lambda: recipe.awp(attacks.fgsm, cube, 0.1)(net, x, labels),
    "staged": lambda: recipe.Staged([(0, training.clean)]).at(0.2)(net, x, labels),
    "fast": lambda: training.fast(Ball(math.inf, 0.1, BOX), seeded(0))(net, x, labels),
    "ramp": lambda: training.Ramp(training.certified, cube).at(0.2)(net, x, labels),
    "ddd": lambda: danskin.ddd(Ball(math.inf, 0.1, BOX), seeded(0), 3, parts=2)(net, x, labels),
    "perturbations": lambda: danskin.perturbations(net, x, labels, Ball(2, 0.1, BOX), 3, seeded(0)),
    "gram": lambda: danskin.gram(net, x.view(2, 3, 4), labels.view(2, 3)),
    "maximisers": lambda: danskin.maximisers(
        lambda theta, delta: torch.cos(delta) + theta[0], w, (-1.0, 7.0)
    ),
    "directional_derivative": lambda: danskin.directional_derivative(
        lambda theta, delta: delta @ theta, w, W[0], x
    ),
    "min_norm_point": lambda: danskin.min_norm_point(W),
    "min_norm_weights": lambda: danskin.min_norm_weights(W @ W.T),
    "product_weights": lambda: danskin.product_weights(x @ x.T, 3),
    "descent_direction": lambda: danskin.descent_direction(W),
    "square": lambda: attacks.square(net, x, labels, Ball(math.inf, eps, BOX), queries=10),
    **{
        f"square images {p}": lambda p=p: attacks.square(
            models.convnet((1, 4, 4), 3), image, labels, Ball(p, 0.1), queries=10
        )
        for p in (2, math.inf)
    },
    "rays": lambda: attacks.rays(net, x, labels, Ball(math.inf, eps, BOX), queries=30),
    "count": lambda: attacks.count(attacks.fgsm, net, x, labels, Ball(math.inf, eps, BOX)),
    "ddn": lambda: attacks.ddn(net, x, labels, Ball(2, eps), steps=5),
    "cw": lambda: attacks.cw(net, x, labels, Ball(2, eps, BOX), steps=5, searches=2),
    "mlp with norms": lambda: models.mlp([4, 3, 2], norm=True).state_dict(),
    "entropy": lambda: losses.entropy(x[:, :3]),
    "centres": lambda: mahalanobis.centres(4, 5, 2.0),
    "random centres": lambda: mahalanobis.random_centres(4, 5, 2.0, seeded(0)),
    "means": lambda: mahalanobis.means(x, labels, 3),
    "nearest centre": lambda: [
        (layer := mahalanobis.NearestCentre(W, learned=True))(x).detach(),
        layer.linear()(x).detach(),
    ],
    "quadratic": lambda: mahalanobis.as_quadratic(W, B)(x),
    "mmc": lambda: mahalanobis.mmc(x[:, :3], labels),
    "large margin": lambda: mahalanobis.large_margin(x[:, :3], labels, 0.1, 0.2),
    "centre loss": lambda: mahalanobis.centre_loss(0.1)(net, x, labels),
    "towards centre": lambda: mahalanobis.towards_centre(torch.eye(3, 5), 3)(
        net, x, labels, cube, targets
    ),
    "expected distance": lambda: mahalanobis.expected_distance(eps),
    "level set": lambda: mahalanobis.level_set(eps + 1, W[:2], (2.0, 1.0), (0.0, 0.0)),
    "density of g-SCE": lambda: mahalanobis.gsce_density(eps + 1, eps, 9, W[:2], (2.0, 1.0), (0.0, 0.0)),
    "density of MMC": lambda: mahalanobis.mmc_density(eps + 1, eps, 9, 4),
    "ensemble": lambda: [ensembles.Ensemble(plain_pair)(x), ensemble.eval()(x), ensemble.train()][:2],
    "log mean": lambda: ensembles.log_mean(all_logits),
    "diversity": lambda: ensembles.diversity(all_logits, labels),
    "ADP's loss": lambda: ensembles.adp_loss(all_logits, labels, 2, 0.5),
    "ADP": lambda: ensembles.adp(2, 0.5)(ensembles.Ensemble(plain_pair), x, labels),
    "optimum": lambda: [ensembles.optimum(2, 3, 10), ensembles.optimal_predictions(2, 3, 10)],
    "what attacks climb": lambda: [
        loss(all_logits, labels)
        for loss in (
            ensembles.mean_probability,
            ensembles.mean_logits,
            ensembles.mean_margin,
            ensembles.strongest,
            ensembles.of_member(1),
        )
    ],
    **{
        f"climb {name}": lambda attack=attack: attack(ensemble, x, labels, cube)
        for name, attack in ensembles.against(2, partial(attacks.pgd, steps=3)).items()
    },
    "climb with APGD": lambda: ensembles.climb(
        ensembles.mean_logits, partial(attacks.apgd, steps=3, restarts=2)
    )(ensemble, x, labels, cube),
    "transfer": lambda: ensembles.transfer(pair, x, labels, cube, attacks.fgsm),
    "averaged": lambda: ensembles.averaged(plain_pair)(x),
    "mean margins": lambda: ensembles.mean_margins(
        torch.stack([bounds.margins(each, x, labels, cube) for each in plain_pair])
    ),
    "margins of an ensemble": lambda: ensembles.margins(plain_pair, x, labels, cube),
    "radii": lambda: [
        smoothing.radius(eps, 0.5),
        smoothing.radius_between(eps, 1 - eps, 0.5),
        smoothing.laplace_radius(eps, 0.5),
        smoothing.largest_radius(100, 0.5, 0.01),
        smoothing.linear_probability(w, b, x, y, 0.5),
    ],
    "Clopper and Pearson": lambda: smoothing.lower_bound(labels, 2, 0.1),
    **{
        f"smooth {noise}": lambda noise=noise: [
            (g := smoothing.Smooth(norms, 0.3, noise)).counts(x, 50, seeded(0)),
            g.predict(x, 50, 0.1, seeded(0)),
            vars(found := g.certify(x, 10, 50, 0.1, seeded(0))),
            found.right(labels, 0.1),
        ]
        for noise in ("gaussian", "laplace")
    },
    "fixed noise": lambda: smoothing.fixed_noise(norms, x, 0.3, 3, seeded(0))(x).detach(),
    "noisy": lambda: smoothing.noisy(0.3, seeded(0), "laplace")(net, x, labels).detach(),
    "SmoothAdv": lambda: smoothing.smooth_adversarial(attacks.fgsm, cube, 0.3, 2, seeded(0))(
        net, x, labels
    ).detach(),
    "reverse cross-entropy": lambda: detection.reverse_cross_entropy(x[:, :3], labels),
    "reversed": lambda: detection.reversed_logits(net)(x).detach(),
    "reversal bounds": lambda: detection.reversal_bounds(0.01, 10),
    "scores": lambda: [
        score(x[:, :3], x[:, [0, 1, 2, 3, 0]])
        for score in (
            detection.confidence,
            detection.non_maximal_entropy,
            densities,
            dimensions,
            detection.two_sided(dimensions, 0.1, 2.0),
            lambda z, h: dimensions.dimension(h),
        )
    ],
    "threshold": lambda: detection.threshold(eps, 0.2),
    "AUC and ROC": lambda: [detection.auc(eps, x[:, 0]), detection.roc(eps, x[:, 0])],
    **{
        f"rejecting by {name}": lambda model=model: [
            [part.detach() for part in (model.eval()(x), *model.parts(x))],
            model.train().judged(x, labels),
            model.accepts(x),
            model.fooled(x, labels),
        ]
        for name, model in refusing.items()
    },
    **{
        f"{name} against {score}": lambda attack=attack, model=model: [
            attack(model, x, labels, cube),
            detection.highest(model, x, labels, cube, [attack]),
        ]
        for score, model in refusing.items()
        for name, attack in {
            "constrained": detection.climb(detection.constrained, partial(attacks.pgd, steps=3)),
            "weakest": detection.climb(detection.weakest, partial(attacks.apgd, steps=3, restarts=2)),
            "penalised": detection.climb(detection.penalised(2.0), partial(attacks.pgd, steps=3)),
            "targeted": detection.targeted(partial(attacks.pgd, steps=2), 2),
            "matching": detection.matching(x, labels, partial(attacks.pgd, steps=2)),
        }.items()
    },
    "never fooled": lambda: detection.never_fooled(bounds.margins(net, x, labels, cube), 0.5),
    "information": lambda: losses.information(x[:, :3]),
    "smooth": lambda: dent.blur(image, eps),
    "worst_logits": lambda: losses.worst_logits(bounds.margins(net, x, labels, cube)),
    "pieces": lambda: [piece.matrix() for piece in affine.affine_pieces(net, (4,))],
    "transposed": lambda: [pieces[0].transposed(x[:, [0, 1, 2, 3, 0]]), pieces[0].offset(x[:, [0] * 5])],
    "absolute": lambda: conjugates.absolute(x),
    "conjugate of a box": lambda: conjugates.box(x - 0.5, x, x + 1),
    "conjugate of a relu": lambda: conjugates.relu(x, -x, x - 1, x),
    "legendre": lambda: conjugates.legendre(x, x[:, 0], x - 0.5),
    "margins with slopes": lambda: bounds.margins(
        net, x, labels, cube, "dual", layer_bounds=plain, slopes=slopes
    ),
    "best slopes on given bounds": lambda: bounds.best_slopes(
        net, x, labels, cube, layer_bounds=plain, steps=3
    ),
    "best slopes on bounds made here": lambda: bounds.best_slopes(
        net, x, labels, cube, layer_bounds=bounds.pre_activations(net, x, cube, "lp"), steps=3
    ),
    "layer bounds lp": lambda: bounds.pre_activations(net, x, cube, "lp"),
    "margins lp": lambda: bounds.margins(net, x, labels, cube, "lp"),
    "margins on lp": lambda: bounds.margins(
        net, x, labels, cube, layer_bounds=bounds.pre_activations(net, x, cube, "lp")
    ),
    "certify": lambda: vars(exact.certify(net, x, labels, cube)),
    **{
        f"exact {method}": lambda method=method: vars(exact.margins(net, x, labels, cube, method=method))
        for method in exact.SOLVERS
    },
    "certify by programs": lambda: vars(exact.certify(net, x, labels, cube, stages=exact.PROGRAMS)),
}
ATTACKS = {
    "fgsm": attacks.fgsm,
    "bim": partial(attacks.bim, steps=3),
    "friendly": partial(attacks.friendly, steps=3, tolerance=1),
    "ilcm": partial(attacks.ilcm, steps=3),
    "jsma": attacks.jsma,
    "spsa": partial(attacks.spsa, steps=2, samples=3),
    **{
        f"pgd {keep}": partial(attacks.pgd, steps=4, restarts=2, keep=keep)
        for keep in ("best", "first", "last")
    },
    "apgd": partial(attacks.apgd, steps=4, restarts=2),
    "deepfool": partial(attacks.deepfool, steps=4),
    "fab": partial(attacks.fab, steps=3, restarts=2),
}
for scope in ("batch", "sample"):
    for adapt in ("model", "input", "both"):
        for unroll in (False, True):
            defense = dent.Dent(norms, steps=2, scope=scope, adapt=adapt, unroll=unroll)
            CALLS[f"dent {scope} {adapt} unroll={unroll}"] = lambda defense=defense: [
                defense(image[:, :, :2, :2]),
                *map(held, defense.path(image[:, :, :2, :2])),
            ]
ADAPTIVE = {
    "transfer": adaptive.transfer(attacks.fgsm),
    "frozen": adaptive.frozen(attacks.fgsm),
    "unrolled": adaptive.unrolled(attacks.fgsm),
    "bpda": adaptive.bpda(attacks.fgsm),
    "eot": adaptive.eot(attacks.fgsm, 2),
    "gmsa": adaptive.gmsa(partial(attacks.pgd, steps=2), rounds=2),
}
for scope in ("batch", "sample"):
    defense = dent.Dent(norms, steps=2, scope=scope)
    CALLS |= {
        f"{name} against dent {scope}": lambda attack=attack, defense=defense: attack(
            defense, x, labels, cube
        )
        for name, attack in ADAPTIVE.items()
    }
    CALLS[f"judge dent {scope}"] = lambda defense=defense: vars(
        evaluation.table({"a": [defense]}, x, labels, cube, ADAPTIVE, whole_batches=True, batch_size=4)
    )

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
                "at": lambda ball=ball: vars(ball.region(x)),
                "pgd from a start": lambda ball=ball: attacks.pgd(
                    net, x, labels, ball, steps=3, start=ball.project(start, x)
                ),
                "adversarial": lambda ball=ball: training.adversarial(attacks.fgsm, ball)(
                    net, x, labels
                ),
                "trades": lambda ball=ball: training.trades(ball, seeded(0))(net, x, labels),
                "certified loss": lambda ball=ball: training.certified(ball)(net, x, labels),
                "mixed": lambda ball=ball: training.mixed(training.certified(ball), 0.5)(net, x, labels),
                "table": lambda ball=ball: vars(
                    evaluation.table({"a": [net]}, x, labels, ball, {"b": attacks.fgsm}, {"c": proof})
                ),
                **{
                    f"layer bounds {m}": lambda ball=ball, m=m: bounds.pre_activations(net, x, ball, m)
                    for m in ("interval", *dual.SLOPES)
                },
                **{
                    f"margins {m}": lambda ball=ball, m=m: bounds.margins(net, x, labels, ball, m)
                    for m in ("interval", *dual.SLOPES)
                },
                "certify": lambda ball=ball: vars(exact.certify(net, x, labels, ball, node_limit=3)),
                "exact dual": lambda ball=ball: vars(
                    exact.margins(net, x, labels, ball, method="dual", node_limit=2)
                ),
                "tightened": lambda ball=ball: bounds.tightened(pieces, plain, x, ball.region(x)),
                "refined": lambda ball=ball: leaves.refined(pieces, plain, x, ball.region(x), 3),
                "best slopes": lambda ball=ball: bounds.best_slopes(net, x, labels, ball, steps=3),
                "robust loss": lambda ball=ball: bounds.robust_loss(net, x, labels, ball),
                "conjugate": lambda ball=ball: conjugates.ball(w - x, x, ball),
                "conjugate of a norm": lambda ball=ball: conjugates.norm(w - x, ball.p),
                "of": lambda ball=ball: ball.subset(torch.tensor([1, 0])).eps,
                "region": lambda ball=ball: ball.region(x).support((w - x)[:, None]),
                "value": lambda ball=ball: dual.value(
                    pieces, plain, x, ball, [towards[:, :, [0] * 5], towards]
                ),
                "survivors": lambda ball=ball: evaluation.survivors(
                    net, x, labels, ball, [attacks.fgsm]
                ),
                "robust_accuracy": lambda ball=ball: evaluation.robust_accuracy(
                    net, x, labels, ball, [attacks.fgsm]
                ),
                "curve": lambda ball=ball: evaluation.robust_accuracy_curve(
                    net, x, labels, ball, [attacks.fgsm], [0.1, 0.2]
                ),
                **{k: lambda ball=ball, a=a: a(net, x, labels, ball) for k, a in ATTACKS.items()},
                **{
                    f"{k} with targets": lambda ball=ball, a=a: a(net, x, labels, ball, targets=targets)
                    for k, a in ATTACKS.items()
                },
            }.items()
        }

for p in (2, math.inf):
    CALLS[f"masking p={p}"] = lambda p=p: [
        tuple(symptom) for symptom in diagnostics.masking(net, x, labels, Ball(p, eps, BOX), queries=5)
    ]

each = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return all(map(same, a, b))
    return isinstance(a, torch.nn.Module | plt.Figure) or a == b


@each
def test_a_call_changes_nothing_warns_of_nothing_and_answers_the_same_with_and_without_gradients(call):
    """A warning on stderr fails the build of the book."""
    given = [x, y, w, b, W, B, labels, eps, targets, image, towards, start, *slopes, *net.parameters()]
    watched = (net, norms, ensemble, *pair, *plain_pair, *refusing.values())
    given += [t for model in watched[1:] for t in model.state_dict().values()] + [all_logits]
    given += [end for layer in plain for end in layer] + [kept, kept_labels]
    before, state = [t.clone() for t in given], generators()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = call()
        with torch.no_grad():
            second = call()
        with torch.inference_mode():
            third = call()
    plt.close("all")
    assert all(torch.equal(t, old) for t, old in zip(given, before, strict=True))
    assert generators() == state
    assert all(module.training for model in watched for module in model.modules())
    assert all(p.grad is None for model in watched for p in model.parameters())
    assert same(first, second)
    assert same(first, third)


class Shrinks(torch.nn.Module):
    """A network of 0.9 x, which it may compute where x lies."""

    def __init__(self, in_place):
        super().__init__()
        self.network, self.in_place = copy.deepcopy(norms), in_place

    def forward(self, v):
        return self.network(v.mul_(0.9) if self.in_place else v * 0.9)


@pytest.mark.parametrize("call", ASKED.values(), ids=ASKED)
def test_a_model_that_changes_its_input_answers_like_one_that_does_not_and_leaves_x_alone(call):
    given = {"x": x.clone(), "y": labels, "ball": Ball(math.inf, 0.1, BOX)}
    models_ = [given | {"model": Shrinks(in_place)} for in_place in (False, True)]
    first, second = (call(*(some[name] for name in takes(call))) for some in models_)
    assert same(first, second)
    assert torch.equal(given["x"], x)


def test_no_function_that_is_about_a_model_is_left_out():
    named = {name.split(" ")[0] for name in (*ASKED, *WEIGHED)}
    assert about_models() - named == OTHERWISE


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


FIGURES = [f"adv_lib.{name}" for name in ("_drawing", "plots", "_predict", "widgets")]
IMPORTS = {
    "the package": ["adv_lib"],
    "computation": [module for module in modules() if module not in FIGURES],
    "figures": FIGURES,
}


@pytest.fixture(scope="module")
def imported():
    """What one fresh interpreter holds after these imports, one group after the other; none prints."""
    lines = [f"import {', '.join(modules)}; print(*sys.modules)" for modules in IMPORTS.values()]
    program = "\n".join(["import sys", *lines])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return dict(zip(IMPORTS, map(set, map(str.split, done.stdout.splitlines())), strict=True))


def test_the_package_itself_imports_nothing_heavy(imported):
    assert imported["the package"] & {"torch", "numpy", "matplotlib"} == set()


def test_the_computation_is_imported_without_the_libraries_it_may_not_need(imported):
    absent = {"torchvision", "sklearn", "scipy", "matplotlib", "ipywidgets", "IPython"}
    solvers = {"highspy", "cvxpy", "joblib", "dask"}  # none before a program is solved
    assert imported["computation"] & (absent | solvers) == set()
    assert "torch" in imported["computation"]


def test_the_figures_are_imported_without_a_kernel_or_a_solver(imported):
    assert imported["figures"] & {"torchvision", "cvxpy", "sklearn", "ipywidgets", "IPython"} == set()


def test_a_first_training_attack_and_rate_import_no_reader_and_no_compiler():
    """The readers of scikit-learn and torchvision, SciPy and torch's compiler take seconds each."""
    program = """
import math, sys
from adv_lib import attacks, data, evaluation, losses, models, training
from adv_lib.optimisers import SGD
from adv_lib.threat import Ball
digits = data.load("digits")
network = models.mlp([64, 10])
some = digits.x_train[:100], digits.y_train[:100]
for _ in training.fit(network, some, training.clean, epochs=1, lr=0.1, optimiser=SGD(0.9)):
    pass
print(evaluation.robust_accuracy(network, *some, Ball(math.inf, 0.1, (0, 1)), [attacks.pgd]))
data.photograph("flower")
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"sklearn", "scipy", "torchvision", "torch._dynamo", "sympy"}
    assert set(done.stdout.split()) & heavy == set()


def test_importing_changes_no_global_setting():
    program = """
import random, sys, warnings
import matplotlib, numpy, scipy.sparse, torch
def state():
    return [torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
            dict(matplotlib.rcParams), list(warnings.filters)]
before = state()
import importlib
for module in sys.argv[1:]:
    importlib.import_module(module)
assert state() == before
"""
    run = [sys.executable, "-c", program, *modules()]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
