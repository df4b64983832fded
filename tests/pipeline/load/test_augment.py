"""Crop, mirror and colour shift: golden values, ranges, and both recipes' arithmetic written out."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig, augment_parameters
from pipeline.manifest import ColourStatistics
from pipeline.randomness import AUGMENT, random_words

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


def test_wrong_options_say_what_is_expected() -> None:
    with pytest.raises(InputError, match=r"colour_std is -1.*expected at least 0"):
        replace(AugmentConfig(), colour_std=-1)
