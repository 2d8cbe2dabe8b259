"""Random balls, batches and models for the tests, rich in ties, zeros and points on the edge."""

import copy
import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from adv_lib import attacks, bounds, data, dual, losses, models, training
from adv_lib.affine import Bounds, affine_pieces
from adv_lib.threat import Ball

theorem = pytest.mark.theorem


ORDERS = (1, 2, math.inf)
DTYPES = (torch.float32, torch.float64)
SHAPES = ((1,), (2,), (8,), (4, 6), (5, 7, 7))
BOX = (0.0, 1.0)

orders = st.sampled_from(ORDERS)
seeds = st.integers(0, 2**32)


def tolerance(like: Tensor) -> float:
    """64 units in the last place: what sums of a few hundred rounded terms need, and no more."""
    return 64 * torch.finfo(like.dtype).eps


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entries(shape, seed: int, kind: str) -> Tensor:
    """Normal entries of one of four kinds, in float64."""
    generator = seeded(seed)
    v = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "ties":  # whole numbers: equal sizes, and zeros
        v = v.round()
    if kind == "sparse":
        v *= torch.rand(shape, generator=generator) < 0.3
    if kind == "uneven":  # a factor of a million between entries
        v *= 10 ** (6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3)
    return v


def inputs(shape, seed: int) -> Tensor:
    """Points of the box [0, 1], about a third of their entries on its edges."""
    x = torch.rand(shape, generator=seeded(seed + 1), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(*BOX)


class Case(NamedTuple):
    """A ball, a batch of vectors, and where the box matters the inputs they belong to."""

    ball: Ball
    v: Tensor
    x: Tensor | None

    def row(self, i: int) -> "Case":
        """Sample i on its own."""
        eps = self.ball.eps
        ball = Ball(self.ball.p, eps[i : i + 1] if torch.is_tensor(eps) else eps, self.ball.box)
        return Case(ball, self.v[i : i + 1], None if self.x is None else self.x[i : i + 1])

    def eps(self) -> Tensor:
        """ε of every row, in float64."""
        return torch.as_tensor(self.ball.eps, dtype=torch.float64).expand(len(self.v))

    def points(self, count: int = 20) -> Tensor:
        """Points of Δ for every row: 0, random ones of each kind, ends of axes: (m, n, d), float64."""
        n, d = len(self.v), self.v[0].numel()
        kinds = enumerate(("plain", "ties", "sparse", "uneven"))
        tries = [entries((math.ceil(count / 4), n, d), seed, kind) for seed, kind in kinds]
        axes = torch.eye(d, dtype=torch.float64)[:8, None].expand(-1, n, d)
        return self.inside(torch.cat([torch.zeros_like(axes[:1]), *tries, axes, -axes]))

    def corners(self, count: int = 20) -> Tensor:
        """Random corners of a cube, cut to Δ: (count, n, d), float64."""
        return self.inside(entries((count, len(self.v), self.v[0].numel()), 4, "plain").sign())

    def inside(self, z: Tensor) -> Tensor:
        """z (…, n, d), cut to the box and then shortened into the ball, by no method of Ball."""
        z = z * self.eps()[:, None] / z.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        if self.x is not None:
            x = self.x.double().flatten(1)
            z = torch.maximum(torch.minimum(z, 1 - x), -x)
        size = torch.linalg.vector_norm(z, ord=self.ball.p, dim=-1, keepdim=True)
        return z * (self.eps()[:, None] / size.clamp(min=1e-300)).clamp(max=1)


@st.composite
def cases(
    draw, dtypes=DTYPES, shapes=SHAPES, boxes=(None, BOX), kinds=("plain", "ties", "sparse", "uneven")
):
    """A case with every choice open: p, ε a number or one per sample, box, type, shape, entries."""
    dtype, box, seed = draw(st.sampled_from(dtypes)), draw(st.sampled_from(boxes)), draw(seeds)
    shape = (draw(st.sampled_from((1, 4, 16))), *draw(st.sampled_from(shapes)))
    scale = draw(st.sampled_from((0.01, 1.0, 1000.0)))
    eps = draw(st.sampled_from((0.0, 1e-3, 0.1, 0.5, 3.0, 50.0)))
    if draw(st.booleans()):
        eps = eps * torch.rand(shape[0], generator=seeded(seed), dtype=torch.float64).to(dtype)
    v = (scale * entries(shape, seed, draw(st.sampled_from(kinds)))).to(dtype)
    x = inputs(shape, seed).to(dtype) if box else None
    return Case(Ball(draw(orders), eps, box), v, x)


class Problem(NamedTuple):
    """What an attack is given: a model, inputs, labels and a ball."""

    model: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    ball: Ball

    def row(self, i: int) -> "Problem":
        """Sample i on its own."""
        ball = Case(self.ball, self.x, self.x).row(i).ball
        return Problem(self.model, self.x[i : i + 1], self.y[i : i + 1], ball)

    def leads(self, delta: Tensor) -> Tensor:
        """By how much x + δ is classified wrongly, (n,)."""
        with torch.no_grad():
            return losses.margin_loss(self.model(self.x + delta), self.y)


def problem(
    seed=0,
    shape=(8,),
    n=6,
    p=math.inf,
    eps=0.3,
    box=BOX,
    dtype=torch.float64,
    K=3,
    hidden=(12,),
    scale=1,
) -> Problem:
    """A small random network, inputs (n, *shape), a third of their entries at the box's edge, labels.

    scale multiplies what PyTorch draws for the weights.
    """
    model = models.mlp([math.prod(shape), *hidden, K], seeded(seed)).to(dtype)
    for parameter in model.parameters():
        parameter.data *= scale
    x = (inputs((n, *shape), seed) if box else entries((n, *shape), seed, "plain")).to(dtype)
    model[-1].bias.data -= model(x).detach().mean(0)  # no class wins everywhere
    y = torch.randint(0, K, (n,), generator=seeded(seed))
    return Problem(model, x, y, Ball(p, eps, box))


@st.composite
def problems(draw, **fixed):
    """A problem with every choice open: seed, shape, n, p, ε a number or one per sample, box, type."""
    n, seed = draw(st.sampled_from((1, 4, 16))), draw(seeds)
    eps = draw(st.sampled_from((0.0, 1e-3, 0.1, 0.5, 3.0)))
    if draw(st.booleans()):
        eps = eps * torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    options = {"shape": SHAPES, "p": ORDERS, "box": (None, BOX), "dtype": DTYPES}
    drawn = {name: draw(st.sampled_from(choices)) for name, choices in options.items()}
    return problem(**{"seed": seed, "n": n, "eps": eps, **drawn, **fixed})


def _shared_relu():
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(4, 5), relu, nn.Linear(5, 4), relu, nn.Linear(4, 3))


NETWORKS = {  # of every kind that bounds take: the shape of one sample, the layers
    "mlp": ((4,), lambda: models.mlp([4, 6, 3])),
    "deep mlp": ((1, 1, 3), lambda: models.mlp([3, 5, 4, 5, 4])),
    "linear": ((1, 2, 3), lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3))),
    "convolution": (
        (1, 4, 4),
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
        ),
    ),
    "dilated, in groups": (
        (2, 3, 4),
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, padding=(1, 0), dilation=2, groups=2),
            nn.ReLU(),
            nn.Conv2d(4, 2, 1, bias=False),
            nn.ReLU(),
            nn.Flatten(1, -1),
            nn.Linear(12, 3),
        ),
    ),
    "same padding": (
        (1, 3, 3),
        lambda: nn.Sequential(
            nn.Conv2d(1, 1, (1, 3), padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)
        ),
    ),
    "nested": (
        (4,),
        lambda: nn.Sequential(
            nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 5), nn.ReLU())),
            nn.Sequential(nn.Sequential(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 3)),
        ),
    ),
    "affine after affine": (
        (1, 3, 3),
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.Conv2d(2, 3, 2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3, 4),
            nn.Linear(4, 3),
        ),
    ),
    "ReLU first": (
        (1, 2, 2),
        lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
    ),
    "ReLU last": ((4,), lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU())),
    "ReLU twice": ((4,), lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.ReLU(), nn.Linear(5, 3))),
    "one ReLU in two places": ((4,), _shared_relu),
    "BatchNorm": ((4,), lambda: models.mlp([4, 6, 3], norm=True)),
    "affine in eval mode": (
        (1, 4, 4),
        lambda: nn.Sequential(
            models.Normalise([0.4], [0.3]),
            nn.Conv2d(1, 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(2, affine=False),
            nn.ReLU(),
            nn.Dropout2d(),
            nn.AvgPool2d((1, 2)),
            nn.Conv2d(2, 3, (2, 1)),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(3),
            nn.Identity(),
            nn.Linear(3, 3),
        ),
    ),
    "without a bias": (
        (4,),
        lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)),
    ),
}


def with_statistics(model: nn.Module) -> nn.Module:
    """The model, whose BatchNorms have seen something, drawn from the global generator."""
    for layer in model.modules():
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.3, 3)
            for parameter in layer.parameters():
                parameter.data.normal_()
    return model


def network(kind: str, seed: int, scale: float = 2.0) -> nn.Sequential:
    """A random network of this kind, in float64, in eval mode; scale multiplies what PyTorch draws."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**62)
        model = with_statistics(NETWORKS[kind][1]()).double().eval()
    for parameter in model.parameters():
        parameter.data *= scale
    return model


def scaled(model: nn.Sequential, c: Tensor) -> nn.Sequential:
    """The network u ↦ f(c ⊙ u), for a plain mlp f: c goes into its first layer."""
    other = copy.deepcopy(model)
    other[1].weight.data *= c.flatten()
    return other


def on_patch(model: nn.Sequential, x: Tensor, free: Tensor) -> nn.Sequential:
    """What a plain mlp is for the free entries of one x (1, *shape) when all others stay."""
    other, first = copy.deepcopy(model), model[1]
    other[1] = nn.Linear(int(free.sum()), first.out_features).to(x)
    W, free = first.weight.data, free.flatten()
    other[1].weight.data = W[:, free]
    other[1].bias.data = first.bias.data + W[:, ~free] @ x.flatten()[~free]
    return other


Layers = list[tuple[np.ndarray, np.ndarray]]


def layers_of(model: nn.Sequential) -> Layers:
    """W and b of every Linear of a plain mlp, ReLU between them, as NumPy."""
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    return [(f.weight.detach().double().numpy(), f.bias.detach().double().numpy()) for f in linears]


def minimum_by_patterns(layers: Layers, lower: np.ndarray, upper: np.ndarray, c: np.ndarray) -> float:
    """min cᵀz over the box: where every ReLU is told on or off the network is affine, so try all 2ⁿ."""
    best = math.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(len(b) for _, b in layers[:-1])):
        A, a, signs, rows, sides = np.eye(len(lower)), np.zeros(len(lower)), list(pattern), [], []
        for W, b in layers[:-1]:  # h = A x + a of the layer before
            A, a = W @ A, W @ a + b
            on, signs = np.array(signs[: len(b)]), signs[len(b) :]
            rows.append((1 - 2 * on)[:, None] * A)  # on: −(A x + a) ≤ 0, off: A x + a ≤ 0
            sides.append((2 * on - 1) * a)
            A, a = on[:, None] * A, on * a
        W, b = layers[-1]
        limits = {"A_ub": np.concatenate(rows), "b_ub": np.concatenate(sides)} if rows else {}
        box = np.stack([lower, upper], 1)
        result = linprog(c @ W @ A, **limits, bounds=box)
        if result.status == 0:
            best = min(best, result.fun + c @ (W @ a + b))
    return best


def minimum_of_pattern(pieces, x: Tensor, ball: Ball, c: Tensor, on: Tensor, slack: float = 0) -> float:
    """min cᵀa_D over the δ ∈ Δ(x) at which the hidden units are on or off like this; +∞ without any.

    One sample, any p, written down for a solver, by no method of Ball. on: (units,) bool. slack: by how
    much each unit may have the wrong sign.
    """
    import cvxpy as cp

    delta = cp.Variable(x.numel())
    eps = ball.eps.flatten().numpy() if torch.is_tensor(ball.eps) else ball.eps
    inside = [cp.norm(delta, ball.p) <= eps] if np.ndim(eps) == 0 or len(eps) == 1 else []
    if not inside:  # a radius for each entry
        u = cp.Variable(x.numel())
        inside = [delta == cp.multiply(eps, u), cp.norm(u, ball.p) <= 1]
    h = x.flatten().numpy() + delta
    if ball.box:
        inside += [h >= ball.box[0], h <= ball.box[1]]
    signs = list(on.split([math.prod(piece.shape_out) for piece in pieces[:-1]]))
    for piece in pieces:
        W, b = (t.detach().numpy() for t in piece.matrix())
        a = W @ h + b
        if signs:
            now = signs.pop(0).numpy()
            inside.append(cp.multiply(2.0 * now - 1, a) >= -slack)
            h = cp.multiply(1.0 * now, a)
    program = cp.Problem(cp.Minimize(c.flatten().numpy() @ a), inside)
    least = program.solve(solver=cp.CLARABEL)
    return math.inf if program.status in ("infeasible", "infeasible_inaccurate") else float(least)


@functools.cache
def trained_on_digits() -> nn.Sequential:
    """A small network that knows the digits and nothing of adversaries. Do not change it."""
    model, (x, y, _, _) = models.mlp([64, 32, 10]), data.load("digits")
    inner = lambda m, x, y: losses.cross_entropy(m(x), y)  # noqa: E731
    list(training.fit(model, (x, y), inner, epochs=12, lr=0.2, batch_size=50))
    return model.requires_grad_(False)


def generators():
    """The state of all global generators."""
    legacy = str(np.random.get_state())  # noqa: NPY002, the one that seeds itself globally
    return torch.get_rng_state().tolist(), random.getstate(), legacy


def same(a, b) -> bool:
    """Equal, bit for bit where they hold tensors."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def network_case(kind, seed, p=math.inf, box=BOX, eps=0.3, n=2, each_eps=False) -> Problem:
    """A random network of this kind, inputs that fit it, labels, and a ball."""
    model, shape = network(kind, seed), NETWORKS[kind][0]
    x = inputs((n, *shape), seed) if box else entries((n, *shape), seed, "plain")
    K = model(x).shape[1]
    y = torch.randint(0, K, (n,), generator=seeded(seed))
    if each_eps:
        eps = eps * torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    return Problem(model, x, y, Ball(p, eps, box))


def aimed(model, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """What a few steps of ascent towards each class but y find, as one batch: δ (K − 1, n, *shape)."""
    n, others = len(x), model(x).shape[1] - 1
    rows = torch.arange(n).repeat(others)
    targets = (y[rows] + 1 + torch.arange(others).repeat_interleave(n)) % (others + 1)
    found = attacks.pgd(model, x[rows], y[rows], ball.subset(rows), steps=5, targets=targets)
    return found.reshape(others, *x.shape)


def towards(y: Tensor, K: int) -> Tensor:
    """e_y − e_k for every class k, (n, K, K), in float64."""
    one = torch.eye(K, dtype=torch.float64)
    return one[y][:, None] - one


class Branch:
    """A random network, a batch, and for every sample a branch that holds at least one point.

    The phases are the signs at some point of the ball, of about this share of the unstable units.
    r problems each, with any slopes and any β of the right signs.
    """

    def __init__(self, kind, seed, p=math.inf, box=BOX, eps=0.3, share=0.5, size=1.0, n=4):
        self.model, self.x, y, self.ball = network_case(kind, seed, p, box, eps, n, each_eps=seed % 2)
        self.model.requires_grad_(False)
        self.pieces = affine_pieces(self.model, self.x.shape[1:])
        self.region, self.c = self.ball.region(self.x), towards(y, math.prod(self.pieces[-1].shape_out))
        self.r, self.seed = self.c.shape[1], seed
        root = bounds.pre_activations(self.model, self.x, self.ball, "crown")
        self.points = Case(self.ball, self.x, self.x if box else None).points(60)
        self.a, self.z = self.network(self.points)
        self.phases = [
            a[seed % len(a)].sign()
            * ((l < 0) & (u > 0) & (torch.rand(l.shape, generator=seeded(seed)) < share))
            for a, (l, u) in zip(self.a, root, strict=True)
        ]
        self.layers = dual.branch(root, self.phases)
        self.slopes = [inputs((n, self.r, *l.shape[1:]), seed) for l, _ in root]
        self.betas = [
            size * phase[:, None] * entries((n, self.r, *phase.shape[1:]), seed, "plain").abs()
            for phase in self.phases
        ]

    def network(self, deltas):
        """a_1, …, a_{D−1} and a_D of the network itself: (m, n, *shape) each, for δ (m, n, d)."""
        h, a = (self.x + deltas.reshape(-1, *self.x.shape)).flatten(0, 1), []
        for piece in self.pieces:
            a.append(piece(h).unflatten(0, deltas.shape[:2]))
            h = a[-1].flatten(0, 1).relu()
        return a[:-1], a[-1].flatten(2)

    def inside(self, a):
        """Which points lie in the branch, (m, n)."""
        kept = torch.ones(a[0].shape[:2], dtype=torch.bool)
        for each, phase in zip(a, self.phases, strict=True):
            kept &= (each * phase >= 0).flatten(2).all(2)
        return kept

    def lines(self, slopes=None):
        return [dual.lines(*pair) for pair in zip(self.layers, slopes or self.slopes, strict=True)]

    def bound(self, slopes=None, betas=None):
        problem = self.x, self.region, self.c
        return dual.bound(self.pieces, self.lines(slopes), *problem, betas or self.betas)

    def ascend(self, steps, **options):
        phases = [phase[:, None].expand(-1, self.r, *phase.shape[1:]) for phase in self.phases]
        problem = self.x, self.region, self.c, self.slopes, steps, phases, self.betas
        return dual.ascend(self.pieces, self.layers, *problem, **options)


def relaxed_minimum(pieces, layers, x, ball: Ball, c) -> tuple[float, list[Tensor]]:
    """min cᵀa_D over the relaxation of one sample, written down for a solver, and its multipliers.

    layers: pairs (l, u), (1, *shape) each.  x: (1, *shape).  c: of one problem.  Returns ν_1, …, ν_D of
    the rows a_i = W_i h_i + b_i, (1, 1, units) each. Every unit keeps its l ≤ a ≤ u, stable ones too.
    """
    import cvxpy as cp

    h = cp.Variable(x.numel())
    inside = [cp.norm(h - x.flatten().numpy(), ball.p) <= float(ball.eps)]
    if ball.box:
        inside += [h >= ball.box[0], h <= ball.box[1]]
    rows = []
    for depth, piece in enumerate(pieces):
        W, b = (t.detach().numpy() for t in piece.matrix())
        a = cp.Variable(len(b))
        rows.append(a == W @ h + b)
        if depth == len(layers):
            break
        l, u = (end.detach().double().flatten().numpy() for end in layers[depth])
        h = cp.Variable(len(b))
        on, off = l >= 0, (l < 0) & (u <= 0)
        free = ~on & ~off
        inside += [a >= l, a <= u, h >= 0]
        inside += [h[on] == a[on]] if on.any() else []
        inside += [h[off] == 0] if off.any() else []
        if free.any():
            slope = u[free] / (u[free] - l[free])
            inside += [h[free] >= a[free], h[free] <= cp.multiply(slope, a[free] - l[free])]
    program = cp.Problem(cp.Minimize(c.flatten().numpy() @ a), inside + rows)
    least = program.solve(solver=cp.CLARABEL)
    return least, [torch.from_numpy(np.atleast_1d(row.dual_value))[None, None] for row in rows]


def reached(model, x, ball, count=30):
    """The logits of points of the ball, (m, n, K): random ones, ends of axes, corners, 0."""
    one = Case(ball, x, x if ball.box else None)
    deltas = torch.cat([one.points(count), *([one.corners(count)] if ball.p == math.inf else [])])
    with torch.no_grad():
        moved = x + deltas.reshape(-1, *x.shape)
        return model(moved.flatten(0, 1)).reshape(len(moved), len(x), -1)


def detached(model, x):
    return [piece.detach() for piece in affine_pieces(model, x.shape[1:])]


def with_exact_bounds(seed, hidden, box=BOX, eps=0.3):
    """A network, one input, and the smallest and largest pre-activations that the cube really allows."""
    model, x, _, ball = problem(seed, (3,), 1, eps=eps, box=box, hidden=hidden, scale=3)
    model.requires_grad_(False)
    layers, region = layers_of(model), ball.region(x)
    low, high = ((x + end)[0].numpy() for end in (region.low, region.high))
    found = []
    for depth in range(1, len(layers)):
        units = np.eye(len(layers[depth - 1][1]))
        ends = [
            [sign * minimum_by_patterns(layers[:depth], low, high, sign * c) for c in units]
            for sign in (1, -1)
        ]
        l, u = torch.tensor(ends, dtype=torch.float64)[:, None]
        found.append(Bounds(l, u.maximum(l)))
    return model, x, model(x).argmax(1), ball, found
