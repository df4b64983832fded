"""Starts of a run, one after another, that came to no new checkpoint: a run that dies so again and again is ended.

What starts a worker again (Docker, torchrun, Slurm, Kubernetes) counts all of a run's faults alike. A run of weeks may
have many; one that always dies before it saves only burns its machines.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.command import InputError
from pipeline.files import write_atomic
from pipeline.foreign import Count, checked, read_json

STARTS_FILE: Final = "starts.json"
MOST_BYTES: Final = 4096


def count_start(out: Path, step: int, most: int) -> None:
    """Note a start that goes on from the checkpoint of `step`, 0 where there is none.

    InputError where `most` starts from there have been in vain.
    """
    starts = starts_from(out, step)
    if starts >= most:
        since = f"its checkpoint of step {step}" if step else "its beginning"
        found = f"{out} was started {starts} times from {since} and came to no new one, expected fewer"
        raise InputError(f"{found} than {most}; mend what ended it each time, then raise --most-restarts for one start")
    with suppress(OSError):  # a full disk must not end a run that could train
        write_atomic(out / STARTS_FILE, json.dumps({"step": step, "starts": starts + 1}).encode())


def starts_from(out: Path, step: int) -> int:
    """How many starts in a row went on from the checkpoint of `step`, and did not end in good order."""
    try:
        found = read_json(out / STARTS_FILE, MOST_BYTES)
        return checked(Count, found["starts"]) if found["step"] == step else 0
    except (OSError, ValueError, KeyError, TypeError):  # none, or what a crash of the disk has left
        return 0


def forget_starts(out: Path) -> None:
    """The run has ended in good order: what comes next is a first start."""
    with suppress(OSError):
        (out / STARTS_FILE).unlink(missing_ok=True)
