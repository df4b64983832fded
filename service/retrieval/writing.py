"""Pictures -> features on disk: interrupted at any time, the same call goes on and ends with the same bytes.

Features are computed in chunks of one shape at fixed rows, so a row does not depend on batch, cores or interruptions.
`progress.json` says how many rows are durable; what lies beyond them is written again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.command import InputError
from pipeline.files import (
    free_bytes,
    fsync_file,
    fsync_folder,
    is_temporary,
    make_folders,
    remove_unneeded,
    sha256_of,
    try_lock,
)
from pipeline.folder import is_system_folder
from pipeline.load.batch_loader import BatchLoader
from pipeline.progress import Advance, spinner
from service.network.compute import map_chunks
from service.network.trained import CHUNK_ROWS, TrainedNetwork, padded_chunks
from service.retrieval.features import (
    FEATURES_FILE,
    INDEX_FILE,
    IndexFacts,
    as_float16,
    check_same,
    decode_facts,
    open_index,
    write_facts,
)

PROGRESS_FILE: Final = "progress.json"
SAVE_SECONDS: Final = 2.0  # of work that a pulled plug may cost
SPARE_BYTES: Final = 1 << 20  # for the other files


class Chunks(Protocol):
    """What computes features."""

    def __call__(self, first: int) -> Iterator[NDArray[np.float16]]:
        """Arrays of (n, width), row by row from row `first` on to the last."""
        ...


def feature_chunks(
    network: TrainedNetwork, loader: BatchLoader, split: str, batch_size: int, first: int = 0
) -> Iterator[NDArray[np.float16]]:
    """Features of a split's pictures from `first` on, a multiple of CHUNK_ROWS, so many at a time but for the last.

    loader: of whole pictures. InputError where features are beyond float16, or a sample is damaged.
    """
    assert first % CHUNK_ROWS == 0, first

    def work(chunk: tuple[tuple[Tensor, ...], int]) -> NDArray[np.float32]:
        (squares,), count = chunk
        return network.features(squares)[:count].cpu().numpy()

    samples = range(first, loader.dataset.splits[split].samples)
    row = first
    for features in map_chunks(work, padded_chunks(_squares(loader, split, samples, batch_size), CHUNK_ROWS),
                               network.device):  # fmt: skip
        yield as_float16(features, lambda place, first=row: f"{split} {first + place:,}")
        row += len(features)


def _squares(loader: BatchLoader, split: str, samples: range, batch_size: int) -> Iterator[tuple[Tensor]]:
    for batch in loader.pictures(split, samples, batch_size):
        if loader.damaged:  # another sample stood in, whose features would stay in the index
            raise InputError(
                f"a sample is damaged ({loader.damaged[0]}), expected what was sharded; shard again as before, "
                "then give the same command"
            )
        yield (batch.pictures,)


def write_index(
    out: Path,
    facts: IndexFacts,
    chunks: Chunks,
    advance: Advance,
    save_seconds: float = SAVE_SECONDS,
) -> bool:
    """Make the index, or go on making it; False where it was there already.

    InputError, with nothing overwritten, where `out` holds something else, another process is writing it, or the disk
    has no room. save_seconds: between one time that rows are made durable and the next.
    """
    if _is_finished(out, facts):
        _clear(out)
        return False
    _check_ours(out)
    with _disk_errors(out), _locked(out) as descriptor:
        if _is_finished(out, facts):  # while this process was waiting
            return False
        first = _rows_done(out, facts, descriptor)
        _check_room(out, facts, descriptor)
        if not first:
            write_facts(out / PROGRESS_FILE, facts, rows=0)  # before any byte: it says that the folder is ours
            _write_at(descriptor, npy_header(facts), 0)
        os.ftruncate(descriptor, _place(facts, first))
        advance(first, before=True)
        if first < facts.samples:
            _write_rows(out, facts, chunks(first), first, descriptor, advance, save_seconds)
        with spinner(f"SHA-256 of {FEATURES_FILE}"):
            fsync_file(descriptor)
            write_facts(out / INDEX_FILE, facts, features_sha256=sha256_of(out / FEATURES_FILE))
        _clear(out)
    return True


def _is_finished(out: Path, facts: IndexFacts) -> bool:
    """Whether this index is there; InputError where another one is."""
    if not (out / INDEX_FILE).is_file():
        return False
    check_same(out, "a finished", open_index(out).facts, facts)
    return True


def _check_ours(out: Path) -> None:
    """InputError where `out` holds anything but what an earlier call may have left."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder for the index; give another --out")
    names = {each.name for each in out.iterdir()} if out.is_dir() else set()
    others = names - {FEATURES_FILE, PROGRESS_FILE, INDEX_FILE}
    foreign = sorted(name for name in others if not is_temporary(name) and not is_system_folder(name))
    if foreign or (FEATURES_FILE in names and PROGRESS_FILE not in names and (out / FEATURES_FILE).stat().st_size):
        what = foreign[0] if foreign else FEATURES_FILE
        raise InputError(f"{out} holds {what}, expected a new folder or an unfinished index; give another --out")


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """features.npy, locked until this process ends or is done, and what was half-written beside it removed."""
    make_folders(out)
    with open(out / FEATURES_FILE, "rb+", buffering=0, opener=_create) as file:
        if not try_lock(file):
            raise InputError(f"another process is writing {out}, expected none; wait for it or stop it")
        yield file.fileno()


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {out} ({error.strerror}), expected a folder on a disk with room; "
            "see to it and give the same command, or another --out"
        ) from error


def npy_header(facts: IndexFacts) -> bytes:
    """What features.npy begins with."""
    # As numpy's writer makes it, but of one length whatever numpy's version: a resumed file has one header.
    values = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({facts.samples}, {facts.width}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + values.ljust(117).encode() + b"\n"


def _place(facts: IndexFacts, row: int) -> int:
    """Where a row begins, bytes."""
    return len(npy_header(facts)) + row * facts.width * 2


def _rows_done(out: Path, facts: IndexFacts, descriptor: int) -> int:
    """Durable rows of an earlier call; InputError where it was making another index."""
    if not (out / PROGRESS_FILE).exists():
        return 0
    theirs, more = decode_facts(out / PROGRESS_FILE)
    check_same(out, "an unfinished", theirs, facts)
    rows = more.get("rows")
    if not isinstance(rows, int) or not 0 <= rows <= facts.samples or (rows % CHUNK_ROWS and rows < facts.samples):
        raise InputError(f"{out / PROGRESS_FILE} is damaged ({rows} rows); remove {out} and index again")
    size = os.fstat(descriptor).st_size
    if rows and size < _place(facts, rows):
        raise InputError(
            f"{out / FEATURES_FILE} has {size:,} bytes, expected the {_place(facts, rows):,} of {rows:,} rows; "
            f"remove {out} and index again"
        )
    return rows


def _check_room(out: Path, facts: IndexFacts, descriptor: int) -> None:
    there = os.fstat(descriptor)
    needed = _place(facts, facts.samples) - min(there.st_size, there.st_blocks * 512) + SPARE_BYTES
    if (free := free_bytes(out)) < needed:
        raise InputError(
            f"the disk of {out} has {free:,} bytes free, expected {needed:,} for {facts.samples:,} x {facts.width:,} "
            "features; make room or give another --out"
        )


def _write_rows(
    out: Path,
    facts: IndexFacts,
    chunks: Iterator[NDArray[np.float16]],
    first: int,
    descriptor: int,
    advance: Advance,
    save_seconds: float,
) -> None:
    done, saved, last = first, first, time.monotonic()
    try:
        for rows in chunks:
            assert rows.shape[1:] == (facts.width,), rows.shape
            _write_at(descriptor, rows.astype("<f2", order="C", copy=False).tobytes(), _place(facts, done))
            done += len(rows)
            advance(len(rows), size=rows.nbytes)
            if time.monotonic() - last >= save_seconds:
                _save(out, facts, done, descriptor)
                saved, last = done, time.monotonic()
    finally:  # also on Ctrl-C
        if done > saved:
            _save(out, facts, done, descriptor)
    assert done == facts.samples, done


def _save(out: Path, facts: IndexFacts, rows: int, descriptor: int) -> None:
    """Make rows durable, and then say so."""
    fsync_file(descriptor)
    write_facts(out / PROGRESS_FILE, facts, rows=rows)


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, place)
        left, place = left[count:], place + count


def _clear(out: Path) -> None:
    """Remove what a finished index does not have."""
    leftovers = [each for each in out.iterdir() if each.name == PROGRESS_FILE or is_temporary(each.name)]
    remove_unneeded(leftovers, Path.unlink)
    fsync_folder(out)
