"""conv1 kernels as one picture, and how oriented and coloured each is."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.filters import colour_index, filter_grid, filters_picture, orientation_index

SIDE = 11
GREY = (1.0, 1.0, 1.0)
PLACES = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2  # pixels from the middle
DOWN, RIGHT = torch.meshgrid(PLACES, PLACES, indexing="ij")


def gratings(degrees: Tensor, period: float, envelope: float, colour: tuple[float, float, float] = GREY) -> Tensor:
    """(n,) directions -> (n, 3, 11, 11) gratings under a round Gaussian, whose own directions are all alike."""
    angle = torch.deg2rad(degrees)[:, None, None]
    along = RIGHT * angle.cos() + DOWN * angle.sin()
    waves = torch.cos(2 * math.pi * along / period + 1) * torch.exp(-(DOWN**2 + RIGHT**2) / (2 * envelope**2))
    return waves[:, None] * torch.tensor(colour)[:, None, None]


def noise(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_filters_keep_their_places_and_fill_their_range() -> None:
    kernels = torch.zeros(5, 3, 2, 2)
    kernels[4, 0, 0, 1] = 1.0  # red, upper right
    grid = filter_grid(kernels, columns=3, enlarge=1)
    assert grid.shape == (2 * 3 + 1, 3 * 3 + 1, 3)
    assert grid[4, 5].tolist() == [255, 0, 0] and grid[4, 4].tolist() == [0, 0, 0]
    assert (grid[0] == 255).all() and (grid[3] == 255).all()
    assert filter_grid(kernels, columns=3, enlarge=4).shape == (28, 40, 3)
    assert filters_picture([kernels, kernels], columns=3, enlarge=1).shape == (15, 10, 3)


@pytest.mark.parametrize("colour", [GREY, (1.0, -1.0, 0.0), (0.0, 0.0, 1.0)])
def test_a_grating_is_oriented_whatever_its_direction_and_colour(colour: tuple[float, float, float]) -> None:
    index = orientation_index(gratings(torch.arange(0.0, 180.0, 7.5), 4, 2.5, colour))
    assert index.min() > 0.92
    assert index.max() - index.min() < 0.005  # what the square window cuts off the Gaussian


def test_the_longer_a_grating_the_more_it_is_oriented() -> None:
    index = torch.cat([orientation_index(gratings(torch.tensor([20.0]), 3, envelope)) for envelope in (0.5, 1, 2, 3)])
    assert (index.diff() > 0).all() and index[-1] > 0.95


@pytest.mark.parametrize("width", [0.3, 1.0, 2.0, 5.0, 1e9])
def test_a_blob_has_no_orientation(width: float) -> None:
    blob = torch.exp(-(DOWN**2 + RIGHT**2) / (2 * width**2)).expand(1, 3, SIDE, SIDE)
    assert orientation_index(blob) < 1e-12  # float64's rounding; all widths but 1e9, which is a square, are round


def test_a_kernels_quarter_turns_and_mirror_images_are_as_oriented() -> None:
    kernels = noise(20)
    index = orientation_index(kernels)
    for turned in (kernels.rot90(1, (2, 3)), kernels.flip(2), kernels.flip(3), kernels.mT, kernels.flip(1), -kernels):
        torch.testing.assert_close(orientation_index(turned), index, rtol=1e-9, atol=1e-12)  # the sums' order


def test_the_orientation_index_is_that_of_the_responses_to_gratings() -> None:
    """Ringach's formula, on the energy of responses to gratings of 72 directions and 60 periods."""
    kernels = torch.cat([noise(4).double(), gratings(torch.tensor([10.0, 75.0]), 5, 1.5)])
    directions = torch.arange(72) * math.pi / 72
    frequencies = (torch.arange(60) + 0.5) / 120  # cycles a pixel
    along = RIGHT * directions.cos()[:, None, None] + DOWN * directions.sin()[:, None, None]
    phases = 2 * math.pi * frequencies[:, None, None, None] * along  # (60, 72, 11, 11)
    even, odd = (torch.einsum("ncij,fdij->nfdc", kernels, wave) for wave in (phases.cos(), phases.sin()))
    energy = (even**2 + odd**2).sum(3)  # (n, 60, 72)
    rate = (energy * frequencies[:, None]).sum(1)  # a ring of the plane is as long as its frequency
    mean = (rate * torch.exp(2j * directions)).sum(1) / rate.sum(1)
    torch.testing.assert_close(orientation_index(kernels), mean.abs(), rtol=0, atol=0.01)  # square grid against rings


@pytest.mark.parametrize(
    ("colour", "index"),
    [(GREY, 0), ((1.0, -1.0, 0.0), 1), ((-1.0, -1.0, 2.0), 1), ((1.0, 0.0, 0.0), 2 / 3), ((1.0, 1.0, 0.0), 1 / 3)],
)
def test_the_colour_index_is_the_share_that_is_not_grey(colour: tuple[float, float, float], index: float) -> None:
    shares = colour_index(gratings(torch.tensor([0.0, 30.0]), 4, 2.5, colour))
    assert shares.tolist() == pytest.approx([index] * 2, abs=1e-12)


def test_energies_add_up() -> None:
    """A pixel of luminance and one of colour: a kernel's index is not the mean of its pixels'."""
    kernel = torch.zeros(1, 3, SIDE, SIDE)
    kernel[0, :, 0, 0] = torch.tensor([2.0, 2.0, 2.0])  # energy 12
    kernel[0, :, 5, 5] = torch.tensor([1.0, 0.0, -1.0])  # energy 2
    assert colour_index(kernel).item() == pytest.approx(2 / 14)


def test_white_noise_is_two_thirds_colour() -> None:
    kernels = noise(2000)
    assert colour_index(kernels).mean().item() == pytest.approx(2 / 3, abs=0.005)  # 4 standard errors: 0.003
    assert orientation_index(kernels).mean().item() == pytest.approx(0.066, abs=0.005)  # 4 standard errors: 0.003


@pytest.mark.parametrize("index", [orientation_index, colour_index])
def test_an_index_does_not_depend_on_scale_and_a_kernel_without_one_is_nan(index: Callable[[Tensor], Tensor]) -> None:
    kernels = noise(6)
    sound = index(kernels)
    assert ((sound >= 0) & (sound <= 1)).all()
    for scale in (1e-25, 1e30):  # whose squares float32 does not hold
        torch.testing.assert_close(index(kernels * scale), sound, rtol=1e-6, atol=1e-7)  # float32's rounding
    kernels[1] = 0
    kernels[3, 0, 2, 2] = math.nan
    kernels[4, 1, 0, 0] = math.inf
    found = index(kernels)
    assert found.isnan().tolist() == [False, True, False, True, True, False]
    assert torch.equal(found[[0, 2, 5]], sound[[0, 2, 5]])
