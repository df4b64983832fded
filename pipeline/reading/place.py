"""Where a data set is: a folder on this host, or a store's, whose small files are then copied into a folder here.

So whoever reads a data set's JSON, tables or mean reads files, and only the samples' bytes come from afar.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

from pipeline.command import InputError
from pipeline.files import free_bytes, sha256_of, write_atomic
from pipeline.folder import Folder, folder_at
from pipeline.foreign import MOST_JSON, Count, checked, read_json, read_regular
from pipeline.manifest import (
    DATASET_FILE,
    MEAN_FILE,
    REJECTS_FILE,
    SAMPLES_FILE,
    most_bytes,
    parse_dataset,
)
from pipeline.reading.cache import LOCK_FILE, SEGMENT_SUFFIX, Held
from pipeline.reading.fetch import patiently

CACHE_BYTES: Final = 50 * 10**9
PLACE_FILE: Final = "remote.json"  # in a copy of small files: where the rest is
_MOST_PLACE: Final = 2**16  # bytes of it
_MOST_SMALL: Final = 2**31  # bytes of a table, a mean or a list of rejects; of ImageNet's 31 MB
_KEPT_FREE: Final = 0.1  # of what a disk has free when a cache is opened: for checkpoints, and other programs
_ROOM: Final = 1.25  # times the shards' bytes, that no process which begins a segment is left without
_OPENING_FILE: Final = ".opening"  # in the folder of all data sets, locked by who opens one
_TRIES: Final = 3  # of a small file whose bytes are wrong
_SMALL: Final = (SAMPLES_FILE, MEAN_FILE, REJECTS_FILE)


@dataclass(frozen=True, kw_only=True)
class RemotePlace:
    """Where the samples of a data set are, and how many bytes of them may be kept here."""

    url: str
    bound: Count


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL, and no path."""
    return "://" in os.fspath(place)


def open_place(place: str | os.PathLike[str], kept_in: Path | None = None, most: int = CACHE_BYTES) -> Path:
    """The folder with the JSON, tables and mean of the data set at a path or an fsspec URL (s3://bucket/prefix).

    For a URL they are copied into a folder of `kept_in`, held against their SHA-256, and samples will be kept there
    too: `most` bytes of all data sets together. InputError where there is no data set, or the store keeps failing.
    """
    if not is_url(place):
        return Path(place)
    source = folder_at(place)
    if source.local:
        return source.local
    folder = kept_in or default_cache()
    data = _read(source, DATASET_FILE, None, MOST_JSON)
    dataset = parse_dataset(data, f"{source.place}/{DATASET_FILE}")
    root = folder / f"{source.root.rpartition('/')[2] or 'shards'}-{_digest(data)}"
    with _writing(root):
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
        with Held(folder / _OPENING_FILE, fcntl.LOCK_EX):  # before `root` is made, which another could remove
            root.mkdir(exist_ok=True)
            (root / LOCK_FILE).touch()
            hold_in_use(root)
            for name, sha256 in dataset.files.items():
                if name.rpartition("/")[2] in _SMALL and not _is_there(root / name, sha256):
                    (root / name).parent.mkdir(exist_ok=True)
                    write_atomic(root / name, _read(source, name, sha256, min(_MOST_SMALL, most_bytes(dataset, name))))
            shards = [shard for split in dataset.splits.values() for shard in split.shards]
            bound = _make_room(folder, root, sum(shard.bytes for shard in shards), most)
            write_atomic(root / PLACE_FILE, json.dumps(asdict(RemotePlace(url=source.place, bound=bound))).encode())
            write_atomic(root / DATASET_FILE, data)
    return root


@cache
def hold_in_use(root: Path) -> Held:
    """Until this process ends, let nobody remove a data set's cache."""
    return Held(root / LOCK_FILE, fcntl.LOCK_SH)


def remote_place(root: Path) -> RemotePlace | None:
    """Where the samples of the data set are whose small files are in `root`; None where they are there too."""
    path = root / PLACE_FILE
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            return checked(RemotePlace, read_json(path, _MOST_PLACE))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}), expected a URL and a number; remove its folder") from error
    return None


def default_cache() -> Path:
    """The folder that is meant for such things: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "alexnet-trainer" / "shards"


def _read(source: Folder, name: str, sha256: str | None, most: int) -> bytes:
    """A small file of `most` bytes, held against its SHA-256, or the one that is in `dataset.json` itself."""
    place = f"{source.place}/{name}"
    for attempt in range(_TRIES):
        if (size := patiently(lambda: source.size(name), source.place, name)) > most:
            raise InputError(f"{place} has {size:,} bytes, expected at most {most:,}; copy the data set there again")
        data = patiently(lambda: source.read(name), source.place, name)
        if sha256 is None:
            with suppress(*([InputError] if attempt < _TRIES - 1 else [])):
                parse_dataset(data, place)
                return data
        elif hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise InputError(f"{place} is damaged, expected SHA-256 {sha256}; copy the data set there again")


def _is_there(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _make_room(folder: Path, root: Path, shards_bytes: int, most: int) -> int:
    """The bytes that `root` may keep so that all of `folder` is within `most`, and its disk is not filled.

    Caches of data sets that nobody reads are removed for that, the one that was opened longest ago first.
    """
    wanted = int(shards_bytes * _ROOM)
    caches = sorted((each for each in folder.iterdir() if each != root and _is_cache(each)), key=_opened)
    others = {each: _may_take(each) for each in caches}
    free = free_bytes(folder) * (1 - _KEPT_FREE) + _kept_bytes(root)
    for other in caches:
        if sum(others.values()) + wanted <= most and wanted <= free:
            break
        if not _kept_bytes(other):
            continue
        with suppress(BlockingIOError), Held(other / LOCK_FILE, fcntl.LOCK_EX | fcntl.LOCK_NB):
            free += _kept_bytes(other)
            shutil.rmtree(other)
            del others[other]
    return int(max(0, min(wanted, most - sum(others.values()), free)))


def _may_take(root: Path) -> int:
    """The bytes that another data set keeps, or may come to keep while somebody reads it."""
    try:
        Held(root / LOCK_FILE, fcntl.LOCK_EX | fcntl.LOCK_NB).release()
    except BlockingIOError:
        return place.bound if (place := remote_place(root)) else 0
    return _kept_bytes(root)


def _is_cache(folder: Path) -> bool:
    """Whether open_place made this folder, whose name ends as the data set in it says; a person's own never does."""
    try:
        place, dataset = remote_place(folder), read_regular(folder / DATASET_FILE, MOST_JSON)
    except (OSError, ValueError, InputError):
        return False
    ours = place is not None and folder.name.endswith(f"-{_digest(dataset)}") and (folder / LOCK_FILE).is_file()
    return ours and not folder.is_symlink()


def _opened(cache: Path) -> float:
    return (cache / LOCK_FILE).stat().st_mtime


def _digest(dataset: bytes) -> str:
    """What the name of a data set's folder ends with."""
    return hashlib.sha256(dataset).hexdigest()[:16]


def _kept_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob(f"*{SEGMENT_SUFFIX}"))


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{root} cannot be written ({error.strerror}), expected a folder for what comes from the store; "
            "give another --data.cache"
        ) from error
