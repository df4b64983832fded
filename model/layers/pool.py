"""Max-pooling, section 3.4: windows of 3 x 3, which overlap, or of 2 x 2, two pixels apart, by ATen's own kernels.

Registered as an operator that the compiler leaves alone: its own backward of overlapping windows scatters with atomic
additions, slower than ATen's and in no fixed order (pytorch pull requests 167318, 195123).
"""

import torch
from torch import Tensor

STRIDE = 2

# Defined piece by piece: an operator of `torch.library.custom_op` imports the compiler when it is first called, which
# takes a process that compiles nothing a second. The tag says, as `custom_op` does, that the operator keeps the
# compiler's rules.
torch.library.define(
    "alexnet::max_pool", "(Tensor x, int size, bool ceil=False) -> (Tensor, Tensor)", tags=torch.Tag.pt2_compliant_tag
)
torch.library.define(
    "alexnet::max_pool_backward",
    "(Tensor grad, Tensor x, Tensor indices, int size, bool ceil=False) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("alexnet::max_pool", "CompositeExplicitAutograd")
@torch.library.register_fake("alexnet::max_pool")
def _(x: Tensor, size: int, ceil: bool = False) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, [size, size], [STRIDE, STRIDE], [0, 0], [1, 1], ceil)


@torch.library.impl("alexnet::max_pool_backward", "CompositeExplicitAutograd")
def _(grad: Tensor, x: Tensor, indices: Tensor, size: int, ceil: bool = False) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward(
        grad, x, [size, size], [STRIDE, STRIDE], [0, 0], [1, 1], ceil, indices
    )


@torch.library.register_fake("alexnet::max_pool_backward")
def _(grad: Tensor, x: Tensor, indices: Tensor, size: int, ceil: bool = False) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    x, ctx.size, ctx.ceil = inputs
    ctx.save_for_backward(x, output[1])


def _backward(ctx, grad, _):
    return torch.ops.alexnet.max_pool_backward(grad, *ctx.saved_tensors, ctx.size, ctx.ceil), None, None


torch.library.register_autograd("alexnet::max_pool", _backward, setup_context=_save)


def max_pool(x: Tensor, size: int = 3, *, ceil: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, C, (H - size) // 2 + 1, (W - size) // 2 + 1).

    ceil: where the windows leave pixels over, one more window takes them, as in the 2012 code: of 24 pixels become 12.
    """
    return torch.ops.alexnet.max_pool(x, size, ceil)[0]
