"""adv_lib: the attacks, bounds and defenses behind *Adversarial Robustness, Hands On*.

Each module is one idea of the book. Import what you need: ``from adv_lib.threat import Ball``.

I want …, so I call …:

    a perturbation that breaks this image                 attacks.pgd
    the shortest perturbation that breaks this image      attacks.fab
    one from a model that says nothing but the class      attacks.rays
    how often an attack asks the model                    attacks.count
    the accuracy under several attacks, and its interval  evaluation.robust_accuracy
    the accuracy under the standard suite of attacks      suite.autoattack
    a table of networks, attacks and proofs               evaluation.table
    to know whether an attack is blind                    diagnostics.masking
    a proof that no perturbation breaks this image, fast  bounds.margins
    the tightest proof by one backward pass               bounds.best_slopes
    yes or no, whatever it takes                          exact.certify
    a network trained against an attack                   training.adversarial
    a network trained to be easy to prove                 training.certified
    many networks trained as one                          stack.Stack
    a step size that changes on the way                   schedules.step
    weights that are perturbed, too                       recipe.awp
    features at centres as far apart as they can be       mahalanobis.centres
    several networks that answer as one                   ensembles.Ensemble
    a proof by noise, for a network of any size           smoothing.Smooth
    a classifier that may refuse to answer                detection.Rejecting
    whether two settings differ, from a few seeds         comparison.paired
    to attack a defense that adapts                       adaptive.unrolled
    the threat model: norm, radius, box                   threat.Ball

In the order in which data flow, each imports only what stands before it:

    sets and losses        projections, threat, data, models, stack, losses, linear
    attacks                attacks
    bounds                 affine, conjugates, dual, relaxation, bounds, branching, leaves, programs,
                           ladder, exact
    training and defenses  danskin, mahalanobis, ensembles, smoothing, optimisers, schedules, training,
                           recipe, dent, detection
    judging                evaluation, comparison, suite, diagnostics, adaptive
    showing                plots, widgets, checks
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("adversarial-robustness-book")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"
