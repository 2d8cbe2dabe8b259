"""Every public function that is about a model or a ball, as one call of (model, x, y, ball)."""

import inspect
from dataclasses import replace
from functools import partial

import torch
from package import public
from strategies import seeded

from adv_lib import (
    adaptive,
    attacks,
    bounds,
    conjugates,
    danskin,
    dent,
    detection,
    diagnostics,
    ensembles,
    evaluation,
    exact,
    linear,
    models,
    recipe,
    smoothing,
    suite,
    training,
)
from adv_lib.threat import Ball


def flat(attack):
    """An attack that wants p = 2, on a ball with that."""
    return lambda model, x, y, ball: attack(
        model, x, y, replace(ball, p=2) if isinstance(ball, Ball) else ball
    )


few = partial(attacks.pgd, steps=2, keep="last")
line = torch.linspace(0, 1, 3)
W, w, b = torch.randn(3, 4, generator=seeded(1)), torch.ones(4), torch.zeros(())


class Still(torch.nn.Module):
    """A defense that adapts to nothing."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.forward = model.forward if isinstance(model, torch.nn.Module) else model

    def adapt(self, x):
        self.model(x)  # looks at it, as one that adapts does
        return self.model

    def unrolled(self):
        return self


def rejecting(model):
    """A classifier that refuses where this model is not sure."""
    return detection.Rejecting(torch.nn.Sequential(Still(model), torch.nn.Identity()), threshold=0.1)


def fitted(model, x, y):
    """The weights after two epochs in which each batch is stepped on twice, and put back."""
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def twice(model, gradient, descend):
        training.one_step(model, gradient, descend)
        return training.one_step(model, gradient, descend)

    list(training.fit(model, (x, y), training.clean, epochs=2, lr=0.1, batch_size=2, update=twice))
    after = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    return after


def inner(make):
    """What stands for an inner maximum, made and asked at once."""
    return lambda model, x, y, ball: make(ball)(model, x, y)


ASKED = {  # what is about any model
    "attacks.fgsm": attacks.fgsm,
    "attacks.bim": partial(attacks.bim, steps=2),
    "attacks.friendly": partial(attacks.friendly, steps=3),
    "attacks.ilcm": partial(attacks.ilcm, steps=2),
    "attacks.jsma": attacks.jsma,
    "attacks.pgd": partial(attacks.pgd, steps=3, restarts=2),
    "attacks.pgd first": partial(attacks.pgd, steps=3, keep="first"),
    "attacks.apgd": partial(attacks.apgd, steps=5),
    "attacks.deepfool": partial(attacks.deepfool, steps=3),
    "attacks.ddn": flat(partial(attacks.ddn, steps=3)),
    "attacks.cw": flat(partial(attacks.cw, steps=3, searches=2)),
    "attacks.fab": partial(attacks.fab, steps=2),
    "attacks.square": partial(attacks.square, queries=5),
    "attacks.spsa": partial(attacks.spsa, steps=2, samples=3),
    "attacks.rays": partial(attacks.rays, queries=20),
    "attacks.count": partial(attacks.count, few),
    "evaluation.survivors": partial(evaluation.survivors, attacks=[few]),
    "evaluation.robust_accuracy": partial(evaluation.robust_accuracy, attacks=[few]),
    "evaluation.robust_accuracy_curve": partial(
        evaluation.robust_accuracy_curve, attacks=[few], radii=[0.1, 0.2]
    ),
    **{
        f"evaluation.table{' whole' * whole}": lambda model, x, y, ball, whole=whole: (
            evaluation.table(
                {"a": [model]}, x, y, ball, {"b": few, "c": attacks.fgsm}, whole_batches=whole
            ).right
        )
        for whole in (False, True)
    },
    "diagnostics.masking": partial(diagnostics.masking, attack=few, queries=3),
    "diagnostics.landscape": lambda model, x, y, ball: diagnostics.landscape(
        model, x[:1], y[:1], ball, line
    ),
    "diagnostics.loss_along": lambda model, x, y: diagnostics.loss_along(
        model, x[:1], y[:1], [torch.ones(1, *x.shape[1:]).to(torch.as_tensor(x))], line
    ),
    "diagnostics.cross_section": lambda model, x: diagnostics.cross_section(
        model, x[:1], torch.ones(1, *x.shape[1:]).to(torch.as_tensor(x)), line, line
    ),
    "suite.autoattack": lambda model, x, y, ball: (
        suite.autoattack(model, x, y, ball, steps=2, targets=1, queries=3).delta
    ),
    "suite.every_target": suite.every_target(
        lambda model, x, y, ball, goal: attacks.fgsm(model, x, y, ball, targets=goal), 2
    ),
    "suite.doubts": suite.doubts,
    "danskin.perturbations": lambda model, x, y, ball: danskin.perturbations(
        model, x, y, ball, 2, seeded(0), steps=2
    ),
    "danskin.gram": lambda model, x, y: danskin.gram(
        model, x[None], y[None] if hasattr(y, "shape") else y
    ),
    "danskin.ddd": inner(lambda ball: danskin.ddd(ball, seeded(0), 2, steps=2)),
    "danskin.ddd of one": inner(lambda ball: danskin.ddd(ball, seeded(0), 1, steps=2)),
    "training.clean": training.clean,
    "training.adversarial": inner(partial(training.adversarial, few)),
    "training.adversarial in train mode": inner(partial(training.adversarial, few, mode="train")),
    "training.fast": inner(lambda ball: training.fast(ball, seeded(0))),
    "training.trades": inner(lambda ball: training.trades(ball, seeded(0))),
    "training.fit": fitted,
    "recipe.awp": inner(lambda ball: recipe.awp(few, ball, 0.1)),
    "adaptive.transfer": lambda model, x, y, ball: adaptive.transfer(few)(Still(model), x, y, ball),
    "adaptive.frozen": lambda model, x, y, ball: adaptive.frozen(few)(Still(model), x, y, ball),
    "adaptive.unrolled": lambda model, x, y, ball: adaptive.unrolled(few)(Still(model), x, y, ball),
    "adaptive.bpda": lambda model, x, y, ball: adaptive.bpda(few)(Still(model), x, y, ball),
    "adaptive.eot": lambda model, x, y, ball: adaptive.eot(few, 2)(model, x, y, ball),
    "adaptive.gmsa": lambda model, x, y, ball: adaptive.gmsa(few, 2)(Still(model), x, y, ball),
    "dent.Dent": lambda model, x: dent.Dent(model, steps=2)(x),
    "dent.Dent sample": lambda model, x: dent.Dent(model, steps=2, scope="sample")(x),
    "detection.highest": lambda model, x, y, ball: detection.highest(
        rejecting(model), x, y, ball, [few, detection.climb(detection.weakest, few)]
    ),
    "detection.climb": lambda model, x, y, ball: detection.climb(detection.constrained, few)(
        rejecting(model), x, y, ball
    ),
    "detection.targeted": lambda model, x, y, ball: detection.targeted(few)(
        rejecting(model), x, y, ball
    ),
    "detection.matching": lambda model, x, y, ball: detection.matching(W, torch.arange(3), few)(
        rejecting(model), x, y, ball
    ),
    "smoothing.Smooth": lambda model, x: vars(
        smoothing.Smooth(model, 0.1).certify(x, 5, 20, 0.1, seeded(0))
    ),
    "smoothing.fixed_noise": lambda model, x: smoothing.fixed_noise(model, x, 0.1, 3, seeded(0))(x),
    "smoothing.smooth_adversarial": inner(
        lambda ball: smoothing.smooth_adversarial(few, ball, 0.1, 2, seeded(0))
    ),
    "smoothing.noisy": lambda model, x, y: smoothing.noisy(0.1, seeded(0))(model, x, y),
    "ensembles.transfer": lambda model, x, y, ball: ensembles.transfer([model] * 2, x, y, ball, few),
    "models.logits": models.logits,
}
WEIGHED = {  # what reads the weights
    "bounds.pre_activations": bounds.pre_activations,
    "bounds.margins": bounds.margins,
    "bounds.best_slopes": partial(bounds.best_slopes, steps=1),
    "bounds.robust_loss": bounds.robust_loss,
    "ensembles.margins": lambda model, x, y, ball: ensembles.margins([model] * 2, x, y, ball),
    "exact.margins": exact.margins,
    "exact.certify": exact.certify,
    "training.certified": inner(training.certified),
    "linear.margin": lambda x, y: linear.margin(w, b, x, y),
    "linear.worst_case": lambda x, y, ball: linear.worst_case(w, x, y, ball),
    "linear.robust_margin": lambda x, y, ball: linear.robust_margin(w, b, x, y, ball),
    "linear.robust_error": lambda x, y, ball: linear.robust_error(w, b, x, y, ball),
    "linear.robust_logistic_regression": linear.robust_logistic_regression,
    "linear.largest_margin": lambda x, y: linear.largest_margin(x, y, 2),
    "linear.margins": lambda x, y, ball: linear.margins(W, W[:, 0], x, y, ball),
    "linear.certified": lambda x, y, ball: linear.certified(W, W[:, 0], x, y, ball),
    "linear.robust_cross_entropy_bound": lambda x, y, ball: linear.robust_cross_entropy_bound(
        W, W[:, 0], x, y, ball
    ),
    "smoothing.linear_probability": lambda x, y: smoothing.linear_probability(w, b, x, y, 0.5),
    "conjugates.ball": lambda x, ball: conjugates.ball(x, x, ball),
    "evaluation.check_allowed": lambda x, ball: evaluation.check_allowed("a", 0 * W[:, :1], x, ball),
}
OTHERWISE = {  # these are given pieces, models or results that others looked at, or no input
    "affine.affine_pieces",
    "bounds.problems",
    "bounds.tightened",
    "dent.blur",
    "dual.bound",
    "dual.ascend",
    "dual.forward",
    "dual.in_parts",
    "dual.value",
    "ensembles.against",  # these two are about an Ensemble, which is made of layers they know
    "ensembles.climb",
    "leaves.program",
    "leaves.refined",
    "linear.weights",
    "models.check_logits",
    "models.evaluating",
    "plots.images",
    "projections.onto_hyperplane",
    "stack.drawn",
    "stack.matrices",
    "stack.members_of",
    "training.one_step",
}


def takes(function) -> list[str]:
    """Which of (model, x, y, ball) a call takes."""
    names = inspect.signature(function).parameters
    return [name for name in ("model", "x", "y", "ball") if name in names]


def about_models() -> set[str]:
    """The public functions that such calls are about."""
    words = {"model", "models", "x", "ball", "attack", "attacks"}
    functions = {name: member for name, member in public() if inspect.isfunction(member)}
    return {name for name, f in functions.items() if words & {*inspect.signature(f).parameters}}
