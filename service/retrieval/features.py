"""The folder of an index: `features.npy`, and `features.json`, which is written last and says what it is of."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.files import open_regular, write_atomic
from pipeline.foreign import Count, checked, read_json
from service.retrieval.search import RowsFile

SCHEMA_VERSION: Final = 1
FEATURES_FILE: Final = "features.npy"
INDEX_FILE: Final = "features.json"
LARGEST: Final = float(np.finfo(np.float16).max)  # 65,504


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What an index is of. Paths may have moved since; the hashes say what is meant."""

    schema_version: int = SCHEMA_VERSION
    split: str
    samples: Count  # rows
    width: Count  # columns: units of the last hidden layer
    shards: str
    samples_sha256: str  # of the split's sample table
    dataset_sha256: str  # by which its pictures are known
    checkpoint: str
    checkpoint_sha256: str
    device: str  # cpu or gpu: what computed the rows, for the two round differently


# What another value of means another index, and what to call it; paths are shown instead of hashes.
IDENTITY: Final = {
    "split": ("split", "split"),
    "dataset_sha256": ("shards", "shards"),
    "samples_sha256": ("sample table", "shards"),
    "checkpoint_sha256": ("checkpoint", "checkpoint"),
    "width": ("width", "width"),
    "samples": ("number of samples", "samples"),
    "device": ("device", "device"),
}


@dataclass(frozen=True)
class Index:
    """A finished index."""

    path: Path
    facts: IndexFacts
    rows: RowsFile


def encode_facts(facts: IndexFacts, **more: Any) -> bytes:
    """JSON of the facts and of what else there is to say."""
    return (json.dumps({**asdict(facts), **more}, indent=1) + "\n").encode()


def decode_facts(path: Path) -> tuple[IndexFacts, Mapping[str, Any]]:
    """The facts in a file, and what else it says; InputError where it is damaged or of another version."""
    remedy = "remove the folder and index again"
    try:
        values = read_json(path)
        version = values.pop("schema_version")
        if version == SCHEMA_VERSION:
            facts = IndexFacts(**{each.name: values.pop(each.name) for each in fields(IndexFacts)[1:]})
            checked(IndexFacts, asdict(facts))
            return facts, values
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r:.300}), expected JSON of service.retrieve; {remedy}") from error
    raise InputError(f"{path} has schema version {version!r:.40}, expected {SCHEMA_VERSION}; {remedy}")


def write_facts(path: Path, facts: IndexFacts, **more: Any) -> None:
    """Write a file of facts, atomically."""
    write_atomic(path, encode_facts(facts, **more))


def check_same(folder: Path, state: str, theirs: IndexFacts, ours: IndexFacts) -> None:
    """InputError where `folder` holds an index of something else than what is asked for; state: what to call it."""
    for name, (word, shown) in IDENTITY.items():
        if getattr(theirs, name) != getattr(ours, name):
            there, here = getattr(theirs, shown), getattr(ours, shown)
            values = f"{there} there, {here} here" if there != here else f"{there}, which has changed"
            raise InputError(
                f"{folder} holds {state} index of another {word} ({values}), expected one of the same; "
                "give the same options or another --out"
            )


def open_index(folder: Path) -> Index:
    """A finished index; InputError where there is none, or where features.npy is not as long as it must be.

    Its bytes are not hashed, which would take longer than to search them; `sha256sum features.npy` is to print what
    features.json says.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, expected an index; make one with python -m service.retrieve index")
    if not (folder / INDEX_FILE).is_file():
        reason = "is unfinished" if (folder / FEATURES_FILE).exists() else "is no index"
        raise InputError(
            f"{folder} {reason}, expected one with {INDEX_FILE}; run python -m service.retrieve index to its end"
        )
    facts, _ = decode_facts(folder / INDEX_FILE)
    return Index(folder, facts, _open_rows(folder / FEATURES_FILE, facts))


def _open_rows(path: Path, facts: IndexFacts) -> RowsFile:
    shape = facts.samples, facts.width
    expected = f"expected {shape[0]:,} x {shape[1]:,} float16"
    remedy = f"copy it again, or remove {path.parent} and index again"
    try:
        with open_regular(path) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):  # the next has a header of up to 4 GiB
                raise ValueError("another format of .npy")
            there, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
            offset = stream.tell()
    except Exception as error:  # it parses Python, and raises whatever that does
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged ({reason}), {expected}; {remedy}") from error
    if there != shape or dtype != np.dtype("<f2") or by_column:
        found = f"{' x '.join(f'{each:,}' for each in there)} {dtype}{' column by column' if by_column else ''}"
        raise InputError(f"{path} holds {found}, {expected}; {remedy}")
    size, bytes = path.stat().st_size, offset + 2 * facts.samples * facts.width
    if size != bytes:
        raise InputError(f"{path} has {size:,} bytes, expected {bytes:,}; {remedy}")
    return RowsFile(path, offset, facts.samples, facts.width)


def as_float16(features: NDArray[np.float32], name: Callable[[int], str]) -> NDArray[np.float16]:
    """(n, width) features, rounded; InputError for those that are not finite or beyond float16.

    name: what to call the picture at a place of them.
    """
    largest = np.abs(features).max(1, initial=0)
    if len(beyond := np.flatnonzero(~(largest <= LARGEST))):
        place = int(beyond[0])
        raise InputError(
            f"features of {name(place)} reach {largest[place]:g}, expected finite ones up to {LARGEST:,.0f} (float16); "
            "has training diverged? give another checkpoint"
        )
    return features.astype(np.float16)
