"""Overlapping max-pooling, section 3.4: 3 x 3 windows, two pixels apart, through ATen's own kernels.

Registered as an operator that the compiler leaves alone: its own backward of overlapping windows scatters with atomic
additions, slower than ATen's and in no fixed order (pytorch pull requests 167318, 195123).
"""

import torch
from torch import Tensor

SIZE, STRIDE = 3, 2


@torch.library.custom_op("alexnet::max_pool", mutates_args=())
def _max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, [SIZE, SIZE], [STRIDE, STRIDE])


@_max_pool.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, [SIZE, SIZE], [STRIDE, STRIDE])


@torch.library.custom_op("alexnet::max_pool_backward", mutates_args=())
def _max_pool_backward(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward(
        grad, x, [SIZE, SIZE], [STRIDE, STRIDE], [0, 0], [1, 1], False, indices
    )


@_max_pool_backward.register_fake
def _(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _backward(ctx, grad, _):
    return _max_pool_backward(grad, *ctx.saved_tensors)


_max_pool.register_autograd(_backward, setup_context=_save)


def max_pool(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, (H - 3) // 2 + 1, (W - 3) // 2 + 1)."""
    return _max_pool(x)[0]
