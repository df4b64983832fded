"""Triton kernels of activation, normalisation and max-pooling in one pass; `fused.py` calls them.

Maps are (B, H, W, C) in memory, which is what channels-last means. A program takes a tile of pixels with all their
channels (or, without normalisation, a block of them), computes in float32 and rounds where it stores.
"""

from typing import Final

import triton
import triton.language as tl

NONE: Final = tl.constexpr(0)
RELU: Final = tl.constexpr(1)
TANH: Final = tl.constexpr(2)
LOGISTIC: Final = tl.constexpr(3)


@triton.jit
def _activate(x, kind: tl.constexpr):
    if kind == RELU:
        x = tl.where(x < 0, 0.0, x)  # keeps NaN, as ATen does
    if kind == TANH:
        # By the exponential of a number that is not positive, so that nothing overflows; NaN stays.
        small = tl.exp(-2.0 * tl.abs(x))
        size = (1.0 - small) / (1.0 + small)
        x = tl.where(x < 0, -size, size)
    if kind == LOGISTIC:
        x = 1.0 / (1.0 + tl.exp(-x))
    return x


@triton.jit
def _activation_slope(y, kind: tl.constexpr):
    """The activation's derivative, from its value."""
    slope = tl.full(y.shape, 1.0, tl.float32)
    if kind == RELU:
        slope = tl.where(y <= 0, 0.0, 1.0)
    if kind == TANH:
        slope = 1.0 - y * y
    if kind == LOGISTIC:
        slope = y * (1.0 - y)
    return slope


@triton.jit
def _window_sum(x, REACH: tl.constexpr, SUM_BFLOAT16: tl.constexpr):
    """Each channel's sum over the 2 REACH + 1 channels about it, (pixels, channels); what lies beyond must be 0."""
    if SUM_BFLOAT16:
        x = x.to(tl.bfloat16).to(tl.float32)
    total = x
    channel = tl.broadcast_to(tl.arange(0, x.shape[1])[None, :], x.shape[0], x.shape[1])
    for step in tl.static_range(1, REACH + 1):  # pyright: ignore[reportGeneralTypeIssues]  # unrolled by Triton
        # A shift that wraps around the tile, less what wrapped.
        lower = tl.gather(x, (channel - step) & (x.shape[1] - 1), axis=1)
        upper = tl.gather(x, (channel + step) & (x.shape[1] - 1), axis=1)
        total += tl.where(channel >= step, lower, 0.0) + tl.where(channel < x.shape[1] - step, upper, 0.0)
    return total


@triton.jit
def _inverse_powers(scale, BETA: tl.constexpr):
    """scale^-BETA and scale^-1; for the paper's 3/4 by two square roots."""
    if BETA == 0.75:
        root = tl.rsqrt(scale)
        return root * tl.sqrt(root), root * root
    else:
        return tl.exp2(-BETA * tl.log2(scale)), 1.0 / scale


@triton.jit
def pool_forward(
    x_ptr, bias_ptr, y_ptr, argmax_ptr, outputs, HEIGHT, WIDTH, CHANNELS,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, NORMALISE: tl.constexpr,
    REACH: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, SUM_BFLOAT16: tl.constexpr,
    WINDOW: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y and argmax (B, PH, PW, C) of x + bias; argmax: the place in its window, row by row. outputs: B PH PW."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pooled_width, pooled_height = (WIDTH - WINDOW) // 2 + 1, (HEIGHT - WINDOW) // 2 + 1
    column, row = pixel % pooled_width, pixel // pooled_width % pooled_height
    corner = (pixel // (pooled_width * pooled_height) * HEIGHT + 2 * row) * WIDTH + 2 * column
    inside = (pixel < outputs)[:, None] & (channel < CHANNELS)[None, :]
    bias = tl.load(bias_ptr + channel, channel < CHANNELS, 0.0).to(tl.float32)[None, :]

    best = tl.full((PIXELS, BLOCK), -float("inf"), tl.float32)
    argmax = tl.zeros((PIXELS, BLOCK), tl.int32)
    for place in range(WINDOW * WINDOW):
        row_in, column_in = place // WINDOW, place % WINDOW  # pyright: ignore[reportOperatorIssue]  # constants are ints
        at = (corner + row_in * WIDTH + column_in)[:, None] * CHANNELS + channel[None, :]
        value = _activate(tl.load(x_ptr + at, inside, 0.0).to(tl.float32) + bias, BEFORE)
        if NORMALISE:
            if BEFORE == LOGISTIC:
                value = tl.where(inside, value, 0.0)
            scale = K + ALPHA * _window_sum(value * value, REACH, SUM_BFLOAT16)
            value = value * _inverse_powers(scale, BETA)[0]
        # Rounded first, so that ties are those of the type; the first of equals stays, and NaN wins: ATen's rules.
        value = value.to(x_ptr.dtype.element_ty).to(tl.float32)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        argmax = tl.where(better, place, argmax)
    out = pixel[:, None] * CHANNELS + channel[None, :]
    tl.store(y_ptr + out, _activate(best, AFTER).to(y_ptr.dtype.element_ty), inside)
    tl.store(argmax_ptr + out, argmax.to(tl.uint8), inside)


@triton.jit
def pool_backward(
    grad_ptr, x_ptr, bias_ptr, y_ptr, argmax_ptr, x_grad_ptr, partial_ptr, inputs, HEIGHT, WIDTH, CHANNELS,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, NORMALISE: tl.constexpr,
    REACH: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, SUM_BFLOAT16: tl.constexpr,
    WINDOW: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_grad (B, H, W, C), and the bias gradient's parts (programs, C) float32, from grad (B, PH, PW, C).

    Each pixel gathers from the windows that hold it, at most two by two, so that the order of additions is fixed.
    """
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pooled_width, pooled_height = (WIDTH - WINDOW) // 2 + 1, (HEIGHT - WINDOW) // 2 + 1
    column, row = pixel % WIDTH, pixel // WIDTH % HEIGHT
    first_pooled = pixel // (WIDTH * HEIGHT) * pooled_height
    inside = (pixel < inputs)[:, None] & (channel < CHANNELS)[None, :]

    grad = tl.zeros((PIXELS, BLOCK), tl.float32)
    for window in range(4):
        pooled_row, pooled_column = row // 2 - window // 2, column // 2 - window % 2
        place = (row - 2 * pooled_row) * WINDOW + column - 2 * pooled_column
        there = (pooled_row >= 0) & (pooled_row < pooled_height) & (row - 2 * pooled_row < WINDOW)
        there = there & (pooled_column >= 0) & (pooled_column < pooled_width) & (column - 2 * pooled_column < WINDOW)
        mask = inside & there[:, None]
        at = ((first_pooled + pooled_row) * pooled_width + pooled_column)[:, None] * CHANNELS + channel[None, :]
        part = tl.load(grad_ptr + at, mask, 0.0).to(tl.float32)
        if AFTER != NONE:
            part = part * _activation_slope(tl.load(y_ptr + at, mask, 0.0).to(tl.float32), AFTER)
        chosen = tl.load(argmax_ptr + at, mask, 255).to(tl.int32) == place[:, None]
        grad += tl.where(chosen, part, 0.0)

    at = pixel[:, None] * CHANNELS + channel[None, :]
    if NORMALISE or BEFORE != NONE:
        bias = tl.load(bias_ptr + channel, channel < CHANNELS, 0.0).to(tl.float32)[None, :]
        value = _activate(tl.load(x_ptr + at, inside, 0.0).to(tl.float32) + bias, BEFORE)
        if NORMALISE:
            if BEFORE == LOGISTIC:
                value = tl.where(inside, value, 0.0)
            # d b_j / d a_i = [i = j] scale_j^-beta - 2 alpha beta a_i a_j scale_j^-(beta+1) for i in j's window
            power, inverse = _inverse_powers(K + ALPHA * _window_sum(value * value, REACH, SUM_BFLOAT16), BETA)
            spread = _window_sum(grad * value * power * inverse, REACH, SUM_BFLOAT16)
            grad = grad * power - 2.0 * ALPHA * BETA * value * spread
        grad = grad * _activation_slope(value, BEFORE)
    tl.store(x_grad_ptr + at, grad.to(x_grad_ptr.dtype.element_ty), inside)
    parts = tl.sum(tl.where(inside, grad, 0.0), axis=0)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * CHANNELS + channel, parts, channel < CHANNELS)
