"""Error rates, intervals, confusions, calibration and fitted weights against figures worked out otherwise."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from service.evaluation.measures import (
    calibration_bins,
    error_rate,
    errors_by_class,
    expected_calibration_error,
    worst_confusions,
)
from service.evaluation.mixture import equal_weights, fitted_weights


@pytest.mark.parametrize(("wrong", "n"), [(0, 40), (1, 10), (375, 1000), (50_000, 50_000)])
def test_the_interval_is_wilsons(wrong: int, n: int) -> None:
    found = error_rate(np.arange(n) < wrong)
    expected = binomtest(wrong, n).proportion_ci(0.95, method="wilson")
    assert found.error == wrong / n
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.interval[0] <= found.interval[1] <= 1


def test_errors_and_confusions_of_ten_pictures_counted_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 3, 3, 3])
    predicted = np.array([0, 1, 1, 3, 1, 0, 1, 3, 1, 1], np.int32)
    ahead = np.array([0, 1, 2, 6, 0, 1, 0, 0, 5, 3], np.int32)
    assert [(each.index, each.samples, each.top1, each.top5) for each in errors_by_class(labels, ahead, 5)] == [
        (0, 4, 0.75, 0.25),
        (1, 3, 1 / 3, 0.0),
        (3, 3, 2 / 3, 1 / 3),
    ]
    found = worst_confusions(labels, predicted, 5, 3)
    assert [(each.true, each.predicted, each.samples) for each in found] == [(0, 1, 2), (3, 1, 2), (0, 3, 1)]
    assert [each.share for each in found] == [0.5, 2 / 3, 0.25]


def test_calibration_error_of_two_bins_worked_out_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    bins = calibration_bins(confidence, right)
    assert [(each.samples, each.accuracy) for each in bins] == [(2, 0.5), (4, 0.75)]
    assert expected_calibration_error(bins) == pytest.approx(2 / 6 * 0.05 + 4 / 6 * 0.20)


def test_every_confidence_is_in_one_bin() -> None:
    confidence = np.append(np.linspace(0, 1, 151), np.linspace(0, 1, 16))  # on edges too
    bins = calibration_bins(confidence, confidence > 0.5)
    assert sum(each.samples for each in bins) == len(confidence)
    assert all(each.low <= each.confidence <= each.high for each in bins)


def test_fitted_weights_are_the_likeliest() -> None:
    generator = np.random.default_rng(2)
    at_label = generator.uniform(0, 1, (3, 400)) ** np.array([[1.0], [2.0], [1.2]])
    found = fitted_weights(at_label)

    def cost(free: np.ndarray) -> float:
        weights = np.exp(free) / np.exp(free).sum()
        return -np.log(weights @ at_label).sum()

    best = minimize(cost, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9, "maxiter": 4000})
    expected = np.exp(best.x) / np.exp(best.x).sum()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.sum() == pytest.approx(1)
    assert np.log(found @ at_label).sum() >= np.log(equal_weights(3) @ at_label).sum()


def test_a_member_that_knows_nothing_gets_no_weight() -> None:
    good = np.full(50, 0.9)
    assert fitted_weights(np.array([good, np.zeros(50)])) == pytest.approx([1, 0], abs=1e-6)
