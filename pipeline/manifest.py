"""What a data set is: `dataset.json`, the sample tables, the mean image, and how files reach the disk whole.

`dataset.json` is written last, so a folder with it is finished. What is read back is first held against its SHA-256.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError

SCHEMA_VERSION: Final = 1
DATASET_FILE: Final = "dataset.json"
SAMPLES_FILE: Final = "samples.npy"
MEAN_FILE: Final = "mean.npy"

# `offset` is where the JPEG bytes start in the tar; `shard` indexes the split's `shards`; `crc32` is of the JPEG bytes.
SAMPLE_DTYPE: Final = np.dtype(
    [("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("crc32", "<u4")]
)

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class PictureClass:
    """One class: its label, its folder's name (a WordNet id in ImageNet), and what people call it."""

    index: int
    id: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of a split; its DALI index has the same name with `.idx`."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """`train` or `val`: how many samples in which tars, and the hash of the sample table."""

    samples: int
    shards: tuple[Shard, ...]
    table_sha256: str


@dataclass(frozen=True, kw_only=True)
class ColourStatistics:
    """Principal components of the training set's RGB values, all on 0..255 (Krizhevsky et al. 2012, section 4.1).

    Eigenvalues (variances) descend; column j of `eigenvectors` belongs to eigenvalue j; `standard_deviations` are the
    eigenvalues' square roots.
    """

    mean: Triple
    eigenvalues: Triple
    eigenvectors: tuple[Triple, Triple, Triple]
    standard_deviations: Triple


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Everything `dataset.json` says: the contents, and the options they follow from."""

    schema_version: int = SCHEMA_VERSION
    encoder: str  # name and version: another one writes other bytes
    size: int  # pixels a side; 0 means that each picture has its own size
    quality: int  # JPEG, 1..100
    seed: int
    shard_samples: int  # as asked for; 0 means chosen by the number of pictures
    val_fraction: float
    source_sha256: str  # of the list of source files: split, path, bytes
    classes: tuple[PictureClass, ...]
    splits: dict[str, Split]
    rejected: int
    colour: ColourStatistics
    mean_sha256: str


def load_dataset(root: Path) -> Dataset:
    """Read `root/dataset.json`; InputError when it is missing, damaged or of another schema version."""
    path = root / DATASET_FILE
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, expected shards; make them with python -m pipeline.shard")
    if not path.is_file():
        raise InputError(f"{root} has no {DATASET_FILE}, expected a finished data set; run pipeline.shard again")
    try:
        fields = json.loads(path.read_bytes())
        version = fields["schema_version"]
        if version == SCHEMA_VERSION:
            return _dataset(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}), expected JSON of pipeline.shard; shard again") from error
    raise InputError(f"{path} has schema version {version}, expected {SCHEMA_VERSION}; shard again with this version")


def load_samples(root: Path, dataset: Dataset, split: str) -> NDArray[np.void]:
    """The sample table of a split, (samples,) of SAMPLE_DTYPE, read-only and memory-mapped.

    InputError when there is no such split, or when the file is not the one that `dataset` names.
    """
    if split not in dataset.splits:
        raise InputError(f"{root} has no split {split!r}, expected one of: {', '.join(dataset.splits)}")
    path = root / split / SAMPLES_FILE
    _verify(path, dataset.splits[split].table_sha256)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def load_mean(root: Path, dataset: Dataset) -> NDArray[np.float32]:
    """The training set's mean picture, (size, size, 3) RGB on 0..255; InputError when it is not the one named."""
    path = root / MEAN_FILE
    _verify(path, dataset.mean_sha256)
    return np.load(path, allow_pickle=False)


def write_dataset(root: Path, dataset: Dataset) -> None:
    """Write `dataset.json`: the last act of sharding, which makes `root` a finished data set."""
    write_atomic(root / DATASET_FILE, (json.dumps(asdict(dataset), indent=1) + "\n").encode())


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Write one `.npy` file durably; its SHA-256."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_atomic(path, stream.getvalue())
    return hashlib.sha256(stream.getbuffer()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably: after a crash it holds all of it, or what it held before."""
    with replacing(path) as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[io.BufferedRandom]:
    """A file to write and read under a temporary name beside `path`; fsynced and renamed if the block succeeds."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is on disk only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing, expected as {DATASET_FILE} names it; copy or shard again")
    if sha256_of(path) != sha256:
        raise InputError(f"{path} is damaged, expected SHA-256 {sha256}; copy or shard again")


def _dataset(fields: dict[str, Any]) -> Dataset:
    return Dataset(
        **{
            **fields,
            "classes": tuple(PictureClass(**each) for each in fields["classes"]),
            "splits": {name: _split(split) for name, split in fields["splits"].items()},
            "colour": ColourStatistics(**{name: _tuples(value) for name, value in fields["colour"].items()}),
        }
    )


def _split(fields: dict[str, Any]) -> Split:
    return Split(**{**fields, "shards": tuple(Shard(**shard) for shard in fields["shards"])})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
