"""The output lock: one run at a time writes an output folder, which is new, empty, or left by an interrupted run.

A marker file says that the folder is an unfinished data set, and of which identity. On disk a file lock on the marker
says that a run is writing; the system releases it when the process ends, however that happens. In a store, which has no
locks, a lease does the same (lease.py).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.command import InputError
from pipeline.files import fsync_file, fsync_folder, is_temporary, make_folders, naming, remove_unneeded, try_lock
from pipeline.folder import Folder, is_system_folder
from pipeline.manifest import DATASET_FILE, UNFINISHED_FILE
from pipeline.write.lease import LEASE_FILE, hold_lease

StillOwner = Callable[[], None]  # raises InputError when the folder is no longer this run's


@contextmanager
def lock_output(folder: Folder, identity: Mapping[str, Any]) -> Iterator[StillOwner]:
    """Lock `folder`, empty or with what an earlier run of the same identity left; release it on success.

    InputError, with nothing changed, when it holds something else or another run is writing it. If another run has just
    finished it, it holds a complete data set, which is not changed.
    """
    with _hold(folder) as (check, previous):
        if folder.exists(DATASET_FILE):
            try:
                yield check
            finally:
                _release(folder)
            return
        if previous:
            require_same(folder, previous, identity)
        else:
            _mark(folder, identity)
        remove_unneeded(filter(is_temporary, folder.sizes()), folder.remove)
        yield check
        _release(folder)


def remove_leftovers(folder: Folder) -> None:
    """Remove marker and lease from a finished folder, left by a run that ended before it could."""
    _release(folder)
    if folder.local is None:
        remove_unneeded([LEASE_FILE], folder.remove)


def _release(folder: Folder) -> None:
    remove_unneeded([UNFINISHED_FILE], folder.remove)
    if folder.local:
        fsync_folder(folder.local)


def require_same(folder: Folder, there: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """InputError, naming the differences, when what is there is not what is asked for."""
    there = {"store": "jpeg", **there}  # which earlier versions did not name
    differences = [name for name, value in identity.items() if there.get(name) != value]
    if differences:
        described = ", ".join(_difference(name, there.get(name), identity[name]) for name in differences)
        raise InputError(
            f"{folder.place} holds another data set ({described}), expected the same; give the same options, another "
            "--out, or remove it"
        )


def _difference(name: str, there: object, here: object) -> str:
    if name == "source_sha256":  # the hashes themselves would not help the user
        return "source_sha256: other pictures, or another part of them by --classes or --limit"
    return f"{name} {there} there, {here} here"


@contextmanager
def _hold(folder: Folder) -> Iterator[tuple[StillOwner, dict[str, Any]]]:
    if folder.local is None:
        marked = any(map(folder.exists, (UNFINISHED_FILE, LEASE_FILE, DATASET_FILE)))
        _require_ours(folder, next(iter(folder.sizes()), None), marked)
        with hold_lease(folder) as check:
            yield check, _read_marker(folder.read(UNFINISHED_FILE)) if folder.exists(UNFINISHED_FILE) else {}
        return
    with _locked(folder, folder.local) as marker:
        yield (lambda: None), _read_marker(marker.read())


@contextmanager
def _locked(folder: Folder, path: Path) -> Iterator[IO[bytes]]:
    if path.exists() and not path.is_dir():
        raise InputError(f"{folder.place} is a file, expected a new or empty folder; give another --out")
    make_folders(path)
    marked = (path / UNFINISHED_FILE).exists() or (path / DATASET_FILE).exists()
    _require_ours(folder, next((each for each in path.iterdir() if not is_system_folder(each.name)), None), marked)
    with open(path / UNFINISHED_FILE, "a+b") as marker:
        if not try_lock(marker):
            raise InputError(f"another run is writing {folder.place}, expected to be alone; wait for it")
        fsync_folder(path)
        marker.seek(0)
        yield marker


def _require_ours(folder: Folder, example: object, marked: bool) -> None:
    if example is not None and not marked:
        raise InputError(f"{folder.place} holds other files, expected a new or empty folder; give another --out")


def _read_marker(data: bytes) -> dict[str, Any]:
    try:
        read = json.loads(data)
    except ValueError:
        return {}  # the earlier run ended before it wrote the marker: it left nothing else
    return read if isinstance(read, dict) else {}


def _mark(folder: Folder, identity: Mapping[str, Any]) -> None:
    data = json.dumps(identity).encode("ascii")
    if folder.local:
        # In place: the lock is on this very file.
        with naming(folder.local / UNFINISHED_FILE), open(folder.local / UNFINISHED_FILE, "r+b") as marker:
            marker.truncate()
            marker.write(data)
            marker.flush()
            fsync_file(marker.fileno())
    else:
        folder.write(UNFINISHED_FILE, data)
