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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.func import functional_call

from model.alexnet import Placement, concatenate

Layout = Literal["tower", "data", "tower+data", "2014"]

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

    def with_gradient_all_reduce(self, model: nn.Module) -> Callable[..., Tensor]:
        """The model with weights whose gradients are all-reduced over their holders as soon as backward has made each.

        When backward returns the all-reduces may still be running: use the gradients after `wait_for_gradients` only.
        """
        if not self.fc_replicas and not self.conv_replicas:
            return model
        weights: dict[str, Tensor] = {}
        for name, weight in model.named_parameters():
            group = self.replica_group(name)
            weights[name] = _SumOfGradients.apply(weight, group.name) if group else weight
        return lambda *inputs: functional_call(model, weights, inputs)

    def wait_for_gradients(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients by name, once the sums of those that several ranks hold have arrived."""
        return {name: _collectives.wait_tensor(g) if self.replica_group(name) else g for name, g in gradients.items()}

    def squared_gradient_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """This rank's part of the squared norm of the whole network's gradient."""
        return torch.stack([g.square().sum() / self.replica_count(name) for name, g in gradients.items()]).sum()

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum of x over all ranks; no gradient."""
        if not self.world:
            return x
        return _collectives.wait_tensor(_collectives.all_reduce(x, "sum", self.world.name))


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


def make_parallel(layout: Layout | None, rank: int, world_size: int, device_type: str) -> Parallel:
    """This rank's place; every rank calls it, once torch.distributed is initialised (for a layout other than None)."""
    if layout is None:
        return Parallel()
    each = 1 if layout == "data" else 2
    mesh = init_device_mesh(device_type, (world_size // each, each), mesh_dim_names=("replica", "tower"))

    def group(dimension: str) -> Group | None:
        name, size = mesh.get_group(dimension).group_name, mesh[dimension].size()
        return Group(name, size) if size > 1 else None

    world = torch.distributed.group.WORLD
    assert world
    world_group, fc_replicas = Group(world.group_name, world_size), group("replica")
    return Parallel(
        rank,
        world_size,
        world_group,
        pair=group("tower"),
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


class _SumOfGradients(torch.autograd.Function):
    """The weight unchanged; its gradient all-reduced over a group, not yet waited for."""

    @staticmethod
    def forward(weight: Tensor, group: str) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _collectives.all_reduce(grads[0].contiguous(), "sum", ctx.group), None
