"""Local response normalisation across channels, section 3.3: b = a / (k + alpha * sum over n neighbours of a^2)^beta.

The window sum adds n shifted views of a copy with zeros around each pixel's channels, so that no channel is a special
case: the compiler makes one vectorised pass of the adds and of everything pointwise about them, one pass forward and
one backward, instead of the padded average pooling of `torch.nn.functional.local_response_norm` (about 15 passes, and
an alpha that is divided by n: the paper's 1e-4 is 5e-4 there).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LRNConfig:
    """Constants of section 3.3."""

    size: int = 5
    """n: channels in a window, the channel itself in the middle."""
    alpha: float = 1e-4
    """Factor of the plain sum of squares; the 2012 source divides it by n, so its value is 2e-5."""
    beta: float = 0.75
    """Exponent."""
    k: float = 2.0
    """Added to the sum."""


def _window_sum(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Sum over each channel's window, (B, C, H, W) channels-last; terms in `dtype`, added in float32 or better."""
    channels, reach = x.shape[1], size // 2
    terms = x.permute(0, 2, 3, 1).to(dtype)  # (B, H, W, C): for channels-last pictures a view
    # Concatenated, because the compiler stores the result of `cat`; a `pad` it would mask again at each of n reads.
    zeros = terms.new_zeros(*terms.shape[:3], reach)
    terms = torch.cat([zeros, terms, zeros], dim=3)  # (B, H, W, reach + C + reach)
    total = _accurate(terms[..., :channels])
    for first in range(1, 2 * reach + 1):
        total = total + terms[..., first : first + channels]
    return total.to(dtype).permute(0, 3, 1, 2)


def _map_window_sum(x: Tensor, size: int) -> Tensor:
    """Sum over size x size pixels of the same map, each pixel in the middle, (B, C, H, W)."""
    height, width = x.shape[2:]
    x = F.pad(_accurate(x), [size // 2] * 4)
    x = sum((x[:, :, top : top + height] for top in range(1, size)), start=x[:, :, :height])
    return sum((x[..., left : left + width] for left in range(1, size)), start=x[..., :width])


def _accurate(x: Tensor) -> Tensor:
    """At least float32: bfloat16 holds the window sum well enough, but not k + alpha * sum."""
    return x if x.dtype == torch.float64 else x.float()


def _inverse_powers(scale: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """scale^-beta and scale^-1; for the paper's 3/4 by two square roots, which vectorise where pow does not."""
    if beta == 0.75:
        root = scale.rsqrt()
        return root * root.sqrt(), root * root
    return scale**-beta, 1 / scale


class _LRN(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, config: LRNConfig, dtype: torch.dtype, in_maps: bool) -> tuple[Tensor, Tensor]:
        total = _map_window_sum(x * x, config.size) if in_maps else _window_sum(x * x, config.size, dtype)
        scale = config.k + config.alpha * _accurate(total)
        return (x * _inverse_powers(scale, config.beta)[0]).to(x.dtype), total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.config, ctx.dtype, ctx.in_maps = inputs
        ctx.save_for_backward(x, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0]
        x, total = ctx.saved_tensors
        config: LRNConfig = ctx.config
        scale = config.k + config.alpha * _accurate(total)
        power, inverse = _inverse_powers(scale, config.beta)
        # d b_j / d a_i = [i = j] scale_j^-beta - 2 alpha beta a_i a_j scale_j^-(beta+1) for i in j's window
        part = grad * x * power * inverse
        spread = _map_window_sum(part, config.size) if ctx.in_maps else _window_sum(part, config.size, ctx.dtype)
        return (grad * power - 2 * config.alpha * config.beta * x * spread).to(x.dtype), None, None, None


def local_response_norm(x: Tensor, config: LRNConfig, sum_dtype: torch.dtype | None = None) -> Tensor:
    """Normalise (B, C, H, W) across channels; the window stays inside x, so a tower's channels are normalised alone.

    The squares may be summed in a lower precision than x has, `sum_dtype`: alpha makes the sum a small part of the
    scale, so that rounding it to bfloat16 changes b by 0.6% at most, and far less where the sum is small beside k.
    """
    return _LRN.apply(x, config, sum_dtype or x.dtype, False)[0]


def response_norm_in_maps(x: Tensor, config: LRNConfig) -> Tensor:
    """Normalise (B, C, H, W) by size x size neighbours in the same map, in place of neighbouring channels.

    It is the older of the 2012 code's two normalisations (rnorm; the paper's is cmrnorm).
    """
    return _LRN.apply(x, config, x.dtype, True)[0]
