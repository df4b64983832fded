"""What is drawn for a position: golden values, ranges, distributions, and the arithmetic written out.

Of the paper's crop, mirror and colour shift by both recipes; of resized crops against torchvision's own code.
"""

import math
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig, augment_parameters, jitter_draws, region_draws, regions
from pipeline.manifest import ColourStatistics
from pipeline.randomness import AUGMENT, RESIZED_CROP, random_words, uniform

ROTATION = np.linalg.qr(np.arange(9).reshape(3, 3) + np.eye(3))[0]
COLOUR = ColourStatistics(
    mean=(120.0, 110.0, 100.0),
    eigenvalues=(14835.0, 1376.0, 388.0),
    eigenvectors=tuple(tuple(map(float, row)) for row in ROTATION),  # type: ignore[arg-type]
    standard_deviations=(121.8, 37.1, 19.7),
)


PAPER = AugmentConfig()


def drawn(config: AugmentConfig = PAPER, first: int = 0, count: int = 2000, samples: int = 1000):
    return augment_parameters(config, COLOUR, seed=4, crop_margin=32, samples=samples, first=first, count=count)


def test_draws_depend_on_position_alone() -> None:
    whole, part = drawn(), drawn(first=700, count=55)
    for all_rows, some in zip(whole, part, strict=True):
        assert np.array_equal(all_rows[700:755], some)


def test_crops_are_uniform_over_the_33_offsets_and_half_are_mirrored() -> None:
    draws = drawn(count=33_000)
    for axis in (0, 1):
        counts = np.bincount(draws.crop[:, axis], minlength=33)
        assert len(counts) == 33
        assert ((counts - 1000) ** 2 / 1000).sum() < 62.5  # chi-squared, 32 degrees of freedom, p = 0.999
    assert abs(draws.mirror.mean() - 0.5) < 0.009
    assert np.abs(np.corrcoef(draws.crop.T) - np.eye(2)).max() < 0.02


def reference_alpha(first: int, count: int) -> np.ndarray:
    """Box-Muller with Python's own floats, from the same raw words."""
    rows = []
    for a, b, c, d in random_words(4, AUGMENT, first, count, 8)[:, 3:7].tolist():
        radii = [np.sqrt(-2 * np.log(1 - (word >> 11) / 2**53)) for word in (a, c)]
        angles = [2 * np.pi * (word >> 11) / 2**53 for word in (b, d)]
        first_two = [radii[0] * np.cos(angles[0]), radii[1] * np.cos(angles[1])]
        rows.append([*first_two, radii[0] * np.sin(angles[0])])
    return 0.1 * np.array(rows)


def test_the_papers_shift_is_alpha_times_eigenvalue_on_unit_values() -> None:
    draws = drawn(count=64)
    on_unit_values = (reference_alpha(0, 64) * np.array(COLOUR.eigenvalues) / 255**2) @ ROTATION.T
    np.testing.assert_allclose(draws.shift, on_unit_values * 255, rtol=1e-6, atol=1e-6)  # float32 of float64
    assert (draws.scale == 1).all()


def test_the_sources_shift_is_alpha_times_deviation_divided_by_1_1_until_epoch_67() -> None:
    config = AugmentConfig(colour="deviations", colour_epochs=67)
    last = 67 * 1000
    draws = augment_parameters(config, COLOUR, seed=4, crop_margin=32, samples=1000, first=last - 8, count=16)
    expected = (reference_alpha(last - 8, 8) * np.array(COLOUR.standard_deviations)) @ ROTATION.T
    np.testing.assert_allclose(draws.shift[:8], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(draws.scale[:8], 1 / 1.1, rtol=1e-7)
    assert (draws.shift[8:] == 0).all() and (draws.scale[8:] == 1).all()


def test_switches_change_nothing_else() -> None:
    full, plain = drawn(), drawn(AugmentConfig(mirror=False, colour="off"))
    assert np.array_equal(full.crop, plain.crop)
    assert not plain.mirror.any() and not plain.shift.any() and (plain.scale == 1).all()


def test_centre_crops_change_nothing_else() -> None:
    full, centre = drawn(), drawn(AugmentConfig(crop="centre"))
    assert (centre.crop == 16).all()  # of 33 offsets
    assert all(np.array_equal(*pair) for pair in zip(full[1:], centre[1:], strict=True))


def test_wrong_options_say_what_is_expected() -> None:
    with pytest.raises(InputError, match=r"colour_std is -1.*expected at least 0"):
        replace(AugmentConfig(), colour_std=-1)


RESIZED = AugmentConfig(crop="resized")
SIZES = np.array([(256, 256), (375, 500), (500, 333), (20, 400), (400, 20), (1, 1), (3, 2)])
# Also regions that seldom fit, so that later tries and the central one are taken.
RANGES = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.7, 1.0), (0.2, 6.0)), ((0.9, 1.0), (2.0, 3.0))]
GOLDEN_REGIONS = [[14, 3, 242, 185], [25, 6, 197, 206], [84, 91, 169, 132]]
GOLDEN_JITTER = [[1.0261908, 1.2976248, 0.8658088, -24.100368], [0.6752814, 0.9041026, 0.8194799, -8.4683647]]


class Torch:
    """torch as `RandomResizedCrop.get_params` uses it, which draws these numbers of [0, 1)."""

    tensor, log, exp = torch.tensor, staticmethod(torch.log), staticmethod(torch.exp)

    def __init__(self, tries: list[float], place: list[float]):
        self.tries, self.place = iter(tries), iter(place)

    def empty(self, _: int) -> Any:
        drawn = mock.Mock()
        drawn.uniform_ = lambda low, high: torch.tensor([low + (high - low) * next(self.tries)], dtype=torch.float64)
        return drawn

    def randint(self, low: int, high: int, size: tuple[int]) -> torch.Tensor:
        return torch.tensor([low + int(next(self.place) * (high - low))])


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """torchvision's file of transforms."""
    # A wheel for CUDA has operators that do not load beside a torch for the CPU, and registering their shapes fails
    # there. No transform needs them.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    return pytest.importorskip("torchvision.transforms.transforms")


@pytest.mark.parametrize(("area", "aspect"), RANGES)
def test_regions_are_those_of_torchvision_given_the_same_numbers(peer: ModuleType, area: Any, aspect: Any) -> None:
    """Its logarithms are float32, which no draw here is near enough to the middle of two pixels to show."""
    config, count = replace(RESIZED, area=area, aspect=aspect), 20 * len(SIZES)
    sizes = np.tile(SIZES, (20, 1))
    draws = region_draws(config, seed=4, first=11, count=count)
    found = regions(draws, sizes, config.aspect)
    numbers = uniform(random_words(4, RESIZED_CROP, 11, count, 22)).tolist()
    for (height, width), row, region in zip(sizes, numbers, found, strict=True):
        with mock.patch.object(peer, "torch", Torch(row[:20], row[20:])):
            expected = peer.RandomResizedCrop.get_params(torch.empty(3, height, width), list(area), list(aspect))
        assert region.tolist() == list(expected)
    top, left, height, width = found.T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= sizes[:, 0]).all() and (left + width <= sizes[:, 1]).all()


def test_draws_of_regions_and_jitter_depend_on_position_alone_and_are_these() -> None:
    config = replace(RESIZED, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    for draw in (region_draws, jitter_draws):
        whole, part = draw(config, seed=4, first=0, count=900), draw(config, seed=4, first=700, count=55)
        assert np.array_equal(whole[700:755], part)
    found = regions(region_draws(config, seed=4, first=0, count=3), np.full((3, 2), 256))
    assert found.tolist() == GOLDEN_REGIONS
    np.testing.assert_allclose(jitter_draws(config, seed=4, first=0, count=2), GOLDEN_JITTER, rtol=1e-6)


def kolmogorov(values: np.ndarray, low: float, high: float) -> float:
    """How far the values' distribution is from the uniform one, in units that do not depend on their number."""
    steps = np.arange(len(values) + 1) / len(values)
    expected = (np.sort(values) - low) / (high - low)
    return max((steps[1:] - expected).max(), (expected - steps[:-1]).max()) * math.sqrt(len(values))


def test_area_and_the_logarithm_of_aspect_are_uniform() -> None:
    draws = region_draws(RESIZED, seed=4, first=0, count=20_000)
    heights, widths = draws[:, :10], draws[:, 10:20]
    for each in (0, 9):  # tries
        area, aspect = (heights * widths)[:, each], np.log(widths / heights)[:, each]
        assert kolmogorov(area, 0.08, 1.0) < 1.95  # p = 0.001
        assert kolmogorov(aspect, math.log(3 / 4), math.log(4 / 3)) < 1.95
        assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.03
    assert abs(np.corrcoef(heights[:, 0], heights[:, 1])[0, 1]) < 0.03
    places = draws[:, 20:]
    assert all(kolmogorov(place, 0, 1) < 1.95 for place in places.T)


def test_jitter_is_uniform_within_its_ranges_and_nothing_where_it_is_off() -> None:
    config = AugmentConfig(brightness=0.4, contrast=1.5, hue=0.1)
    draws = jitter_draws(config, seed=4, first=0, count=20_000)
    for column, (low, high) in zip(draws.T, [(0.6, 1.4), (0.0, 2.5), (1, 1), (-36, 36)], strict=True):
        if low == high:
            assert (column == 1).all()
        else:
            assert column.min() >= low and column.max() <= high and kolmogorov(column, low, high) < 1.95
    off = jitter_draws(AugmentConfig(), seed=4, first=0, count=5)
    assert (off == np.array([1, 1, 1, 0])).all()


def test_new_kinds_of_augmentation_change_no_other_draw() -> None:
    modern = AugmentConfig(crop="resized", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    for plain, beside in zip(drawn(), drawn(modern), strict=True):
        assert np.array_equal(plain, beside)
    bits = [random_words(4, purpose, 0, 100, 4) for purpose in range(1, 11)]
    assert len(np.unique(bits)) == 4000  # purposes share none


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"area": (0.0, 1.0)}, r"area is \(0.0, 1.0\), expected two shares"),
        ({"area": (0.5, 0.1)}, r"area is \(0.5, 0.1\), expected two shares"),
        ({"aspect": (0.0, 1.0)}, r"aspect is \(0.0, 1.0\), expected two ratios"),
        ({"brightness": -0.1}, "brightness is -0.1, expected a number of at least 0"),
        ({"saturation": float("nan")}, "saturation is nan, expected a number"),
        ({"hue": 0.6}, "hue is 0.6, expected a part of the circle from 0 to 0.5"),
    ],
)
def test_wrong_ranges_say_what_is_expected(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(AugmentConfig(), **wrong)
