"""How a run's training error falls, epoch by epoch, from the checkpoints of all epochs, which it keeps for this.

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

ENOUGH: Final = 0.25  # figure 1
PICTURES: Final = 4096  # the first of the split, which sharding has shuffled: within 1.3 points of all at 25%
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


def is_learned(errors: Mapping[int, float]) -> bool:
    """Whether the training error has come down to what is asked of it."""
    return min(errors.values(), default=1.0) <= ENOUGH


def is_done(errors: Mapping[int, float], epochs: int) -> bool:
    """Whether a run that is to train so many epochs need train no more."""
    return is_learned(errors) or max(errors, default=0) >= epochs


def measure_training_errors(run: PlannedRun, shards: str | Path, device: Device) -> dict[int, float]:
    """Measure the checkpoints that have not been yet, of a run that may still train; write and return all errors."""
    errors = read_training_errors(run)
    epochs = {epoch_of(folder): folder for folder in checkpoints(run.folder)}
    epochs = {epoch: folder for epoch, folder in epochs.items() if epoch and epoch not in errors}
    if not epochs:
        return errors
    loader = open_pictures(shards, device)
    samples = range(min(PICTURES, loader.dataset.splits["train"].samples))
    errors[0] = 1 - 1 / len(loader.dataset.classes)  # before any training: by chance
    for epoch, folder in epochs.items():
        outcomes, _ = Evaluator([load(folder, device)], loader, "train").outcomes(np.ones((1, 1)), samples)
        errors[epoch] = float((outcomes.ahead[0] >= 1).mean())
    errors = dict(sorted(errors.items()))
    write_atomic(file_of(run), (json.dumps({"pictures": len(samples), "errors": errors}, indent=1) + "\n").encode())
    return errors


def epoch_of(checkpoint: Path) -> int:
    """The epoch at whose end a checkpoint was saved; 0 where it was saved at another time."""
    state = read_checkpoint(checkpoint).state
    return state.history[-1].epoch if state.history and state.history[-1].step == state.step else 0


def remove_measured(run: PlannedRun) -> None:
    """Remove the checkpoints, measured by now, of a run that has ended; the newest stay, from which it could go on."""
    for path, error in prune_checkpoints(run.folder, KEPT, None, set())[1].items():
        say(f"notice: {describe_unremoved(path, error)}")
