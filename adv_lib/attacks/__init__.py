"""Attacks: lower bounds on the inner maximum of ℓ(x + δ, y) over δ ∈ Δ(x).

Every attack takes a model (images to logits), x (n, *shape), labels y (n,) and a `Ball`, and returns a
δ like x in Δ(x). Whatever loss it reaches, the maximum is at least that; none proves that there is
nothing worse.

With `targets` (n,) an attack wants x + δ classified as the target, without them as anything but y.
`loss` is (z, y) → (n,), with targets (z, y, targets) → (n,); None means `losses.log_odds` or
`losses.targeted`, which cannot saturate. `generator` None means a fresh one seeded 0.

A model that is an `nn.Module` runs in eval mode and keeps its modes, its statistics and its gradients; a
plain function runs as it is, so put the network that it calls in eval mode first. Attacks work under
`torch.no_grad`. A model may change in place what it gets: that is never the caller's x. All raise
ValueError for x outside the box or not finite, for a model that returns no logits, for labels that do
not fit them and for a loss that does not give one number a sample, and warn of a model that seems to
return probabilities, on which every loss here is wrong.

`count` says how often an attack asked the model about each sample. `square` and `spsa` ask for logits
only, `rays` for nothing but the class.

What they share, what is climbed and which iterate is kept, is in `_search`.
"""

from ._search import Counts, Iterate, count
from .auto_pgd import apgd
from .black_box import spsa, square
from .gradient import bim, fgsm, friendly, ilcm, pgd
from .hard_label import rays
from .minimum_norm import cw, ddn, deepfool, fab
from .saliency import jsma

__all__ = [
    "Counts",
    "Iterate",
    "apgd",
    "bim",
    "count",
    "cw",
    "ddn",
    "deepfool",
    "fab",
    "fgsm",
    "friendly",
    "ilcm",
    "jsma",
    "pgd",
    "rays",
    "spsa",
    "square",
]
