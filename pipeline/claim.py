"""Hold an output folder that is made in place: refuse what is not ours, clear what an interrupted run left.

A marker file says that the folder is ours and unfinished, and its lock that a run is at it. The lock goes with the
process, however that ends.
"""

import fcntl
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.command import InputError
from pipeline.manifest import fsync_folder

MARKER: Final = "unfinished"


@contextmanager
def claimed(folder: Path, products: Iterable[str]) -> Iterator[None]:
    """Make `folder` this run's own, without `products` (files and folders) of an earlier one; release it on success.

    InputError, with nothing touched, when it holds something else or another run is at it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a new or empty folder; give another --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise InputError(f"{folder} holds other files, expected a new or empty folder; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / MARKER, "a") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {folder}, expected to be alone; wait for it") from error
        _clear(folder, products)
        fsync_folder(folder)
        fsync_folder(folder.resolve().parent)
        yield
        release(folder)


def release(folder: Path) -> None:
    """Take the marker off a finished folder, where a run that ended right after its last act left one."""
    if (folder / MARKER).exists():
        (folder / MARKER).unlink(missing_ok=True)
        fsync_folder(folder)


def _clear(folder: Path, products: Iterable[str]) -> None:
    for path in [*(folder / name for name in products), *folder.glob(".*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
