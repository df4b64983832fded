"""What runs have come to: the error of each, and how variants differ from the base, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from pipeline.command import InputError
from service.ablation.plan import PlannedRun
from service.results.history import RunHistory, read_history
from service.run.log import LOG_FILE

LEVEL: Final = 0.95  # of intervals
TEN_VIEWS: Final = "ten views"  # the measurement that an experiment of views has beside the base's


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant's errors, top-1 in percent by seed, and its paired difference from the base's."""

    name: str
    errors: Mapping[int, float]
    planned: int  # runs
    difference: "Difference | None"  # None for the base, and with fewer than two pairs

    @property
    def mean(self) -> float:
        """Of the seeds that are done; NaN where none is."""
        return float(np.mean(list(self.errors.values()))) if self.errors else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for fewer than two."""
        return float(np.std(list(self.errors.values()), ddof=1)) if len(self.errors) > 1 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the differences of pairs that share a seed, and its interval by Student's t, in points."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


def history_of(run: PlannedRun) -> RunHistory | None:
    """What the run has logged; None where it has not begun."""
    if not (run.folder / LOG_FILE).is_file():
        return None
    try:
        return read_history(run.folder, f"{run.variant}, seed {run.seed}")
    except InputError:  # no step yet
        return None


def is_finished(run: PlannedRun, epochs: int) -> bool:
    """Whether the run has trained all its epochs and has been measured."""
    history = history_of(run)
    return history is not None and history.epoch >= epochs and history.final_error is not None


def variants_of(runs: Sequence[PlannedRun], epochs: int, *, views: bool) -> list[Variant]:
    """The variants in their order, of the runs that are finished: validation error after the last epoch, centre crop.

    views: the base's error on ten views as one more.
    """
    finished: dict[str, dict[int, RunHistory]] = {run.variant: {} for run in runs}
    for run in runs:
        if is_finished(run, epochs) and (history := history_of(run)):
            finished[run.variant][run.seed] = history
    errors = {
        name: {seed: 100 * history.validations[-1].top1 for seed, history in by_seed.items()}
        for name, by_seed in finished.items()
    }
    base = next(iter(errors))
    if views:
        finals = {seed: history.final_error for seed, history in finished[base].items()}
        errors[TEN_VIEWS] = {seed: 100 * error for seed, error in finals.items() if error is not None}
    planned = len({run.seed for run in runs})
    return [
        Variant(
            name=name,
            errors=by_seed,
            planned=planned,
            difference=None if name == base else paired_difference(errors[base], by_seed),
        )
        for name, by_seed in errors.items()
    ]


def paired_difference(base: Mapping[int, float], variant: Mapping[int, float]) -> Difference | None:
    """The variant's less the base's, of the seeds that both have; None with fewer than two."""
    differences = [variant[seed] - base[seed] for seed in base if seed in variant]
    if len(differences) < 2:
        return None
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1))
    return Difference(mean=mean, low=mean - reach, high=mean + reach, pairs=len(differences))
