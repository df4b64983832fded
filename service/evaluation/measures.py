"""Outcomes -> error rates with their intervals, errors by class, confusions and calibration: numpy alone."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 15  # of confidence; Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4
Z: Final = 1.959963984540054  # of 95%. (Not by scipy.stats: every start of a worker would wait two seconds for it.)


@dataclass(frozen=True)
class ErrorRate:
    """A share of pictures that were told wrongly, 0..1, and Wilson's 95% interval of it (Wilson 1927)."""

    error: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ClassErrors:
    """One class's pictures."""

    index: int
    samples: int
    top1: float  # error, 0..1
    top5: float


@dataclass(frozen=True)
class Confusion:
    """How many pictures of one class were taken for another."""

    true: int
    predicted: int
    samples: int
    share: float  # of the true class's pictures, 0..1


@dataclass(frozen=True)
class Bin:
    """Pictures whose predicted class had a probability in (low, high]."""

    low: float
    high: float
    samples: int
    confidence: float  # the mean
    accuracy: float  # the share that was right


def error_rate(wrong: NDArray[np.bool_]) -> ErrorRate:
    """Of (N,) pictures, at least one."""
    n = len(wrong)
    share = int(wrong.sum()) / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    return ErrorRate(share, (max(middle - half, 0.0), min(middle + half, 1.0)))  # which rounding might exceed


def errors_by_class(labels: NDArray[np.int64], ahead: NDArray[np.int32], classes: int) -> list[ClassErrors]:
    """Each class's errors; classes without a picture are left out."""
    counts = np.bincount(labels, minlength=classes)
    top1 = np.bincount(labels[ahead >= 1], minlength=classes)
    top5 = np.bincount(labels[ahead >= 5], minlength=classes)
    return [
        ClassErrors(index, int(n), top1[index] / n, top5[index] / n) for index, n in enumerate(counts.tolist()) if n
    ]


def worst_confusions(
    labels: NDArray[np.int64], predicted: NDArray[np.int32], classes: int, most: int
) -> list[Confusion]:
    """The pairs of classes that were confused most often; of equally frequent ones the first."""
    counts = np.bincount(labels, minlength=classes)
    wrong = labels != predicted
    pairs, times = np.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    order = np.argsort(-times, kind="stable")[:most]
    return [
        Confusion(int(pair // classes), int(pair % classes), int(n), n / counts[pair // classes])
        for pair, n in zip(pairs[order], times[order], strict=True)
    ]


def calibration_bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    """BINS bins of equal width, those without a picture left out."""
    edges = np.linspace(0, 1, BINS + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    return [
        Bin(
            float(edges[index]),
            float(edges[index + 1]),
            int(inside.sum()),
            float(confidence[inside].mean()),
            float(right[inside].mean()),
        )
        for index in range(BINS)
        if (inside := which == index).any()
    ]


def expected_calibration_error(bins: list[Bin]) -> float:
    """The mean distance between confidence and accuracy, 0..1, bins weighted by their pictures; Guo et al. 2017."""
    n = sum(each.samples for each in bins)
    return sum(each.samples / n * abs(each.confidence - each.accuracy) for each in bins)
