"""A run's folder -> its losses, errors, learning rates and events over epochs.

Only log.jsonl, events.jsonl and run.json are read, so a run may still train, or be on another host's disk.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError, printable
from pipeline.foreign import Measured, checked, read_json
from service.run.checkpoint import Validation
from service.run.config import RUN_FILE
from service.run.event_fields import check_event
from service.run.log import EVENTS_FILE, LOG_FILE, read_records

MOST_EVENTS: Final = 64 * 2**20  # bytes of events.jsonl; an event has 300
COLUMNS: Final = ("epoch", "loss", "learning_rate", "images_per_second")  # of a step's record


@dataclass(frozen=True, kw_only=True, eq=False)
class RunHistory:
    """A run so far; the columns have a row for each logged step."""

    name: str  # the shortest end of the folder's path that no other run compared has
    recipe: str
    epochs: NDArray[np.float64]  # (n,) done after the step
    losses: NDArray[np.float64]  # (n,) training loss
    learning_rates: NDArray[np.float64]  # (n,)
    images_per_second: NDArray[np.float64]  # (n,) 0 before the second step after each start
    step: int  # the last that is logged
    validations: tuple[Validation, ...]
    final_error: float | None  # top-1, 0..1, of the finished network on the paper's ten views; None before
    events: tuple[dict[str, Any], ...]

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return float(self.epochs[-1])

    @property
    def best(self) -> Validation | None:
        """The validation with the lowest top-1 error, the first of equal ones; None where there was none."""
        return min(self.validations, key=lambda each: each.top1, default=None)


def read_histories(folders: Sequence[Path]) -> list[RunHistory]:
    """The histories of several runs; InputError where a folder is not a run's, is damaged, or is there twice."""
    return [read_history(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def read_history(folder: Path, name: str) -> RunHistory:
    """The history of one run; InputError where the folder is not a run's, holds no step yet, or is damaged."""
    if not (folder / LOG_FILE).is_file():
        raise InputError(f"{folder} has no {LOG_FILE}, expected the folder of a run (--out of service.train)")
    # Arrays, because a log may have a million lines, which would fill a gigabyte as dictionaries.
    columns = [array("d") for _ in COLUMNS]
    validations: list[Validation] = []
    step, final = 0, None
    try:
        for record in read_records(folder / LOG_FILE):
            if record.pop("validation", False):
                validations.append(checked(Validation, record))
                continue
            if record.get("evaluation"):
                final = float(checked(Measured, record["top1"]))
                continue
            step, final = int(record["step"]), None  # what was measured before is another network's
            for column, field in zip(columns, COLUMNS, strict=True):
                column.append(record[field])  # TypeError where it is no number
        for column, field in zip(columns, COLUMNS, strict=True):
            if field != "loss" and not np.isfinite(column).all():  # a run that diverged has a loss of NaN
                raise ValueError(f"{field}: expected finite numbers")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{folder / LOG_FILE} is damaged ({error!r:.300}), expected a log of service.train") from error
    epochs, losses, rates, speeds = (np.array(column) for column in columns)
    if not len(epochs):
        raise InputError(f"{folder / LOG_FILE} holds no step, expected a run that trains; wait for its first step")
    return RunHistory(
        name=name,
        recipe=_recipe(folder),
        epochs=epochs,
        losses=losses,
        learning_rates=rates,
        images_per_second=speeds,
        step=step,
        validations=tuple(validations),
        final_error=final,
        events=_events(folder / EVENTS_FILE),
    )


def _events(path: Path) -> tuple[dict[str, Any], ...]:
    """The events of a run; none where it has no such file."""
    if not path.is_file():
        return ()
    if (size := path.stat().st_size) > MOST_EVENTS:
        raise InputError(f"{path} has {size:,} bytes, expected at most {MOST_EVENTS:,}; move it away")
    events = tuple(read_records(path))
    try:
        for event in events:
            check_event(event)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error!r:.300}), expected events of service.train; restore it") from error
    return events


def short_names(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that no other has; InputError where one is there twice."""
    paths = [folder.resolve().parts for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"{folder} is named twice, expected each run once; name another one")
    return [
        next(str(Path(*path[-n:])) for n in range(1, len(path) + 1) if sum(p[-n:] == path[-n:] for p in paths) == 1)
        for path in paths
    ]


def mean_points(
    epochs: NDArray[np.float64], values: NDArray[np.float64], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve in `most` points at most, each the mean of as many steps but for the last, at the last one's epoch."""
    each = -(-len(values) // most)
    firsts = np.arange(0, len(values), each)
    counts = np.diff(np.append(firsts, len(values)))
    return epochs[firsts + counts - 1], np.add.reduceat(values, firsts) / counts


def _recipe(folder: Path) -> str:
    try:
        return printable(checked(str, read_json(folder / RUN_FILE)["recipe"])[:100])
    except (OSError, ValueError, KeyError, TypeError):
        return "?"  # it only labels the run
