"""Activation, normalisation and max-pooling of a convolution's output: compiled for CUDA one pass, else by layers.

Layer by layer the compiler moves about 30 maps between memory and processor, forward and backward; `fused_kernels.py`
moves four: forward reads the convolution's output and writes the pooled map with a byte for the place of each maximum,
backward reads them and the pooled gradient and writes one gradient. It gathers, so results are the same in each run.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from model.layers.lrn import LRNConfig, local_response_norm
from model.layers.pool import STRIDE, max_pool

Activation = Literal["relu", "tanh", "logistic"]
PoolSize = Literal[2, 3]

HAS_KERNELS: Final = bool(torch.version.cuda and importlib.util.find_spec("triton"))
TILE = 2048  # numbers of a program's tile: 16 a thread, for which 128 registers are enough; with 32 float32 spills


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """What is computed of a convolution's output x: after(max_pool(lrn(before(x)))), each but the pooling optional."""

    before: Activation | None = None
    """Activation before normalisation: the paper's order."""
    lrn: LRNConfig | None = None
    """Normalisation's constants."""
    sum_dtype: torch.dtype | None = None
    """What `local_response_norm` sums in."""
    after: Activation | None = None
    """Activation after pooling: the 2012 source's order, and what is fewer values for layers without normalisation."""
    size: PoolSize = 3
    """Of the windows, two pixels apart."""


def conv_pool(conv: nn.Conv2d, x: Tensor, pooling: Pooling) -> Tensor:
    """conv(x), activated, normalised and pooled: (B, C, H, W) -> (B, kernels, PH, PW), channels-last."""
    if not runs_fused(x):
        return pool_by_layers(conv(x), pooling)
    assert conv.bias is not None
    return pool_fused(conv._conv_forward(x, conv.weight, None), conv.bias, pooling)


def runs_fused(x: Tensor) -> bool:
    """Whether the kernels take it: in compiled code, which has Triton's compiler and launches on the tensor's GPU."""
    return x.is_cuda and x.dtype != torch.float64 and HAS_KERNELS and torch.compiler.is_compiling()


def pool_by_layers(x: Tensor, pooling: Pooling) -> Tensor:
    """(B, C, H, W) -> (B, C, (H - size) // 2 + 1, (W - size) // 2 + 1), one layer after the other."""
    x = activate(x, pooling.before)
    if pooling.lrn:
        x = local_response_norm(x, pooling.lrn, pooling.sum_dtype)
    return activate(max_pool(x, pooling.size), pooling.after)


def activate(x: Tensor, activation: Activation | None) -> Tensor:
    """The nonlinearity, section 3.1; x itself where there is none."""
    functions = {None: lambda x: x, "relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid}
    return functions[activation](x)


def pool_fused(x: Tensor, bias: Tensor, pooling: Pooling) -> Tensor:
    """`pool_by_layers(x + bias, pooling)` by the kernels, float32 or bfloat16; x + bias is not rounded."""
    return torch.ops.alexnet.norm_pool(x, bias, *constants_of(x.dtype, pooling))[0]


def constants_of(dtype: torch.dtype, pooling: Pooling) -> tuple[list[int], list[float]]:
    """`options` and `numbers` of the kernels, for maps of this type."""
    lrn = pooling.lrn or LRNConfig()
    sum_bfloat16 = (pooling.sum_dtype or dtype) == torch.bfloat16
    kinds = [_KINDS[pooling.before], _KINDS[pooling.after]]
    options = [*kinds, int(pooling.lrn is not None), lrn.size // 2, int(sum_bfloat16), pooling.size]
    return options, [lrn.alpha, lrn.beta, lrn.k]


_KINDS = {None: 0, "relu": 1, "tanh": 2, "logistic": 3}  # as fused_kernels.py numbers them


def forward_maps(x: Tensor, bias: Tensor, options: list[int], numbers: list[float]) -> tuple[Tensor, Tensor]:
    """The pooled maps and the place of each maximum in its window, uint8; x (B, C, H, W).

    options: activation before, activation after, normalise, channels to each side of a window of normalisation, sum in
    bfloat16, size of a window of pooling.
    numbers: alpha, beta and k.
    """
    from model.layers.fused_kernels import pool_forward

    x = x.contiguous(memory_format=torch.channels_last)
    y, argmax = (_empty_pooled(x, dtype, options[5]) for dtype in (x.dtype, torch.uint8))
    pixels, block = tile(x.shape[1], bool(options[2]))
    outputs = y.shape[0] * y.shape[2] * y.shape[3]
    grid = (-(-outputs // pixels), -(-x.shape[1] // block))
    _launchable(pool_forward)[grid](
        x, bias, y, argmax, outputs, x.shape[2], x.shape[3], x.shape[1], **constants(options, numbers),
        PIXELS=pixels, BLOCK=block,
    )  # fmt: skip
    return y, argmax


def backward_maps(
    grad: Tensor, x: Tensor, bias: Tensor, y: Tensor, argmax: Tensor, options: list[int], numbers: list[float]
) -> tuple[Tensor, Tensor]:
    """The gradients of x, of its type, and of the bias, (C,) float32, from that of the pooled maps."""
    from model.layers.fused_kernels import pool_backward

    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    batch, channels, height, width = x.shape
    pixels, block = tile(channels, bool(options[2]))
    inputs = batch * height * width
    grid = (-(-inputs // pixels), -(-channels // block))
    x_grad, parts = torch.empty_like(x), x.new_empty(grid[0], channels, dtype=torch.float32)
    _launchable(pool_backward)[grid](
        grad, x, bias, y, argmax, x_grad, parts, inputs, height, width, channels, **constants(options, numbers),
        PIXELS=pixels, BLOCK=block,
    )  # fmt: skip
    return x_grad, parts.sum(0)


def tile(channels: int, whole: bool) -> tuple[int, int]:
    """Pixels and channels of a program's tile; `whole`: it must hold all channels, for a window may reach any."""
    block = 1 << max(4, (channels - 1).bit_length())
    block = block if whole else min(block, 64)
    return max(1, TILE // block), block


def _empty_pooled(x: Tensor, dtype: torch.dtype, size: int) -> Tensor:
    batch, channels, *sides = x.shape
    height, width = ((side - size) // STRIDE + 1 for side in sides)
    return x.new_empty(batch, height, width, channels, dtype=dtype).permute(0, 3, 1, 2)


def constants(options: list[int], numbers: list[float]) -> dict[str, Any]:
    """The kernels' compile-time arguments, by name."""
    names = ("BEFORE", "AFTER", "NORMALISE", "REACH", "SUM_BFLOAT16", "WINDOW", "ALPHA", "BETA", "K")
    return dict(zip(names, [*options, *numbers], strict=True))


def _launchable(kernel: Any) -> Any:
    """The kernel, as the compiler takes it into its own code; an interpreted one, which tests use, stays as it is."""
    from triton.runtime.jit import JITFunction

    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, y, argmax = ctx.saved_tensors
    x_grad, bias_grad = torch.ops.alexnet.norm_pool_backward(grad, x, bias, y, argmax, ctx.options, ctx.numbers)
    return x_grad, bias_grad.to(bias.dtype), None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, bias, ctx.options, ctx.numbers = inputs
    ctx.save_for_backward(x, bias, *output)


if HAS_KERNELS:  # without Triton torch warns of each
    _norm_pool: Any = torch.library.triton_op("alexnet::norm_pool", forward_maps, mutates_args=())
    _norm_pool.register_autograd(_backward, setup_context=_save)
    torch.library.triton_op("alexnet::norm_pool_backward", backward_maps, mutates_args=())
