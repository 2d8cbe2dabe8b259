"""Many small networks as one: an axis of E in front of weights and activations.

A layer of 50 units costs a core little more than the call, so E networks of the same shape, one after
the other, pay for E calls where one would do. A `Stack` makes that one call. Its rows are dealt out in
turns: row i of a batch is member i mod E's. No member sees the rows of another, so the gradient of the
sum of their losses is, member by member, the gradient that each would have alone: `training.fit` and the
attacks take a stack as they take a network, and each member ends where it would have ended by itself.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.Softplus,
    nn.Tanh,
    nn.SiLU,
)


class Linear(nn.Module):
    """W_e h + b_e for each member e.  weight: (E, out, in).  bias: (E, 1, out)."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(_each(layer.weight for layer in layers))
        self.bias = nn.Parameter(_each(layer.bias for layer in layers).unsqueeze(1))

    def forward(self, h: Tensor) -> Tensor:
        """h: (E, n, in).  Returns (E, n, out)."""
        return torch.baddbmm(self.bias, h, self.weight.transpose(1, 2))


class BatchNorm(nn.Module):
    """BatchNorm1d for each member: a mean and a variance for every unit of every member.

    weight, bias, running_mean, running_var: (E, features).
    """

    def __init__(self, layers: Sequence[nn.BatchNorm1d]):
        super().__init__()
        self.momentum, self.eps = layers[0].momentum, layers[0].eps
        for name, value in (*layers[0].named_parameters(), *layers[0].named_buffers()):
            both = _each(getattr(layer, name) for layer in layers)
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, nn.Parameter(both))
            else:
                self.register_buffer(name, both)

    def forward(self, h: Tensor) -> Tensor:
        """h: (E, n, features).  Returns the same shape."""
        E, n, features = h.shape
        flat = h.transpose(0, 1).reshape(n, E * features)  # E·features units, each by itself
        own = (self.running_mean, self.running_var, self.weight, self.bias)
        out = F.batch_norm(flat, *(v.view(-1) for v in own), self.training, self.momentum, self.eps)
        if self.training:
            self.num_batches_tracked.add_(1)
        return out.view(n, E, features).transpose(0, 1)


class Activation(nn.Module):
    """Each member's own function of every entry; neighbours with the same one go through it together."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        alike = [list(same) for _, same in groupby(layers, str)]
        self.kinds = nn.ModuleList(copy.deepcopy(same[0]) for same in alike)
        self.ends = [0, *accumulate(map(len, alike))]  # members ends[i] to ends[i + 1] have kinds[i]

    def forward(self, h: Tensor) -> Tensor:
        """h: (E, n, features).  Returns the same shape."""
        if len(self.kinds) == 1:
            return self.kinds[0](h)
        parts = zip(self.kinds, pairwise(self.ends), strict=True)
        return torch.cat([kind(h[begin:end]) for kind, (begin, end) in parts])

    def member(self, e: int) -> nn.Module:
        """The activation of member e by itself."""
        return copy.deepcopy(self.kinds[bisect_right(self.ends, e) - 1])


class SideBySide(nn.Module):
    """E networks f_0, …, f_{E−1} in one module, which a subclass gives a `forward`.

    members: networks of Flatten, Linear, BatchNorm1d and activations (ReLU, LeakyReLU, ELU, CELU, SELU,
             GELU, Softplus, Tanh and SiLU), such as `models.mlp` makes, all of the same layers and
             widths; their activations may differ. Weights and statistics are copied, with an axis of E
             in front. Another layer may stand among them if it has a `side_by_side`, which makes one of
             E, as `mahalanobis.NearestCentre` does.
    Raises ValueError for no members, for other layers, and for members that differ.
    """

    def __init__(self, members: Sequence[nn.Sequential]):
        super().__init__()
        kinds = {tuple(_kind(layer) for layer in member) for member in members}
        if len(kinds) != 1:
            raise ValueError(f"expected networks of the same layers and widths, got {kinds or 'none'}")
        self.layers = nn.Sequential(*map(_side_by_side, zip(*members, strict=True)))
        self._plan = (copy.deepcopy(members[0]),)  # in a tuple, so that its weights are none of ours
        self.train(members[0].training)

    def __len__(self) -> int:
        """E."""
        return len(next(self.parameters()))

    def each(self, x: Tensor) -> Tensor:
        """Every row of x (n, *shape) through every member: logits (n, E, K)."""
        return self.layers(x.flatten(1).expand(len(self), -1, -1)).transpose(0, 1)

    def member(self, e: int) -> nn.Sequential:
        """f_e on weights that are part of these: gradients flow to them, and steps move both."""
        network = self._planned(e)
        for layer, own in zip(network, self.layers, strict=True):
            for name, value in (*layer.named_parameters(), *layer.named_buffers()):
                delattr(layer, name)  # a parameter cannot be replaced by a part of one
                setattr(layer, name, getattr(own, name)[e].view(value.shape))
        return network

    def members(self) -> list[nn.Sequential]:
        """The E networks by themselves, with copies of the weights and statistics of now."""
        networks = [self._planned(e) for e in range(len(self))]
        for e, network in enumerate(networks):
            state = {name: value[e] for name, value in self.layers.state_dict().items()}
            shapes = {name: value.shape for name, value in network.state_dict().items()}
            network.load_state_dict({name: state[name].view(shape) for name, shape in shapes.items()})
        return networks

    def _planned(self, e: int) -> nn.Sequential:
        """A network with the layers of member e, and the weights of no matter whom."""
        network = copy.deepcopy(self._plan[0])
        for i, layer in enumerate(self.layers):
            if isinstance(layer, Activation):
                network[i] = layer.member(e)
        return network.train(self.training)


class Stack(SideBySide):
    """E networks, between which a batch is dealt: row i goes through f_e with e = i mod E.

    members: as for `SideBySide`.
    An attack that drops samples from the batch (`keep="first"`, `attacks.square`) is refused: the rows
    that are left would change members. Nor is a stack for `evaluation`: take its `members`.
    Raises ValueError for what `SideBySide` refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (n·E, *shape), the members' rows in turns.  Returns logits (n·E, K) in the same order."""
        E = len(self)
        if len(x) % E:
            raise ValueError(f"expected as many rows for each of {E} networks, got {len(x)} in all")
        h = x.flatten(1).unflatten(0, (len(x) // E, E)).transpose(0, 1)
        return self.layers(h).transpose(0, 1).flatten(0, 1)

    def rows(self, x: Tensor) -> Tensor:
        """Each row of x (n, …) once for every member: (n·E, …)."""
        return x.repeat_interleave(len(self), 0)


def members_of(model: Callable) -> int:
    """How many networks a model is: E for a `Stack` of E, 1 for any other."""
    return len(model) if isinstance(model, Stack) else 1


def drawn(
    draw: Callable[[Tensor, torch.Generator], Tensor],
    x: Tensor,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Tensor:
    """draw(x, generator), or with a sequence of E generators every member's rows from its own.

    draw: (rows (n, *shape), generator) → one result a row, such as `Ball.sample`.  x: (n·E, *shape).
    So a member draws what it would draw by itself.
    Raises ValueError if not every member has as many rows.
    """
    if isinstance(generator, torch.Generator):
        return draw(x, generator)
    if len(generator) == 0 or len(x) % len(generator):
        raise ValueError(
            f"expected as many rows for each of {len(generator)} networks, got {len(x)} in all"
        )
    parts = [draw(x[e :: len(generator)], own) for e, own in enumerate(generator)]
    return torch.stack(parts, 1).flatten(0, 1)


def dealt(values: float | Sequence[float], rows: Tensor) -> float | Tensor:
    """A number as it is; a sequence of one number a member as one number a row: (n·E,).

    rows: (n·E, …), the members' in turns; the numbers are of its type.
    Raises ValueError if not every member has as many rows.
    """
    if not isinstance(values, Sequence):
        return values
    if len(values) == 0 or len(rows) % len(values):
        raise ValueError(f"expected one number for each network, got {len(values)} for {len(rows)} rows")
    return torch.tensor(values, dtype=rows.dtype, device=rows.device).repeat(len(rows) // len(values))


def aligned(values: float | Sequence[float], p: Tensor) -> float | Tensor:
    """A number as it is; a sequence of one number a member as (E, 1, …), to go with a parameter.

    p: a parameter of a stack, (E, …); the numbers are of its type.
    Raises ValueError unless there are E.
    """
    if not isinstance(values, Sequence):
        return values
    if len(values) not in (1, len(p)):
        raise ValueError(f"expected one number for each of {len(p)} networks, got {len(values)}")
    return p.new_tensor(values).view(-1, *[1] * (p.ndim - 1))


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that layers multiply by, by name: no biases, and nothing of BatchNorm.

    Each is (out, *in), and (E, out, in) where E networks stand side by side.
    """
    least = 3 if isinstance(model, SideBySide) else 2
    named = dict(model.named_parameters())
    return {n: p for n, p in named.items() if n.endswith("weight") and p.ndim >= least}


def _each(values: Iterator[Tensor]) -> Tensor:
    """One tensor a member, with an axis of members in front."""
    return torch.stack([value.detach() for value in values])


def _kind(layer: nn.Module) -> tuple:
    """What must be the same in all members: the layer, its sizes and settings; not the activation."""
    if isinstance(layer, ACTIVATIONS):
        return ("an activation",)
    return (str(layer), *((name, value.dtype) for name, value in layer.state_dict().items()))


def _side_by_side(layers: Sequence[nn.Module]) -> nn.Module:
    """The layers of all members at one place, as one."""
    first = layers[0]
    if isinstance(first, nn.Linear) and first.bias is not None:
        return Linear(layers)
    if (
        isinstance(first, nn.BatchNorm1d)
        and first.affine
        and first.momentum
        and first.running_mean is not None
    ):
        return BatchNorm(layers)
    if isinstance(first, nn.Flatten):  # rows are flat already
        return nn.Identity()
    if isinstance(first, ACTIVATIONS):
        return Activation(layers)
    if hasattr(first, "side_by_side"):
        return first.side_by_side(layers)
    names = ", ".join(kind.__name__ for kind in ACTIVATIONS)
    raise ValueError(f"expected Flatten, Linear, BatchNorm1d, {names}, got {first}")
