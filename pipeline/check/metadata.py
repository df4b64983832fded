"""Check all of a data set but its shards: whether dataset.json makes sense, the sample tables, and the other files."""

import hashlib
import io
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.check.faults import Fault, Faults
from pipeline.check.tar import HashingReader
from pipeline.folder import Folder
from pipeline.manifest import (
    CONTACT_FILE,
    DATASET_FILE,
    MEAN_FILE,
    MEAN_PICTURE,
    REJECTS_FILE,
    SAMPLE_DTYPE,
    SAMPLES_FILE,
    SPLITS,
    Dataset,
    PictureClass,
    Shard,
    Split,
    index_name,
)

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TAR: Final = re.compile(r"[0-9]{6,}\.tar")
_BESIDE: Final = (MEAN_FILE, MEAN_PICTURE, REJECTS_FILE, CONTACT_FILE)
_MOST_HEADER: Final = 4096  # bytes; numpy's of a sample table has 128


def expected_names(dataset: Dataset) -> set[str]:
    """Every file that the data set consists of."""
    tars = [f"{split}/{shard.name}" for split, each in dataset.splits.items() for shard in each.shards]
    return {DATASET_FILE, *dataset.files, *tars, *map(index_name, tars)}


def check_description(dataset: Dataset) -> tuple[Fault, ...]:
    """What makes no sense in a dataset.json that is, by its own hash, as it was written."""
    faults = Faults(DATASET_FILE)
    for what, holds, found in _requirements(dataset):
        if not holds:
            faults.report(what, found=repr(found)[:100])
    return faults.listed()


def _requirements(dataset: Dataset) -> Iterator[tuple[str, bool, object]]:
    yield "size is not a number of pixels", _count(dataset.size), dataset.size
    raw = dataset.store == "raw"
    yield "size is not that of raw squares", not raw or dataset.size != 0, dataset.size
    yield "jpeg_sha256 is no SHA-256, or of no raw squares", _is_sha256(dataset.jpeg_sha256) == raw, dataset.jpeg_sha256
    yield "rejected is not a number", _count(dataset.rejected), dataset.rejected
    for number, each in enumerate(dataset.classes):
        yield f"class {number} is not described", _is_class(number, each), each
    splits = dataset.splits
    yield (
        "splits are not train, and val and test if need be",
        "train" in splits and set(splits) <= set(SPLITS),
        [*splits],
    )
    for name, split in splits.items():
        yield f"{name} is not described", _is_split(split), split
    named = {*_BESIDE, *(f"{name}/{SAMPLES_FILE}" for name in splits)}
    yield "files are not those of such a data set", set(dataset.files) == named, [*dataset.files]
    yield "files have no SHA-256", all(map(_is_sha256, dataset.files.values())), dataset.files


def _is_class(number: int, each: PictureClass) -> bool:
    return _count(each.index) and each.index == number and isinstance(each.id, str) and isinstance(each.words, str)


def _is_split(split: Split) -> bool:
    if not split.shards or not all(map(_is_shard, split.shards)):
        return False
    numbers = [int(shard.name.removesuffix(".tar")) for shard in split.shards]
    ascending = all(one < other for one, other in pairwise(numbers))
    return ascending and _count(split.samples) and split.samples == sum(shard.samples for shard in split.shards)


def _is_shard(shard: Shard) -> bool:
    named = isinstance(shard.name, str) and _TAR.fullmatch(shard.name) is not None and shard.name.isascii()
    return named and _count(shard.samples) and shard.samples > 0 and _count(shard.bytes) and _is_sha256(shard.sha256)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # True is an int too


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def check_file(folder: Folder, name: str, dataset: Dataset) -> tuple[Fault, ...]:
    """A file against its hash; the list of rejects against their number too."""
    faults = Faults(name)
    lines = 0
    try:
        with folder.open_reader(name) as stream:
            reader = HashingReader(stream)
            for piece in reader.rest():
                lines += bytes(piece).count(b"\n")
            sha256 = reader.sha256()
    except OSError as error:
        faults.report("cannot be read", found=error.strerror or error)
        return faults.listed()
    faults.require("SHA-256", dataset.files[name], sha256)
    if name == REJECTS_FILE:
        faults.require("lines", f"{dataset.rejected:,}", f"{lines:,}")
    return faults.listed()


def check_table(
    folder: Folder, dataset: Dataset, split: str, size: int
) -> tuple[NDArray[np.void] | None, tuple[Fault, ...]]:
    """The sample table of a split, a file of `size` bytes, and its faults; None if it has any."""
    name = f"{split}/{SAMPLES_FILE}"
    faults = Faults(name)
    samples = dataset.splits[split].samples
    most = samples * SAMPLE_DTYPE.itemsize + _MOST_HEADER
    if size > most:
        faults.report("bytes", f"at most {most:,} for {samples:,} samples", f"{size:,}")
        return None, faults.listed()
    try:
        data = folder.read(name)
    except OSError as error:
        faults.report("cannot be read", found=error.strerror or error)
        return None, faults.listed()
    faults.require("SHA-256", dataset.files[name], hashlib.sha256(data).hexdigest())
    if faults.count:
        return None, faults.listed()
    table = _table(data, samples, faults)
    if table is not None:
        _check_columns(table, dataset, split, faults)
    return (None if faults.count else table), faults.listed()


def _table(data: bytes, samples: int, faults: Faults) -> NDArray[np.void] | None:
    """The rows of an .npy file; nothing of the size in its header is allocated before that size is checked."""
    stream = io.BytesIO(data)
    expected = ((samples,), False, SAMPLE_DTYPE)
    try:
        np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # it parses Python, and raises whatever that does
        faults.report("header", "of an .npy file", repr(error)[:100])
        return None
    if header != expected:
        faults.report("header", repr(expected), repr(header)[:100])
        return None
    rows = data[stream.tell() :]
    faults.require("bytes of rows", f"{samples * SAMPLE_DTYPE.itemsize:,}", f"{len(rows):,}")
    return None if faults.count else np.frombuffer(rows, SAMPLE_DTYPE)


def _check_columns(table: NDArray[np.void], dataset: Dataset, split: str, faults: Faults) -> None:
    shards = dataset.splits[split].shards
    expected = np.repeat(np.arange(len(shards)), [shard.samples for shard in shards])
    for row in np.flatnonzero(table["shard"] != expected).tolist():
        faults.report(f"row {row:,}, shard", expected[row], table["shard"][row])
    lowest = -1 if split == "test" else 0  # only ImageNet's test split has pictures without a label
    for row in np.flatnonzero((table["label"] < lowest) | (table["label"] >= len(dataset.classes))).tolist():
        faults.report(f"row {row:,}, label", f"{lowest} to {len(dataset.classes) - 1}", table["label"][row])
