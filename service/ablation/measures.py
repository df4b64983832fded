"""What runs have come to: a number for each, and how variants differ from the base, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from service.ablation.experiments import BASE_LABEL, Measure
from service.ablation.plan import PlannedRun
from service.ablation.training_error import ENOUGH, epochs_until, is_done, read_training_errors
from service.results.history import RunHistory, read_history
from service.run.log import LOG_FILE

LEVEL: Final = 0.95  # of intervals
TEN_VIEWS: Final = "ten views"  # beside the base, where views are measured


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of pairs that share a seed, with its interval by Student's t: the mean difference in points, or a factor."""

    mean: float
    low: float
    high: float
    pairs: int
    same: float = 0.0  # what it is where there is no difference: 1 of a factor

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds what it would be without a difference."""
        return self.low <= self.same <= self.high


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant's numbers by seed, top-1 errors in percent or epochs, and its paired difference from the base's."""

    name: str
    by_seed: Mapping[int, float]
    finished: int  # runs; more than the numbers where some never came to the training error
    planned: int
    difference: Difference | None  # None for the base, and with fewer than two pairs
    rate: float | None = None  # its own best learning rate, where some were tried
    called: str = ""  # in tables and pictures, where not by its name

    @property
    def title(self) -> str:
        """What people read."""
        return self.called or self.name

    @property
    def mean(self) -> float:
        """Of the seeds that have a number; NaN where none has."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for fewer than two."""
        return float(np.std(list(self.by_seed.values()), ddof=1)) if len(self.by_seed) > 1 else float("nan")


def history_of(run: PlannedRun) -> RunHistory | None:
    """What the run has logged; None where it has no step yet. InputError where its log is damaged."""
    log = run.folder / LOG_FILE
    return read_history(run.folder, run.name) if log.is_file() and b'"loss"' in log.read_bytes() else None


def is_finished(history: RunHistory | None, epochs: int) -> bool:
    """Whether a run has trained all its epochs and has been measured, which it does last."""
    return history is not None and history.epoch >= epochs and history.final_error is not None


def best_rates(trials: Sequence[PlannedRun]) -> dict[str, float]:
    """Each variant's learning rate: that of the trial which learns fastest; before any has begun, of the first.

    The fewest epochs until the training error, or where none comes to it the lowest error at the trials' end.
    """

    def slowness(run: PlannedRun) -> tuple[float, float]:
        errors = {epoch: error for epoch, error in read_training_errors(run).items() if epoch <= run.until}
        until = epochs_until(ENOUGH, errors)
        return float("inf") if until is None else until, errors.get(run.until, 1.0)

    by_variant: dict[str, list[PlannedRun]] = {}
    for run in trials:
        by_variant.setdefault(run.variant, []).append(run)
    return {variant: min(runs, key=slowness).rate or 0.0 for variant, runs in by_variant.items()}


def variants_of(
    runs: Sequence[PlannedRun],
    measure: Measure,
    rates: Mapping[str, float] | None = None,
    base_called: str = "",
) -> list[Variant]:
    """The variants in their order, with the numbers of the runs that are finished."""
    finished: dict[str, dict[int, RunHistory]] = {run.variant: {} for run in runs}
    numbers: dict[str, dict[int, float]] = {run.variant: {} for run in runs}
    for run in runs:
        history = history_of(run)
        stopped = measure == "training" and is_done(read_training_errors(run), run.until)
        if history and (stopped or is_finished(history, run.epochs)):
            finished[run.variant][run.seed] = history
            if (number := _number(run, history, measure)) is not None:
                numbers[run.variant][run.seed] = number
    if measure == "views":
        finished[TEN_VIEWS] = finished[BASE_LABEL]
        finals = {seed: history.final_error for seed, history in finished[BASE_LABEL].items()}
        numbers[TEN_VIEWS] = {seed: 100 * error for seed, error in finals.items() if error is not None}
    difference = paired_factor if measure == "training" else paired_difference
    return [
        Variant(
            name=name,
            by_seed=by_seed,
            finished=len(finished[name]),
            planned=len({run.seed for run in runs}),
            difference=None if name == BASE_LABEL else difference(numbers[BASE_LABEL], by_seed),
            rate=rates[name] if rates else None,
            called=base_called if name == BASE_LABEL else "",
        )
        for name, by_seed in numbers.items()
    ]


def _number(run: PlannedRun, history: RunHistory, measure: Measure) -> float | None:
    """A finished run's; None where it never came to the training error, or has not been measured on that."""
    if measure == "training":
        return epochs_until(ENOUGH, read_training_errors(run))
    return 100 * history.validations[-1].top1


def paired_difference(base: Mapping[int, float], variant: Mapping[int, float]) -> Difference | None:
    """The variant's less the base's, of the seeds that both have; None with fewer than two."""
    differences = [variant[seed] - base[seed] for seed in base if seed in variant]
    if len(differences) < 2:
        return None
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1))
    return Difference(mean=mean, low=mean - reach, high=mean + reach, pairs=len(differences))


def paired_factor(base: Mapping[int, float], variant: Mapping[int, float]) -> Difference | None:
    """How many times the base's the variant's is: the geometric mean of pairs, with its interval of the logarithms."""
    logarithms = ({seed: math.log(value) for seed, value in each.items()} for each in (base, variant))
    if (found := paired_difference(*logarithms)) is None:
        return None
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return Difference(mean=mean, low=low, high=high, pairs=found.pairs, same=1.0)
