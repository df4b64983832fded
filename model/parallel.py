"""How ranks share network and batch: the paper's two towers, replicas of the network, or both; applied from outside.

A replica is one whole network: a rank that holds both towers, or a pair of ranks with one tower each. Ranks are
numbered replica by replica, so that a pair are neighbours. Every rank brings its own part of the global batch. A pair
exchanges pictures, so that both towers see both parts, communicates where the paper's GPUs do, and each rank takes the
loss of the pictures that it brought. So the loss of a step is one sum over all ranks in any layout, and the gradient of
an exchange is its plain transpose: a gather's is a reduce-scatter, and a weight's is summed over its holders.

In the scheme of 2014 ("One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997) a pair shares
only the fully connected layers, where the weights are: both ranks hold all convolutions and run them on their own
pictures, and exchange conv5's maps instead of pictures.

The collectives are the functional operators that the compiler traces; each runs while the computation goes on, until
it is waited for.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from model.alexnet import Placement, concatenate
from model.layers.batch_norm import BatchPass, Rows

Layout = Literal["tower", "data", "tower+data", "2014"]

# Gradients of no more numbers travel together on CUDA: up to 256 KiB a sum takes the time of its launch, not its bytes.
SMALL: Final = 2**16

_collectives = torch.ops._c10d_functional


class Group(NamedTuple):
    """Ranks that communicate: the process group's name, which a compiled graph can hold, and their number."""

    name: str
    size: int


@dataclass(frozen=True)
class Parallel:
    """One rank's place in the layout; by default it is the only process, and every exchange does nothing."""

    rank: int = 0
    world_size: int = 1
    world: Group | None = None
    pair: Group | None = None  # the ranks of this one's replica, where they share it
    fc_replicas: Group | None = None  # the ranks that hold the same fully connected layers
    conv_replicas: Group | None = None  # the ranks that hold the same convolutions
    split_convolutions: bool = True  # whether a pair shares those too; not in the scheme of 2014

    @property
    def placement(self) -> Placement:
        """What of the network this rank holds."""
        connected = (self.rank % 2,) if self.pair else (0, 1)
        towers = connected if self.split_convolutions else (0, 1)
        return Placement(towers, connected, self.gather_channels, self.gather_fc_inputs)

    def replica_group(self, name: str) -> Group | None:
        """The ranks that hold a parameter; None where only this one does."""
        return self.conv_replicas if ".conv" in name else self.fc_replicas

    def replica_count(self, name: str) -> int:
        """How many ranks hold a parameter."""
        group = self.replica_group(name)
        return group.size if group else 1

    def gather_channels(self, parts: list[Tensor]) -> Tensor:
        """Both towers' channels (B, 2 C, H, W) or units (B, 2 U) from those that this rank computed."""
        if not self.pair or len(parts) == 2:
            return concatenate(parts)
        (part,) = parts
        rows = part.movedim(1, -1).contiguous()  # (B, H, W, C): for channels-last maps a view
        both = _Gather.apply(rows, *self.pair).unflatten(0, (2, -1))  # (2, B, H, W, C)
        return both.movedim(0, -2).flatten(-2).movedim(-1, 1)

    def gather_conv_inputs(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The convolutions' input, for each (b, ...) column: a pair's rows (2 b, ...), or only this rank's."""
        if not self.pair or not self.split_convolutions:
            return columns
        # One by one: gloo's coalesced gather garbles columns of different types (torch 2.13).
        # In one piece, which gloo needs: rows of pixels that a loader hands over may lie apart.
        gathered = [
            _collectives.all_gather_into_tensor(c.contiguous(), self.pair.size, self.pair.name) for c in columns
        ]
        return tuple(_collectives.wait_tensor(column) for column in gathered)

    def gather_pair_rows(self, x: Tensor) -> Tensor:
        """Gather the rows of a pair, (b, ...) -> (2 b, ...): the first rank's, then the second's."""
        return _Gather.apply(x.contiguous(), *self.pair) if self.pair else x

    def gather_fc_inputs(self, x: Tensor) -> Tensor:
        """The fully connected layers' input: both ranks' rows of conv5's maps."""
        return x if self.split_convolutions else self.gather_pair_rows(x)

    def local_rows(self, rows: Tensor) -> Tensor:
        """Of a pair's rows (2 b, ...) those that this rank brought, (b, ...)."""
        return rows.chunk(2)[self.rank % 2] if self.pair else rows

    def batch_pass(self, counted: Tensor) -> BatchPass:
        """What batch normalisation needs of a training pass; counted: (b,) of the pictures that this rank brought."""
        (convolved,) = self.gather_conv_inputs(counted)
        return BatchPass(
            Rows(convolved, lambda part: _sum_over(self.conv_replicas, part)),
            Rows(self.gather_pair_rows(counted), lambda part: _sum_over(self.fc_replicas, part)),
        )

    def all_reduce_gradients(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients by name, each summed over the ranks that hold its parameter.

        All sums are started before one is waited for, in the order in which backward makes the gradients: a compiler
        that starts each as early as it can then runs it beside the rest of backward.
        """
        # On the CPU one by one: where gloo cuts a buffer decides the order of a sum's terms, so its rounding.
        small = [name for name, g in gradients.items() if g.is_cuda and g.numel() <= SMALL]
        large = [name for name in gradients if name not in small]
        buckets: dict[tuple[str, Group], list[str]] = defaultdict(list)
        # The small ones last: conv1's is among them, which backward makes last.
        for name in (*_backward_order(large), *small):
            if group := self.replica_group(name):
                buckets["" if name in small else name, group].append(name)
        sums = {
            bucket: _collectives.all_reduce(_flat([gradients[name] for name in names]), "sum", bucket[1].name)
            for bucket, names in buckets.items()
        }
        arrived = dict(gradients)
        for bucket, names in buckets.items():
            parts = _unflat(_collectives.wait_tensor(sums[bucket]), [gradients[name] for name in names])
            arrived |= dict(zip(names, parts, strict=True))
        return arrived

    def squared_gradient_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """This rank's part of the squared norm of the whole network's gradient."""
        # By kernel or unit first: one pass over each gradient, and one sum of all that, where whole sums take two each.
        squares = [_squared_rows(gradient) / self.replica_count(name) for name, gradient in gradients.items()]
        return torch.cat(squares).sum()

    def all_reduce_sums(self, *parts: Tensor) -> list[Tensor]:
        """Each tensor's sum over all ranks, of all in one exchange; no gradient."""
        if not self.world:
            return [part.clone() for part in parts]  # no result is an input, whose memory its owner may write again
        sums = _collectives.wait_tensor(_collectives.all_reduce(_flat(parts), "sum", self.world.name))
        return _unflat(sums, parts)


def _squared_rows(gradient: Tensor) -> Tensor:
    """(n,): the squared norm of each of the first dimension."""
    return gradient.square().sum(tuple(range(1, gradient.ndim))) if gradient.ndim > 1 else gradient.square()


def choose_layout(wanted: Literal["auto"] | Layout, world_size: int) -> Layout | None:
    """The layout for this number of ranks, None for one; ValueError when the number does not fit the layout wanted.

    auto: two ranks are the paper's two GPUs; more are pairs of these if their number is even, else replicas.
    """
    if wanted == "auto":
        return None if world_size == 1 else "tower" if world_size == 2 else "data" if world_size % 2 else "tower+data"
    expected = {
        "tower": ("exactly 2", world_size == 2),
        "data": ("at least 2", world_size > 1),
        "tower+data": ("an even number, at least 4,", world_size > 2 and world_size % 2 == 0),
        "2014": ("an even number", world_size % 2 == 0),
    }
    words, fits = expected[wanted]
    if not fits:
        remedy = "set --parallel auto or torchrun's --nproc-per-node"
        raise ValueError(f"{world_size} processes with parallel {wanted}, expected {words} of them; {remedy}")
    return wanted


def make_parallel(layout: Layout | None, rank: int, world_size: int, timeout: timedelta | None = None) -> Parallel:
    """This rank's place; every rank calls it, once torch.distributed is initialised (for a layout other than None).

    timeout: of what the ranks of a pair, or those of a replica's counterparts, exchange; None: torch's default.
    """
    if layout is None:
        return Parallel()
    each = 1 if layout == "data" else 2
    numbers = torch.arange(world_size).view(-1, each)  # (replicas, ranks of one)
    world = dist.group.WORLD
    assert world
    world_group = Group(world.group_name, world_size)

    def own_group(rows: list[list[int]]) -> Group | None:
        if len(rows[0]) == 1:
            return None
        if len(rows) == 1:
            return world_group
        mine, _ = dist.new_subgroups_by_enumeration(rows, timeout=timeout)
        assert isinstance(mine, dist.ProcessGroup)
        return Group(mine.group_name, len(rows[0]))

    fc_replicas = own_group(numbers.T.tolist())
    return Parallel(
        rank,
        world_size,
        world_group,
        pair=own_group(numbers.tolist()),
        fc_replicas=fc_replicas,
        conv_replicas=world_group if layout == "2014" else fc_replicas,
        split_convolutions=layout != "2014",
    )


class _Gather(torch.autograd.Function):
    """(n, ...) of each rank -> (size n, ...) on every rank, in their order."""

    @staticmethod
    def forward(x: Tensor, group: str, size: int) -> Tensor:
        return _collectives.wait_tensor(_collectives.all_gather_into_tensor(x, size, group))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.group, ctx.size = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Each rank computed with all rows, so the gradient of a row is the sum of its gradients on all ranks.
        sums = _collectives.reduce_scatter_tensor(grads[0].contiguous(), "sum", ctx.size, ctx.group)
        return _collectives.wait_tensor(sums), None, None


class _Sum(torch.autograd.Function):
    """The sum over ranks, on every rank."""

    @staticmethod
    def forward(x: Tensor, group: str) -> Tensor:
        return _collectives.wait_tensor(_collectives.all_reduce(x.contiguous(), "sum", group))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Each rank computed with the sum, so the gradient of a part is the sum of the sum's gradients on all ranks.
        return _collectives.wait_tensor(_collectives.all_reduce(grads[0].contiguous(), "sum", ctx.group)), None


def _sum_over(group: Group | None, part: Tensor) -> Tensor:
    """The sum over a group of ranks, with its gradient; the part itself where only this rank has one."""
    return _Sum.apply(part, group.name) if group else part


def _backward_order(names: Iterable[str]) -> list[str]:
    """Parameters' names from the last layer to the first, a layer's of both towers side by side, on every rank alike.

    Not tower by tower: the first tower's last layer would wait for all of the second.
    """
    layers = {name: name.removeprefix("towers.0.").removeprefix("towers.1.") for name in names}
    depth = {layer: position for position, layer in enumerate(dict.fromkeys(layers.values()))}
    return sorted(layers, key=lambda name: depth[layers[name]], reverse=True)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Their numbers, (n,), one tensor after the other."""
    flat = [tensor.contiguous().view(-1) for tensor in tensors]
    return torch.cat(flat) if len(flat) > 1 else flat[0]


def _unflat(flat: Tensor, shaped: Sequence[Tensor]) -> list[Tensor]:
    """What `_flat` laid together, in pieces of the shapes of `shaped`."""
    pieces = flat.split([each.numel() for each in shaped])
    return [piece.view(each.shape) for piece, each in zip(pieces, shaped, strict=True)]
