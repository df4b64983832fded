"""Activation, normalisation and pooling alone, by whatever kernels the device has: are they right, and how fast?

Tolerances of outputs and gradients, the difference's norm by the norm: of values whose maxima rounding leaves the same.
- float32 0.00001: some ten roundings of 2^-24.
- bfloat16 0.02: some four roundings of 2^-8.
"""

import itertools
from typing import Final, Literal
from unittest import mock

import torch
from torch import Tensor, nn

from model.alexnet import Precision
from model.layers.fused import Pooling, conv_pool
from model.layers.lrn import LRNConfig

from .context import Context, Failed, Figure, Found, seconds_each

Order = Literal["paper", "source", "unnormalised"]
Activation = Literal["relu", "tanh"]
TOLERANCE: Final[dict[Precision, float]] = {"float32": 1e-5, "bfloat16": 0.02}
ORDERS: Final[tuple[Order, ...]] = ("paper", "source", "unnormalised")
ACTIVATIONS: Final[tuple[Activation, ...]] = ("relu", "tanh")
CHANNELS: Final = (5, 48, 64, 128, 192, 256)  # towers' and torchvision's, and few


class BiasAlone(nn.Conv2d):
    """A convolution that adds its bias, or nothing where it is not asked to, and leaves the maps as they are."""

    def __init__(self, bias: Tensor):
        super().__init__(len(bias), len(bias), 1)
        self.bias = nn.Parameter(bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return input if bias is None else (input + bias[:, None, None]).to(input.dtype)


def pooling_of(order: Order, activation: Activation, dtype: torch.dtype) -> Pooling:
    """As the paper's tower, the 2012 source's, or a layer without normalisation has it."""
    sum_dtype = torch.bfloat16 if dtype == torch.bfloat16 else None
    lrn = None if order == "unnormalised" else LRNConfig()
    if order == "paper":
        return Pooling(before=activation, lrn=lrn, sum_dtype=sum_dtype)
    return Pooling(lrn=lrn, sum_dtype=sum_dtype, after=activation)


def maps(batch_size: int, channels: int, side: int) -> Tensor:
    """(B, C, H, W) float32, odd sixteenths below 1: all of a pooling window differ by an eighth or more."""
    generator = torch.Generator().manual_seed(channels + side)
    levels = torch.rand(batch_size, channels, 16, generator=generator).argsort(dim=2)
    place = torch.arange(side) % 4
    x = levels[:, :, 4 * place[:, None] + place]  # (B, C, H, W)
    return ((2 * x - 15) / 16).contiguous(memory_format=torch.channels_last)


def bias_of(channels: int) -> Tensor:
    """Sixteenths up to a quarter, which bfloat16 adds to the maps without rounding."""
    return torch.arange(channels) % 9 / 16 - 0.25


def parity(context: Context) -> Found:
    """Outputs and gradients against ATen's in float64 on the CPU."""
    torch.set_num_threads(1)  # the reference's maps are too small for more
    worst: dict[str, float] = {}
    ways = list(itertools.product(TOLERANCE, ORDERS, ACTIVATIONS, CHANNELS, (15, 16)))
    for precision, order, activation, channels, side in ways:
        error = error_of(context, precision, order, activation, channels, side)
        worst[precision] = max(worst.get(precision, 0), error)
        if not error <= TOLERANCE[precision]:
            what = f"{precision}, {order}, {activation}, {channels} channels, side {side}"
            raise Failed(f"{what}: within {error:.2g}, expected {TOLERANCE[precision]}")
    return Found(f"{len(ways)} ways: " + ", ".join(f"{name} within {error:.2g}" for name, error in worst.items()))


def error_of(
    context: Context, precision: Precision, order: Order, activation: Activation, channels: int, side: int
) -> float:
    """The greatest of the errors of the output, the maps' gradient and the bias's."""
    dtype, x, bias = getattr(torch, precision), maps(3, channels, side), bias_of(channels)
    expected = outputs(x.double(), bias.double(), pooling_of(order, activation, torch.float64))
    found = outputs(x.to(context.device, dtype), bias.to(context.device), pooling_of(order, activation, dtype))
    return max(relative(a, b) for a, b in zip(found, expected, strict=True))


def outputs(x: Tensor, bias: Tensor, pooling: Pooling) -> list[Tensor]:
    """The pooled maps, the maps' gradient and the bias's, for a fixed gradient of the pooled maps."""
    layer = BiasAlone(bias)
    # Not compiled, which would take minutes for so many ways; the kernels are the same.
    with mock.patch("model.layers.fused.runs_fused", lambda x: x.is_cuda and x.dtype != torch.float64):
        y = conv_pool(layer, x.requires_grad_(), pooling)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    parameters = [parameter for name, parameter in layer.named_parameters() if name == "bias"]
    return [y, *torch.autograd.grad(y, [x, *parameters], weights.to(y))]


def relative(found: Tensor, expected: Tensor) -> float:
    """The difference's norm by the norm."""
    return ((found.detach().cpu().double() - expected).norm() / expected.norm()).item()


def bandwidth(context: Context) -> Found:
    """Of conv1's maps: bytes that must be moved, by the time that the compiled kernels take."""
    precisions: tuple[Precision, ...] = ("bfloat16", "float32") if context.cuda else ("float32",)
    orders = ORDERS if context.cuda else ORDERS[:1]
    ways = itertools.product(precisions, orders)
    return Found("of the bytes that must be moved", [each for way in ways for each in _bandwidths(context, *way)])


def _bandwidths(context: Context, precision: Precision, order: Order) -> list[Figure]:
    """Forward alone, and with backward."""
    batch_size, side = context.batch_sizes[-1], 55 if context.cuda else 15
    dtype = getattr(torch, precision)
    layer = BiasAlone(bias_of(48)).to(context.device)
    x = maps(batch_size, 48, side).to(context.device, dtype).requires_grad_()
    pooling = pooling_of(order, "relu", dtype)
    pool = torch.compile(lambda x: conv_pool(layer, x, pooling), fullgraph=True, dynamic=False)
    with torch.no_grad():
        gradient = torch.ones_like(pool(x))

    @torch.no_grad()
    def forward() -> None:
        pool(x)

    def both() -> None:
        torch.autograd.grad(pool(x), x, gradient)

    # Forward reads the maps and writes the pooled ones; backward reads the maps and the pooled gradient, and writes the
    # maps' gradient.
    whole, pooled = x.numel() * dtype.itemsize, gradient.numel() * dtype.itemsize
    name = f"{order}, {precision}, batch {batch_size}"
    return [
        Figure(f"{what}, {name}", "GB/s", [moved / seconds / 1e9 for seconds in seconds_each(context, work)])
        for what, work, moved in (("forward", forward, whole + pooled), ("both ways", both, 3 * whole + 2 * pooled))
    ]
