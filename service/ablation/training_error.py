"""How a run's training error fell, epoch by epoch, from the checkpoints of all epochs that it has kept for this.

The error of the network as a user would use it: centre crops, no dropout, float32. What a step says of its own batch
is another thing, and only a loss.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.command import InputError, say
from pipeline.files import write_atomic
from pipeline.load.batch_loader import Device
from service.ablation.plan import PlannedRun
from service.evaluation.evaluate import Evaluator, open_pictures
from service.network.read import load
from service.run.checkpoint import checkpoints, describe_unremoved, prune_checkpoints, read_checkpoint

PICTURES: Final = 2048  # the first of the split, which sharding has shuffled: within 2 points of all at 25%
KEPT: Final = 2  # checkpoints that stay afterwards, beside the best


def file_of(run: PlannedRun) -> Path:
    """Where a run's training errors are."""
    return run.folder.with_name(f"{run.folder.name}.training-error.json")


def read_training_errors(run: PlannedRun) -> dict[int, float]:
    """Epoch -> error, 0..1; empty where they have not been measured."""
    try:
        return {int(epoch): float(error) for epoch, error in json.loads(file_of(run).read_bytes())["errors"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file_of(run)} is damaged ({error!r}), expected JSON; remove it and run again") from error


def epochs_until(threshold: float, errors: Mapping[int, float]) -> float | None:
    """Epochs until the error is at most `threshold`, between two epochs by a line; None where it never is.

    errors: by epoch, 0 among them.
    """
    points = sorted(errors.items())
    for (epoch, error), (next_epoch, next_error) in pairwise(points):
        if next_error <= threshold < error:
            return epoch + (error - threshold) / (error - next_error) * (next_epoch - epoch)
    return None


def measure_training_errors(run: PlannedRun, shards: str | Path, device: Device) -> None:
    """Measure a finished run's checkpoints, write what they come to, and remove those that nothing needs any more."""
    loader = open_pictures(shards, device)
    samples = range(min(PICTURES, loader.dataset.splits["train"].samples))
    errors = {0: 1 - 1 / len(loader.dataset.classes)}  # before any training: by chance
    for folder in checkpoints(run.folder):
        state = read_checkpoint(folder).state
        if state.history and state.history[-1].step == state.step:  # else it is not of an epoch's end
            outcomes, _ = Evaluator([load(folder, device)], loader, "train").outcomes(np.ones((1, 1)), samples)
            errors[state.history[-1].epoch] = float((outcomes.ahead[0] >= 1).mean())
    values = {"pictures": len(samples), "errors": dict(sorted(errors.items()))}
    write_atomic(file_of(run), (json.dumps(values, indent=1) + "\n").encode())
    for path, error in prune_checkpoints(run.folder, KEPT, None, set())[1].items():
        say(f"notice: {describe_unremoved(path, error)}")
