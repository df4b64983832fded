"""What a data set is: `dataset.json`, the sample tables and the mean image.

`dataset.json` is written last, so a folder with it is finished. It holds the SHA-256 of itself and of every other file
but the indexes, which follow from their tars; this module checks what it reads against them first.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import FailFast, Field

from pipeline.command import InputError
from pipeline.files import limit_remedy, sha256_of
from pipeline.foreign import MOST_JSON, Count, Real, Seed, Sha256, checked, parse_json, read_regular, require_array
from pipeline.randomness import SHARD, permutation

SCHEMA_VERSION: Final = 2
DATASET_FILE: Final = "dataset.json"
SAMPLES_FILE: Final = "samples.npy"
MEAN_FILE: Final = "mean.npy"
MEAN_PICTURE: Final = "mean.png"
REJECTS_FILE: Final = "rejects.jsonl"
CONTACT_FILE: Final = "contact-sheet.png"
TUNED_FILE: Final = "tuned.json"  # beside a data set and no part of it: pipeline.measure.tuned
SPLITS: Final = ("train", "val", "test")  # that there may be, in this order

UNFINISHED_FILE: Final = "unfinished"  # there while a data set is being made

# `offset` is where the picture's file starts in the tar, a JPEG or an .npy; `shard` indexes the split's `shards`;
# `crc32` is of the file's bytes; `label` is -1 where a picture has none (ImageNet's test split).
SAMPLE_DTYPE: Final = np.dtype(
    [("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("crc32", "<u4")]
)

HEADER_BYTES: Final = 512  # of a member in a tar, whose bytes follow it
_STATISTICS_SIDE: Final = 256  # of the mean picture where each picture has its own size
_MOST_HEADER: Final = 4096  # bytes before what is counted; numpy's header of a sample table has 128
_MOST_REJECT: Final = 2**14  # bytes of a line of REJECTS_FILE, whose longest part is a path

Triple = tuple[Real, Real, Real]
Side = Annotated[Count, Field(le=65535)]  # pixels of a stored picture, JPEG's most; 0: each has its own size

Store = Literal["jpeg", "raw"]  # what a tar has of a picture: KEY.jpg, or its pixels as KEY.npy
SUFFIXES: Final[dict[Store, str]] = {"jpeg": ".jpg", "raw": ".npy"}
# What dataset.json does not mention: the data sets of JPEGs are older than these fields, and keep their bytes.
_UNMENTIONED: Final = (("store", "jpeg"), ("jpeg_sha256", ""))


@dataclass(frozen=True, kw_only=True)
class PictureClass:
    """One class: its label, its folder's name (a WordNet id in ImageNet), and what people call it."""

    index: Count
    id: str
    words: str

    @property
    def name(self) -> str:
        """The first of its words, or its id where it has none."""
        return self.words.partition(",")[0] or self.id


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of a split; its DALI index has the same name with `.idx`, and follows from it."""

    name: Annotated[str, Field(pattern=r"^[0-9]{6,18}\.tar$")]
    samples: Annotated[Count, Field(ge=1)]
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class Split:
    """`train`, `val` or `test`: how many samples in which tars."""

    samples: Count
    shards: Annotated[tuple[Shard, ...], FailFast(), Field(min_length=1)]


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

    schema_version: Count = SCHEMA_VERSION
    encoder: str  # name and version: another one writes other bytes
    size: Side
    quality: Count  # JPEG, 1..100
    seed: Seed
    shard_samples: Count  # as asked for; 0 means chosen by the number of pictures
    val_fraction: Real
    store: Store = "jpeg"
    source_sha256: str  # of the list of source pictures: split, class, name, bytes
    classes: Annotated[tuple[PictureClass, ...], FailFast()]
    splits: Annotated[dict[Annotated[str, Field(pattern="^(train|val|test)$")], Split], Field(max_length=len(SPLITS))]
    rejected: Count
    colour: ColourStatistics
    # SHA-256 of every file but the tars, their indexes and dataset.json, by path.
    files: Annotated[dict[str, Sha256], Field(max_length=16)]
    # Of a raw one: SHA-256 of the dataset.json that the same source and options give as JPEGs.
    jpeg_sha256: str = ""

    @property
    def suffix(self) -> str:
        """Of its pictures' files in the tars."""
        return SUFFIXES[self.store]


def pictures_sha256(dataset: Dataset) -> str:
    """By which runs know a data set's pictures, however they are stored: SHA-256 of the `dataset.json` of JPEGs."""
    return dataset.jpeg_sha256 or hashlib.sha256(encode_dataset(dataset)).hexdigest()


def shard_order(seed: int, split: str, pictures: int) -> NDArray[np.int64]:
    """The shuffle of a split: entry k is the place in the source's order of the picture with key k in the tars."""
    return permutation(seed, SHARD, pictures, stream=SPLITS.index(split))


def index_name(tar: str) -> str:
    """The DALI index of a tar."""
    return f"{tar.removesuffix('.tar')}.idx"


def load_dataset(root: Path) -> Dataset:
    """Read `root/dataset.json`; InputError when it is missing, damaged or of another schema version."""
    path = root / DATASET_FILE
    with _reading(path):
        if not root.is_dir():
            raise InputError(f"{root} is not a folder, expected shards; make them with python -m pipeline.shard")
        if not path.is_file():
            raise InputError(f"{root} has no {DATASET_FILE}, expected a finished data set; run pipeline.shard again")
        try:
            data = read_regular(path, MOST_JSON)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}), expected JSON of pipeline.shard; shard again") from error
    return parse_dataset(data, str(path))


def parse_dataset(data: bytes, where: str) -> Dataset:
    """The data set that these bytes of a `dataset.json` describe; InputError, naming `where`, unless all are sound."""
    try:
        fields = parse_json(data)
        version = fields["schema_version"]
        if version == SCHEMA_VERSION:
            checked(Dataset, fields)
            dataset = _dataset({name: value for name, value in fields.items() if name != "sha256"})
            if encode_dataset(dataset) != data:
                raise ValueError("its SHA-256 is another")
            if wrong := next(_senseless(dataset), ""):
                raise ValueError(wrong)
            return dataset
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{where} is damaged ({error!r:.400})"
        raise InputError(f"{what}, expected JSON of pipeline.shard; shard again") from error
    raise InputError(
        f"{where} has schema version {version!r:.40}, expected {SCHEMA_VERSION}; shard again with this version"
    )


def _senseless(dataset: Dataset) -> Iterator[str]:
    """What no data set can be, though each value is of its type."""
    raw = dataset.store == "raw"
    if raw and not dataset.size:
        yield "size is not that of raw squares"
    if not re.fullmatch("[0-9a-f]{64}" if raw else "", dataset.jpeg_sha256):
        yield "jpeg_sha256 is no SHA-256, or of no raw squares"
    if any(each.index != number for number, each in enumerate(dataset.classes)):
        yield "classes are not numbered in their order"
    if "train" not in dataset.splits:
        yield "splits are without train"
    for name, split in dataset.splits.items():
        if any(int(one.name[:-4]) >= int(other.name[:-4]) for one, other in pairwise(split.shards)):
            yield f"shards of {name} are not in the order of their names"
        if split.samples != sum(shard.samples for shard in split.shards):
            yield f"samples of {name} are not those of its shards"
    needed = {MEAN_FILE, *(f"{split}/{SAMPLES_FILE}" for split in dataset.splits)}
    if not needed <= dataset.files.keys() <= needed | {MEAN_PICTURE, REJECTS_FILE, CONTACT_FILE}:
        yield "files are not those of such a data set"


def encode_dataset(dataset: Dataset) -> bytes:
    """The bytes of `dataset.json`: JSON of the fields, and as the last one the SHA-256 of the JSON without it."""
    fields = asdict(dataset, dict_factory=lambda pairs: dict(pair for pair in pairs if pair not in _UNMENTIONED))
    sha256 = hashlib.sha256(_json(fields)).hexdigest()
    return _json({**fields, "sha256": sha256})


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1) + "\n").encode("ascii")


def load_samples(root: Path, dataset: Dataset, split: str) -> NDArray[np.void]:
    """The sample table of a split, (samples,) of SAMPLE_DTYPE, memory-mapped and read-only where files can be mapped.

    InputError when there is no such split, or when the file is not the one that `dataset` names.
    """
    if split not in dataset.splits:
        raise InputError(f"{root} has no split {split!r}, expected one of: {', '.join(dataset.splits)}")
    path = root / split / SAMPLES_FILE
    _verify(path, dataset.files[f"{split}/{SAMPLES_FILE}"], SAMPLE_DTYPE, (dataset.splits[split].samples,))
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:  # a file system that cannot map files
        table = np.load(path, allow_pickle=False)
    if wrong := _wrong_row(table, dataset, split):
        raise InputError(f"{path} is damaged ({wrong}), expected places in its shards; copy or shard again")
    return table


def _wrong_row(table: NDArray[np.void], dataset: Dataset, split: str) -> str:
    """The first row that is no sample of a split's shards, and why; empty where each is one."""
    shards = dataset.splits[split].shards
    numbers = np.repeat(np.arange(len(shards), dtype=np.uint32), [shard.samples for shard in shards])
    ends = np.repeat(np.array([shard.bytes for shard in shards], np.uint64), [shard.samples for shard in shards])
    sizes, offsets = table["size"].astype(np.uint64), table["offset"]
    outside = (offsets < HEADER_BYTES) | (offsets > ends) | (sizes > ends - np.minimum(offsets, ends))
    lowest = -1 if split == "test" else 0  # only ImageNet's test split has pictures without a label
    labels = (table["label"] < lowest) | (table["label"] >= len(dataset.classes))
    for column, wrong in (("shard", table["shard"] != numbers), ("offset", outside), ("label", labels)):
        if wrong.any():
            row = int(np.argmax(wrong))
            return f"row {row:,}, {column} {table[column][row]}"
    return ""


def most_bytes(dataset: Dataset, name: str) -> int:
    """The bytes that one of a data set's small files can have at most; name: as `dataset.files` has it."""
    split, _, file = name.rpartition("/")
    if file == SAMPLES_FILE:
        return dataset.splits[split].samples * SAMPLE_DTYPE.itemsize + _MOST_HEADER
    if file == MEAN_FILE:
        return 3 * 4 * (dataset.size or _STATISTICS_SIDE) ** 2 + _MOST_HEADER
    return dataset.rejected * _MOST_REJECT + _MOST_HEADER


def load_mean(root: Path, dataset: Dataset) -> NDArray[np.float32]:
    """The training set's mean picture, (size, size, 3) RGB on 0..255; InputError when it is not the one named."""
    path = root / MEAN_FILE
    side = dataset.size or _STATISTICS_SIDE
    _verify(path, dataset.files[MEAN_FILE], np.float32, (side, side, 3))
    return np.load(path, allow_pickle=False)


def array_bytes(array: NDArray[Any]) -> bytes:
    """The bytes of an `.npy` file; ValueError for an array of objects, which would need pickle."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _verify(path: Path, sha256: str, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    with _reading(path):
        if not path.is_file():
            raise InputError(f"{path} is missing, expected as {DATASET_FILE} names it; copy or shard again")
        try:
            require_array(path, dtype, shape)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}), expected as sharded; copy or shard again") from error
        if sha256_of(path) != sha256:
            raise InputError(f"{path} is damaged, expected SHA-256 {sha256}; copy or shard again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """InputError where the disk, or its permissions, do not let a file be read."""
    try:
        yield
    except OSError as error:
        remedy = limit_remedy(error) or "mend that, or give another"
        raise InputError(f"{path} cannot be read ({error.strerror}), expected a finished data set; {remedy}") from error


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
