"""Check all of a data set but its shards: whether dataset.json makes sense, the sample tables, and the other files."""

import hashlib
import io
from typing import Final

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
    Dataset,
    index_name,
    most_bytes,
)

_BESIDE: Final = (MEAN_FILE, MEAN_PICTURE, REJECTS_FILE, CONTACT_FILE)


def expected_names(dataset: Dataset) -> set[str]:
    """Every file that the data set consists of."""
    tars = [f"{split}/{shard.name}" for split, each in dataset.splits.items() for shard in each.shards]
    return {DATASET_FILE, *dataset.files, *tars, *map(index_name, tars)}


def check_description(dataset: Dataset) -> tuple[Fault, ...]:
    """Whether a dataset.json, which parse_dataset has found sound, names all files that verification expects."""
    faults = Faults(DATASET_FILE)
    named = {*_BESIDE, *(f"{name}/{SAMPLES_FILE}" for name in dataset.splits)}
    if set(dataset.files) != named:
        faults.report("files are not those of such a data set", found=repr([*dataset.files])[:100])
    return faults.listed()


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
    most = most_bytes(dataset, name)
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
