"""Randomised smoothing: ask a network about many noisy copies of an image, and believe the majority.

g(x) = argmax_c P(f(x + η) = c), with noise η of a law that is known. However wild the network f is, what
it says to x + η and to x + δ + η cannot differ much, since the two have nearly the same law: from how
often f says A follows a radius within which g says A. f is only asked, never read, so it may be of any
size; the price is many questions, and a proof that errs with a probability α. f is asked in eval mode,
and must take inputs outside [0, 1], where x + η may lie.

Source: Cohen, Rosenfeld & Kolter 2019; Lécuyer et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.special import ndtr, ndtri  # Φ and Φ⁻¹

from . import linear, losses, models
from ._arguments import check_batch
from ._given import check_ball, check_moves, check_tensors, kind, within
from ._precision import in_its_own_type
from ._work import parallel_map, runs
from .ensembles import log_mean
from .stack import Stack, dealt, drawn
from .threat import Ball

Attack = Callable[[Callable, Tensor, Tensor, Ball], Tensor]  # (model, x, y, ball) → δ like x
Generator = torch.Generator | Sequence[torch.Generator]  # one, or one for each member of a `Stack`
Inner = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x (n, *shape), y (n,)) → (n,)
ABSTAIN = -1  # where no class leads for certain
LEAST, LARGEST = math.ulp(0.0), math.nextafter(math.inf, 0)
WHOLE = (torch.int64, torch.int32)


# ---- from a probability to a radius ----


def radius(p: Tensor | float, sigma: float) -> Tensor:
    """R = σ Φ⁻¹(p), and 0 for p ≤ ½: no ‖δ‖₂ < R changes the answer that has probability p at x.

    Φ is the distribution function of N(0, 1), the noise N(0, σ²I). There are f for which no larger
    radius is right: those whose answer changes at a hyperplane. ∞ for p = 1.
    p: any shape, from 0 to 1, or a number.  sigma: σ > 0, in the units of x.
    Returns the shape of p, in the units of x.  Raises ValueError for others.
    Source: Cohen, Rosenfeld & Kolter 2019, theorems 1 and 2, with p_B = 1 − p.
    """
    return _scale(sigma) * ndtri(_probability(p).clamp(min=0.5))


def radius_between(p: Tensor | float, rival: Tensor | float, sigma: float) -> Tensor:
    """R = σ/2 (Φ⁻¹(p_A) − Φ⁻¹(p_B)), and 0 for p_A ≤ p_B: `radius`, when no other class has over p_B.

    At least `radius` of p_A where p_B ≤ 1 − p_A, and larger if several classes share what A leaves.
    p: p_A, at most the probability of A at x.  rival: p_B, at least that of each other class.
    Returns their shape, in the units of x.  Raises ValueError as `radius`.
    Source: Cohen, Rosenfeld & Kolter 2019, theorem 1.
    """
    a, b = _probability(p), _probability(rival)
    return torch.where(a > b, _scale(sigma) / 2 * (ndtri(a) - ndtri(b)), 0.0)


def laplace_radius(p: Tensor | float, scale: float) -> Tensor:
    """R = −λ log(2 (1 − p)), and 0 for p ≤ ½: the same for ‖δ‖₁ < R, with noise of Laplace.

    Each entry of the noise has the density e^{−|t|/λ}/(2λ), by itself.
    scale: λ > 0, in the units of x.  Others and errors as `radius`.
    Source: Teng, Lee & Yuan 2019, with p_B = 1 − p.
    """
    return -_scale(scale) * torch.log(2 * (1 - _probability(p).clamp(min=0.5)))


def linear_probability(w: Tensor, b: Tensor, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """P(sign(wᵀ(x + η) + b) = y) = Φ(y (wᵀx + b)/(σ‖w‖₂)): what a linear model says, without draws.

    So its `radius` is y (wᵀx + b)/‖w‖₂, the distance to the boundary, for every σ; until p rounds to 1,
    in float64 at a distance of 8σ.
    w, b, x, y: as in `linear.margin`, w not 0.  sigma: σ > 0, in the units of x.
    Returns (n,).  Raises ValueError for others.
    """
    margin, length = linear.margin(w, b, x, y), torch.linalg.vector_norm(w)
    if length == 0:
        raise ValueError("expected w that is not 0, got one that is")
    return ndtr(margin / (_scale(sigma) * length))


# ---- from counts to a probability ----


def lower_bound(count: Tensor | int, n: int, alpha: float) -> Tensor:
    """The p at which `count` hits of n, or more, have the probability α; 0 for no hit: Clopper–Pearson.

    Whatever the true probability of a hit is, the bound exceeds it in at most a share α of all
    experiments. It is the α-quantile of Beta(count, n − count + 1).
    count: whole numbers from 0 to n, any shape.  n: n ≥ 1.  alpha: above 0 and below 1.
    Returns the shape of count, float64.  Raises ValueError for others.
    Source: Clopper & Pearson 1934, one-sided.
    """
    from scipy.special import betaincinv  # the quantiles of Beta

    _check_level(alpha)
    _check_draws(n=n)
    k = torch.as_tensor(count if isinstance(count, int | Tensor) else math.nan)
    if k.dtype not in WHOLE or not bool(((k >= 0) & (k <= n)).all()):
        raise ValueError(f"expected whole counts from 0 to {n}, got {count!r}")
    hits = k.clamp(min=1).cpu().numpy()
    return torch.as_tensor(betaincinv(hits, n - hits + 1, alpha)).to(k.device).masked_fill(k == 0, 0)


def largest_radius(n: int, sigma: float, alpha: float) -> float:
    """σ Φ⁻¹(α^{1/n}), what n draws prove at most: the `radius` when all of them say the same.

    n: draws, n ≥ 1.  sigma: σ > 0.  alpha: above 0 and below 1.
    Returns a number, in the units of σ.  Raises ValueError for others.
    Source: Cohen, Rosenfeld & Kolter 2019, section 3.2.
    """
    return float(radius(lower_bound(n, n, alpha), sigma))


# ---- the smoothed classifier ----


@dataclass(frozen=True, eq=False)
class Certified:
    """For every image what the smoothed classifier says there, and how far it goes on saying so.

    label:  (n,) int64, ABSTAIN, which is −1, where nothing is proved.
    radius: (n,) float64, in the units of x: all ‖δ‖ < radius are proved; 0 where it abstains.
    p:      (n,) float64, the lower bound on the probability of the class that was guessed.
    """

    label: Tensor
    radius: Tensor
    p: Tensor

    def right(self, y: Tensor, r: float = 0.0) -> Tensor:
        """Which images are proved to be classified as y for every ‖δ‖ ≤ r, (n,) bool.

        Of how many that is true, `evaluation.rate` says: the certified accuracy at r.
        y: (n,) int64.  r: r ≥ 0.  Raises ValueError for others.
        """
        check_tensors(y=y)
        if y.shape != self.label.shape or y.dtype != torch.int64 or bool((y < 0).any()):
            raise ValueError(f"expected {len(self.label)} int64 labels ≥ 0, got {kind(y)}")
        if not within(r, 0, LARGEST):
            raise ValueError(f"expected r ≥ 0, got {r!r}")
        return (self.label == y) & (self.radius > r)


@dataclass(frozen=True, eq=False)
class Smooth:
    """g(x) = argmax_c P(f(x + η) = c), of which draws are all one sees.

    model: f, a classifier that takes x (n, *shape) and returns logits (n, K).
    sigma: the size of the noise in each entry, above 0, in the units of x: σ of "gaussian", for radii in
           ℓ2 (`radius`), or λ of "laplace", for radii in ℓ1 (`laplace_radius`).
    noise: which of the two.

    A method draws a seed for each image from the generator, and the image's noise from a generator with
    that seed: what an image gets depends on its place in the batch, not on its company or on who works.
    Raises ValueError for others, and for a `stack.Stack`: smooth its `members`.
    """

    model: Callable[[Tensor], Tensor]
    sigma: float
    noise: str = "gaussian"

    def __post_init__(self):
        _scale(self.sigma)
        _check_noise(self.noise)
        if not callable(self.model) or isinstance(self.model, Stack):
            raise ValueError(f"expected a classifier, and no stack of several, got {kind(self.model)}")

    def counts(
        self,
        x: Tensor,
        draws: int,
        generator: torch.Generator,
        *,
        jobs: int = -1,
        progress: bool | None = None,
    ) -> Tensor:
        """How often f says each class, of `draws` noisy copies of each image.

        x: (n, *shape).  draws: at least 1.
        jobs: how many images at a time, as joblib's n_jobs: −1 means one for each core. They are
              threads, unless a `joblib.parallel_config` around the call names processes or a cluster.
        progress: whether to show a bar on stdout; None means only in a terminal.
        Returns (n, K) int64, whose rows sum to `draws`.
        Raises ValueError for others, for x that is not finite, and for logits that are NaN or no (n, K).
        """
        _check_finite(x)
        _check_draws(draws=draws)
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"expected a torch.Generator, got {kind(generator)}")
        seeds = torch.randint(2**62, x.shape[:1], generator=generator, device=generator.device)
        tasks = [(self, x[i].detach(), draws, seed) for i, seed in enumerate(seeds.tolist())]
        with models.evaluating(self.model):
            return torch.stack(parallel_map(_votes, tasks, jobs, progress))

    def predict(self, x: Tensor, draws: int, alpha: float, generator: torch.Generator) -> Tensor:
        """g(x) where one class leads for certain, ABSTAIN elsewhere: PREDICT.

        For each image the answer is another class than g(x) with a probability of at most α. Of the two
        classes with the most votes, n_A ≥ n_B, the first is the answer if that many of n_A + n_B tosses
        of a fair coin have a probability of at most α/2.
        x, draws: as in `counts`.  alpha: above 0 and below 1.
        Returns (n,) int64.  Raises ValueError for others, and as `counts`.
        Source: Cohen, Rosenfeld & Kolter 2019, proposition 1.
        """
        from scipy.special import betainc  # P(k or more of n) = I_p(k, n − k + 1)

        _check_level(alpha)
        votes, classes = self.counts(x, draws, generator).topk(2, dim=1)
        most, second = votes.cpu().numpy().T
        sure = torch.as_tensor(betainc(most, second + 1, 0.5) <= alpha / 2).to(classes.device)
        return torch.where(sure, classes[:, 0], ABSTAIN)

    def certify(
        self,
        x: Tensor,
        guesses: int,
        draws: int,
        alpha: float,
        generator: torch.Generator,
        *,
        jobs: int = -1,
        progress: bool | None = None,
    ) -> Certified:
        """A class for each image, and a radius within which g says that class: CERTIFY.

        The class is guessed from a few draws; its probability is bounded from others, that know nothing
        of the guess. For each image the radius is wrong with a probability of at most α, for n images
        some are, at up to α n on average.
        guesses, draws: how many, n₀ and n in the source, at least 1.  alpha: above 0 and below 1.
        x, jobs, progress: as in `counts`.
        Returns `Certified`.  Raises ValueError for others, and as `counts`.
        Source: Cohen, Rosenfeld & Kolter 2019, proposition 2.
        """
        _check_level(alpha)
        _check_draws(guesses=guesses, draws=draws)
        guess = self.counts(x, guesses, generator, jobs=jobs, progress=progress).argmax(1)
        votes = self.counts(x, draws, generator, jobs=jobs, progress=progress)
        p = lower_bound(votes.gather(1, guess[:, None])[:, 0], draws, alpha)
        certain = torch.where(p > 0.5, guess, ABSTAIN)
        return Certified(certain, NOISES[self.noise].radius(p, self.sigma), p)


@in_its_own_type
@torch.no_grad()
def _votes(smooth: Smooth, image: Tensor, draws: int, seed: int) -> Tensor:
    """How often f says each class, (K,), of noisy copies of one image (*shape)."""
    own, votes = torch.Generator(image.device).manual_seed(seed), 0
    for part in runs(draws, max(1, image.numel()), image.device):
        copies = image + _noise(image[None], smooth.sigma, len(part), own, smooth.noise)[0]
        z = models.logits(smooth.model, copies)
        if bool(z.isnan().any()):
            raise ValueError("expected logits, got NaN")
        votes = votes + z.argmax(1).bincount(minlength=z.shape[1])
    return votes


# ---- attacks on it, and training for it ----


def fixed_noise(
    model: Callable, x: Tensor, sigma: float | Sequence[float], draws: int, generator: Generator
) -> Callable[[Tensor], Tensor]:
    """v ↦ log (1/m) Σ_j softmax(f(v + η_j)), with η_j ~ N(0, σ²I) drawn now and held: what to attack.

    Votes have no gradient, probabilities have; and held noise makes it a classifier like any other. It
    asks the model, in eval mode, m · n questions at once.
    x: (n, *shape), what will be attacked: each sample has noise of its own. With x (1, *shape) all share
       it, as those attacks want that drop samples from the batch.
    sigma: σ ≥ 0, or one for each member of a `stack.Stack`.  draws: m ≥ 1.
    generator: draws the noise; on the device of x; or one for each member of a stack.
    Returns (v (n, *shape)) → (n, K).  Raises ValueError for others, and for another n.
    Source: Salman et al. 2019, section 2.2.
    """
    _check_finite(x)
    _check_training(sigma, generator)
    _check_draws(draws=draws)
    return partial(_mean_answer, model, _noise(x, sigma, draws, generator))


def noisy(sigma: float | Sequence[float], generator: Generator, noise: str = "gaussian") -> Inner:
    """ℓ(f(x + η), y), the cross-entropy at one noisy copy of each image, for `training.fit`.

    Without it a network has never seen what a `Smooth` asks it about.
    sigma: σ ≥ 0, of "laplace" noise λ, or one for each member of a `stack.Stack`; 0 is plain training.
    generator: draws the noise; on the device of the data; or one for each member of a stack.
    Returns (model, x, y) → (n,).  Raises ValueError for others.
    Source: Cohen, Rosenfeld & Kolter 2019, section 3.3; Lécuyer et al. 2019.
    """
    _check_training(sigma, generator)
    _check_noise(noise)

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_tensors(x=x)
        copies = x + _noise(x, sigma, 1, generator, noise)[:, 0]
        return losses.cross_entropy(models.logits(model, copies), y)

    return inner


def smooth_adversarial(
    attack: Attack, ball: Ball, sigma: float | Sequence[float], draws: int, generator: Generator
) -> Inner:
    """(1/m) Σ_j ℓ(f(x + δ + η_j), y), with δ from an attack on their `fixed_noise`: SmoothAdv.

    The attack sees the mean of the probabilities over the m draws, what is minimised is the mean of the
    cross-entropies, over the same draws. BatchNorm learns from all m · n of them, not from the attack.
    attack: (model, x, y, ball) → δ, one that keeps all samples, such as `attacks.pgd`.
    sigma, draws, generator: as in `fixed_noise`.
    Returns (model, x, y) → (n,).  Raises ValueError for others.
    Source: Salman et al. 2019, section 2.2, and their code for what is minimised.
    """
    check_ball(ball)
    _check_training(sigma, generator)
    _check_draws(draws=draws)

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_tensors(x=x, y=y)
        noise = _noise(x, sigma, draws, generator)
        delta = attack(partial(_mean_answer, model, noise), x, y, ball)
        check_moves(attack, delta, x)
        z = _answers(model, x + delta, noise)
        each = losses.cross_entropy(z.flatten(0, 1), y.repeat_interleave(draws))
        return each.view(-1, draws).mean(1)

    return inner


def _mean_answer(model: Callable, noise: Tensor, x: Tensor) -> Tensor:
    """log of the mean probability over the noise, in eval mode: (n, K)."""
    with models.evaluating(model):
        return log_mean(_answers(model, x, noise))


def _answers(model: Callable, x: Tensor, noise: Tensor) -> Tensor:
    """The model's logits at every x_i + η_ij, (n, m, K).  noise: (n or 1, m, *shape)."""
    if len(noise) not in (1, len(x)):
        raise ValueError(f"expected the {len(noise)} samples that the noise was drawn for, got {len(x)}")
    copies = x + noise.transpose(0, 1)  # row by row as in the batch, so that a stack's take turns
    z = models.logits(model, copies.flatten(0, 1))
    return z.unflatten(0, copies.shape[:2]).transpose(0, 1)


# ---- noise ----


class _Law(NamedTuple):
    """A law: how to draw it at size 1, (shape, like, generator) → Tensor, and the radius it gives."""

    draw: Callable[[Sequence[int], Tensor, torch.Generator], Tensor]
    radius: Callable[[Tensor, float], Tensor]


def _gaussian(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)


def _laplace(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """The difference of two waiting times."""
    waits = torch.empty((2, *shape), dtype=like.dtype, device=like.device)
    waits.exponential_(generator=generator)
    return waits[0] - waits[1]


NOISES = {"gaussian": _Law(_gaussian, radius), "laplace": _Law(_laplace, laplace_radius)}


def _noise(
    x: Tensor,
    sigma: float | Sequence[float],
    draws: int,
    generator: Generator,
    noise: str = "gaussian",
) -> Tensor:
    """Noise for each sample of x (n, *shape), as many times as draws: (n, draws, *shape)."""
    size = torch.as_tensor(dealt(sigma, x), dtype=x.dtype, device=x.device)
    law = NOISES[noise].draw

    def unit(rows: Tensor, own: torch.Generator) -> Tensor:
        return law((len(rows), draws, *rows.shape[1:]), rows, own)

    return size.view(-1, *[1] * x.ndim) * drawn(unit, x, generator)


# ---- is it what was expected? ----


def _probability(p: Tensor | float) -> Tensor:
    """p as a floating-point tensor, a number as float64; ValueError unless all are from 0 to 1."""
    number = torch.tensor(float(p) if isinstance(p, Real) else math.nan, dtype=torch.float64)
    each = p if isinstance(p, Tensor) else number
    if not each.is_floating_point() or not bool(((each >= 0) & (each <= 1)).all()):
        raise ValueError(f"expected probabilities from 0 to 1, got {p!r}")
    return each


def _scale(sigma: float) -> float:
    if isinstance(sigma, Sequence) or not within(sigma, LEAST, LARGEST):
        raise ValueError(f"expected a finite sigma > 0, got {sigma!r}")
    return sigma


def _check_level(alpha: float) -> None:
    if isinstance(alpha, Sequence) or not within(alpha, 0, 1) or alpha in (0, 1):
        raise ValueError(f"expected 0 < alpha < 1, got {alpha!r}")


def _check_draws(**named: int) -> None:
    for name, value in named.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} ≥ 1, a whole number, got {value!r}")


def _check_noise(noise: str) -> None:
    if noise not in NOISES:
        raise ValueError(f"expected noise out of {list(NOISES)}, got {noise!r}")


def _check_training(sigma: float | Sequence[float], generator: Generator) -> None:
    if not within(sigma, 0, LARGEST) or generator is None:
        raise ValueError(f"expected a generator and finite sigma ≥ 0, got {generator!r} and {sigma!r}")


def _check_finite(x: Tensor) -> None:
    check_batch(x)
    if not bool(x.isfinite().all()):
        raise ValueError("expected finite x, got NaN or infinity")
