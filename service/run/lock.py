"""The lock on a run's folder: one worker at a time writes there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from pipeline.command import InputError, say
from pipeline.files import make_folders, try_lock
from service.run.checkpoint import clear_unfinished

DOCTOR: Final = "python -m service.doctor says more"  # added to errors whose cause is the machine


@contextmanager
def lock_run(folder: Path, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock on the run's folder; InputError when another worker does, or when it cannot be written.

    patience_seconds: how long another worker may take to release it.
    """
    try:
        make_folders(folder)
        lock = open(folder / ".lock", "wb")
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror}), expected a folder"
        raise InputError(f"{reason}; set --out; {DOCTOR}") from error
    with lock:
        deadline = time.monotonic() + patience_seconds
        if patience_seconds and not _acquired(lock):
            say(f"another worker is training in {folder}: waiting {patience_seconds:g} s for it to let go")
        while not _acquired(lock):
            if time.monotonic() >= deadline:
                raise InputError(f"another worker is training in {folder}, expected none; stop it first")
            time.sleep(0.1)
        clear_unfinished(folder)
        yield


def _acquired(lock: IO[Any]) -> bool:
    try:
        return try_lock(lock)
    except InputError as error:
        raise InputError(f"{error}; {DOCTOR}") from error
