"""Local response normalisation against the formula of section 3.3 written as loops, and against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.lrn import LRNConfig, local_response_norm


def picture(channels: int, dtype: torch.dtype, scale: float = 20.0) -> Tensor:
    x = torch.randn(2, channels, 5, 4, generator=torch.Generator().manual_seed(channels)).to(dtype) * scale
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("channels", [3, 4, 48])
def test_it_is_the_papers_formula(channels: int) -> None:
    x = picture(channels, torch.float64)
    expected = torch.empty_like(x)
    for i in range(channels):
        window = range(max(0, i - 2), min(channels - 1, i + 2) + 1)
        total = sum((x[:, j] ** 2 for j in window), start=torch.zeros(()))
        expected[:, i] = x[:, i] / (2 + 1e-4 * total) ** 0.75
    torch.testing.assert_close(local_response_norm(x, LRNConfig()), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("config", [LRNConfig(), LRNConfig(alpha=2e-5), LRNConfig(size=3, beta=0.5, k=1.0, alpha=0.1)])
def test_value_and_gradient_equal_torchs(config: LRNConfig) -> None:
    x = picture(48, torch.float64)
    ours = local_response_norm(x, config)
    # torch divides alpha by the window's size
    theirs = F.local_response_norm(x, config.size, config.alpha * config.size, config.beta, config.k)
    weight = torch.randn(ours.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    (ours_grad,) = torch.autograd.grad((ours * weight).sum(), x)
    (theirs_grad,) = torch.autograd.grad((theirs * weight).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-11, atol=1e-13)


def test_gradient_agrees_with_finite_differences() -> None:
    x = picture(6, torch.float64, scale=3.0)
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, LRNConfig(alpha=0.1)), x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.008)])
def test_lower_precisions_lose_only_their_own_rounding(dtype: torch.dtype, tolerance: float) -> None:
    # Two units in the last place: bfloat16 rounds the squares and their sum, which count for little beside k, and b.
    x = picture(48, dtype)
    exact = local_response_norm(x.detach().double(), LRNConfig())
    torch.testing.assert_close(local_response_norm(x, LRNConfig()).double(), exact, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("scale", [10.0, 300.0])
def test_a_sum_in_bfloat16_errs_by_no_more_than_its_roundings(scale: float) -> None:
    x = picture(48, torch.float32, scale)
    exact, rounded = local_response_norm(x, LRNConfig()), local_response_norm(x, LRNConfig(), torch.bfloat16)
    assert rounded.dtype == torch.float32
    # The terms and their sum are each rounded by 2^-8 at most, which the power takes to this share of b.
    share = 1e-4 * 5 * x.detach().square().max() / (2 + 1e-4 * 5 * x.detach().square().max())
    tolerance = 1.05 * 0.75 * share.item() * 2**-7
    torch.testing.assert_close(rounded, exact, rtol=tolerance, atol=0)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (exact, rounded)]
    assert (grads[1] - grads[0]).norm() < 3 * tolerance * grads[0].norm()
