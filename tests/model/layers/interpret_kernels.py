"""The fused kernels by Triton's interpreter, which TRITON_INTERPRET=1 chooses, against the layers in float64."""

import torch
from torch import Tensor

from model.layers.fused import Pooling, backward_maps, constants_of, forward_maps, pool_by_layers
from model.layers.lrn import LRNConfig

# float32 rounds by 2^-24: some ten operations on a value, and a window's sum of five. The power multiplies by 3/4 or
# less. Relative to the largest value, for a gradient may cancel.
FLOAT32 = 32 * 2**-24

NORMALISED = [
    # channels, height, width, what
    (48, 9, 7, Pooling(before="relu", lrn=LRNConfig())),
    (5, 8, 8, Pooling(lrn=LRNConfig(), after="relu")),
    (20, 4, 9, Pooling(before="tanh", lrn=LRNConfig(size=3, alpha=0.1, beta=0.5, k=1.0))),
    (16, 3, 5, Pooling(lrn=LRNConfig(alpha=0.1), after="tanh")),
    (5, 6, 7, Pooling(before="logistic", lrn=LRNConfig(alpha=0.1), size=2)),  # 0 does not stay 0, beyond its channels
]
PLAIN = [
    (70, 7, 6, Pooling(after="relu")),
    (3, 8, 7, Pooling(before="tanh")),
    (64, 5, 5, Pooling(before="relu")),
    (20, 7, 8, Pooling(after="logistic", size=2)),
]


def random_map(channels: int, height: int, width: int, dtype: torch.dtype, scale: float = 10.0) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, height, width, generator=generator) * scale
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def run(x: Tensor, bias: Tensor, grad_of, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The pooled map, places of maxima, the pooled map's gradient, and the gradients of x and bias."""
    options = constants_of(x.dtype, pooling)
    y, argmax = forward_maps(x, bias, *options)
    grad = grad_of(y)
    return y, argmax, grad, *backward_maps(grad, x, bias, y, argmax, *options)


def random_grad(y: Tensor) -> Tensor:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return grad.contiguous(memory_format=torch.channels_last)


def differs(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def check_float32(channels: int, height: int, width: int, pooling: Pooling) -> None:
    # A hyperbolic tangent of 10 is 1 in float32: a tie, which float64 has not.
    saturates = {"tanh", "logistic"} & {pooling.before, pooling.after}
    x = random_map(channels, height, width, torch.float32, 1.0 if saturates else 10.0)
    bias = torch.randn(channels, generator=torch.Generator().manual_seed(2))
    y, _, grad, x_grad, bias_grad = run(x, bias, random_grad, pooling)
    exact_x, exact_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    exact = pool_by_layers(exact_x + exact_bias[:, None, None], pooling)
    expected = torch.autograd.grad(exact, [exact_x, exact_bias], grad.double())
    assert differs(y, exact.detach()) < FLOAT32, (pooling, differs(y, exact.detach()))
    assert differs(x_grad, expected[0]) < FLOAT32, (pooling, differs(x_grad, expected[0]))
    assert differs(bias_grad, expected[1]) < FLOAT32, (pooling, differs(bias_grad, expected[1]))
    again = run(x, bias, random_grad, pooling)
    assert all(torch.equal(a, b) for a, b in zip(again, (y, _, grad, x_grad, bias_grad), strict=True))


def check_bfloat16(x_dtype: torch.dtype) -> None:
    """Sums in bfloat16 are off by the rounding of their terms; the places of maxima are given, for ties differ."""
    pooling = Pooling(before="relu", lrn=LRNConfig(), sum_dtype=torch.bfloat16)
    x, bias = random_map(48, 9, 9, x_dtype), torch.randn(48, generator=torch.Generator().manual_seed(2))
    y, argmax, grad, x_grad, bias_grad = run(x, bias, random_grad, pooling)
    exact_x, exact_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    a = (exact_x + exact_bias[:, None, None]).relu()
    normalised = pool_windows(normalise(a))
    exact = normalised.gather(-1, argmax.long()[..., None])[..., 0]
    # Each term by 2^-7, for the interpreter cuts bfloat16 off where a GPU rounds (by 2^-8); the share of the sum in the
    # scale and the power leave at most 3/4 of it. Then the output's own.
    bound = 2**-7 * 0.75 + (2**-7 if x_dtype == torch.bfloat16 else 0) + FLOAT32
    assert ((y - exact).abs() <= bound * exact.abs()).all()
    assert ((normalised.amax(-1) - exact) <= 2 * bound * exact.abs()).all()  # the place is a maximum but for rounding
    expected = torch.autograd.grad(exact, [exact_x, exact_bias], grad.double())
    assert differs(x_grad, expected[0]) < 2 * bound, differs(x_grad, expected[0])
    assert differs(bias_grad, expected[1]) < 2 * bound, differs(bias_grad, expected[1])


def normalise(a: Tensor) -> Tensor:
    squares = torch.nn.functional.pad(a.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    return a / (2 + 1e-4 * squares) ** 0.75


def pool_windows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, PH, PW, 9)."""
    return x.unfold(2, 3, 2).unfold(3, 3, 2).flatten(-2)


def check_ties(dtype: torch.dtype) -> None:
    """Of equals the first in the window, as ATen's: exactly, in values, places and gradients."""
    x = random_map(24, 11, 12, dtype, scale=1.5).round()
    zeros = torch.zeros(24)
    y, _, grad, x_grad, _ = run(x, zeros, random_grad, Pooling())
    leaf = x.float().requires_grad_()
    expected = torch.nn.functional.max_pool2d(leaf, 3, 2)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad.float())
    assert torch.equal(y.float(), expected)
    # A pixel has at most four windows; their sum is rounded when stored; the interpreter cuts it off.
    rounding = 2**-7 if dtype == torch.bfloat16 else 2**-22
    torch.testing.assert_close(x_grad.float(), expected_grad, rtol=rounding, atol=2**-22)


def check_nan(before, after) -> None:
    """A picture that is not finite must not become one that is."""
    x = random_map(16, 5, 5, torch.float32)
    x[0, 3, 2, 2] = float("nan")
    lrn = LRNConfig() if before else None
    y, _, _, x_grad, _ = run(x, torch.zeros(16), random_grad, Pooling(before=before, lrn=lrn, after=after))
    assert y[0, 3].isnan().all()  # every window holds the middle
    assert y[1].isfinite().all() and x_grad[1].isfinite().all()


def check_finite_differences() -> None:
    """The gradient along a direction, by central differences of the layers in float64."""
    pooling = Pooling(before="relu", lrn=LRNConfig(alpha=0.1))
    x, bias = random_map(12, 5, 5, torch.float32, scale=3.0), torch.zeros(12)
    _, _, grad, x_grad, _ = run(x, bias, random_grad, pooling)
    direction, step = random_map(12, 5, 5, torch.float64, scale=1.0).flip(1), 1e-6
    ends = [(pool_by_layers(x.double() + s * step * direction, pooling) * grad).sum() for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((x_grad.double() * direction).sum(), slope, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    for case in NORMALISED + PLAIN:
        check_float32(*case)
    for each in (torch.float32, torch.bfloat16):
        check_bfloat16(each)
        check_ties(each)
    for orders in (("relu", None), ("tanh", None), (None, "relu"), (None, "tanh"), (None, "logistic")):
        check_nan(*orders)
    check_finite_differences()
