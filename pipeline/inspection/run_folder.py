"""What a run's folder says of its batches: their size, the seed, how pictures are loaded, and the positions of a step.

Read as plain JSON: of a run the pipeline knows only this.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline.command import InputError
from pipeline.files import open_regular
from pipeline.foreign import MOST_LINE, read_json
from pipeline.load.augment import AugmentConfig
from pipeline.load.config import PLACE_AND_SPEED, DataConfig

RUN_FILE: Final = "run.json"
LOG_FILE: Final = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class RunBatches:
    """What decides the batches of a run, of all its ranks together."""

    batch_size: int
    seed: int
    data: DataConfig
    forked: bool = False  # its first steps are its parent's


def read_run(folder: Path) -> RunBatches:
    """What `folder`/run.json says; InputError where there is none, or a later version's with options unknown here."""
    path = folder / RUN_FILE
    try:
        run = read_json(path)
        batches = RunBatches(
            batch_size=int(run["batch_size"]),
            seed=int(run["seed"]),
            data=data_config(run["data"]),
            forked=bool(run.get("parent")) and run.get("keep", "all") == "all",
        )
        if batches.batch_size < 1 or batches.seed < 0:
            raise ValueError(f"batch_size {batches.batch_size}, seed {batches.seed}")
        return batches
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror}), expected a run"
        raise InputError(f"{what}; give --run the folder that service.train was given as --out") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{path} is no run's of this version ({error!r:.100}), expected its batch size, seed and data options"
        raise InputError(f"{what}; give --batch-size, --seed and --data.… in its place") from error


def data_config(given: dict[str, Any]) -> DataConfig:
    """Options of loading from JSON; those that an earlier version did not have get their defaults.

    TypeError for an option that is not known.
    """
    augment = AugmentConfig(**{name: _from_json(value) for name, value in given.get("augment", {}).items()})
    rest = {name: _from_json(value) for name, value in given.items() if name != "augment"}
    if rest.get("cache") is not None:  # JSON has no paths
        rest["cache"] = Path(rest["cache"])
    return DataConfig(**rest, augment=augment)


def without_speed(data: DataConfig) -> DataConfig:
    """The options but for those that only say where the pictures are, and how fast they come."""
    plain = DataConfig()
    return replace(data, **{name: getattr(plain, name) for name in PLACE_AND_SPEED})


def first_position(folder: Path, run: RunBatches, step: int, samples: int) -> int:
    """The first training position of a run's step, counted from 1; samples: of the training split.

    Of steps that it has done its log says so, which holds for forks with another batch size too.
    """
    logged = None
    for done, position in _logged_positions(folder, samples):
        if logged is None or done <= step:
            logged = done, position
    if logged is None:
        return (step - 1) * run.batch_size
    done, position = logged
    if run.forked and step < done:
        remedy = "give --run the run that it was forked from"
        raise InputError(f"step {step} is not {folder}'s own, expected one from {done} on; {remedy}")
    return position + (step - 1 - done) * run.batch_size


def _logged_positions(folder: Path, samples: int) -> Iterator[tuple[int, int]]:
    """Step, and the position after it, of each training step in the log; nothing where there is no log."""
    try:
        with open_regular(folder / LOG_FILE) as log:
            while line := log.readline(MOST_LINE):
                try:
                    record = json.loads(line)
                    if "gradient_norm" in record:  # else of a validation
                        yield int(record["step"]), round(float(record["epoch"]) * samples)
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # it is being written
                    continue
    except OSError:
        return


def _from_json(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
