"""Shards that are made -> a finished data set: sample tables, statistics, rejects, a contact sheet, dataset.json."""

import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.command import InputError
from pipeline.folder import Folder
from pipeline.manifest import (
    CONTACT_FILE,
    DATASET_FILE,
    MEAN_FILE,
    MEAN_PICTURE,
    REJECTS_FILE,
    SAMPLES_FILE,
    Dataset,
    PictureClass,
    Shard,
    Split,
    array_bytes,
    encode_dataset,
    pictures_sha256,
)
from pipeline.picture.contact_sheet import MAX_TILES, Tile, contact_sheet
from pipeline.write.record import JpegTwin, Reject, ShardResult
from pipeline.write.stats import PixelSums, empty_sums, mean_and_colour, merge
from pipeline.write.ustar import BLOCK

_VARIABLE: Final = re.compile(
    r"""-?(?:0x[0-9a-f]+|\d+(?:[.,]\d+)*(?:e[+-]\d+)?)  # a number
    |\bb'(?:[^'\\]|\\.)*'|\bb"(?:[^"\\]|\\.)*"  # bytes""",
    re.VERBOSE,
)


@dataclass(kw_only=True)
class DatasetResults:
    """The results of all shards so far; they take 24 bytes a sample, and as many for a twin."""

    sums: PixelSums  # over the training pictures
    shards: dict[str, list[Shard]] = field(default_factory=dict)
    rows: dict[str, list[NDArray[np.void]]] = field(default_factory=dict)
    twins: dict[str, list[JpegTwin]] = field(default_factory=dict)  # of raw shards
    rejects: list[tuple[str, Reject]] = field(default_factory=list)  # each with its split
    resumed_pictures: int = 0  # pictures that an earlier run had done


def no_results(size: int, splits: Iterable[str]) -> DatasetResults:
    """Empty results for these splits; `size`: side of the pictures that the statistics are of, pixels."""
    names = list(splits)
    return DatasetResults(sums=empty_sums(size), shards={name: [] for name in names}, rows={name: [] for name in names})


def add_result(made: DatasetResults, split: str, one: ShardResult, before: bool) -> None:
    """Add the result of a split's next shard, in place; `before`: an earlier run made it."""
    made.rejects.extend((split, reject) for reject in one.rejects)
    made.resumed_pictures += before * (len(one.rows) + len(one.rejects))
    made.sums = merge(made.sums, one.sums)
    if one.shard:
        number = len(made.shards[split])
        made.shards[split].append(one.shard)
        made.rows[split].append(_numbered(one.rows, number))
        if one.twin:
            twin = JpegTwin(one.twin.shard, _numbered(one.twin.rows, number))
            made.twins.setdefault(split, []).append(twin)


def _numbered(rows: NDArray[np.void], shard: int) -> NDArray[np.void]:
    rows = rows.copy()
    rows["shard"] = shard
    return rows


def count_by_reason(rejects: Iterable[tuple[str, Reject]]) -> list[tuple[str, int]]:
    """How many pictures are left out for which reason, most first; N stands for its numbers and bytes, which vary."""
    counts = Counter(_VARIABLE.sub("N", reject.reason) for _, reject in rejects)
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def write_dataset(
    folder: Folder,
    made: DatasetResults,
    identity: Mapping[str, Any],
    classes: tuple[PictureClass, ...],
    make_jpeg: Callable[[int], bytes],
) -> Dataset:
    """Write what a data set has beside its shards, `dataset.json` last; InputError for a split without a picture.

    make_jpeg: the JPEG of the training picture of a key, made once more: raw shards do not have it for the contact
    sheet.
    """
    for split, shards in made.shards.items():
        if not shards:
            raise _nothing_usable(split, made.rejects)
    tables = {split: np.concatenate(rows) for split, rows in made.rows.items()}
    mean, colour = mean_and_colour(made.sums)
    twins = {split: np.concatenate([twin.rows for twin in each]) for split, each in made.twins.items()}
    contents = {
        **_tables(tables),
        MEAN_FILE: array_bytes(mean),
        MEAN_PICTURE: _png(mean),
        REJECTS_FILE: _json_lines(made.rejects, classes),
        CONTACT_FILE: contact_sheet(
            list(_tiles(folder, made, tables["train"], twins.get("train"), classes, make_jpeg))
        ),
    }
    for name, data in contents.items():
        folder.write(name, data)
    dataset = Dataset(
        **identity,
        classes=classes,
        splits={split: Split(samples=len(table), shards=tuple(made.shards[split])) for split, table in tables.items()},
        rejected=len(made.rejects),
        colour=colour,
        files=_hashes(contents),
    )
    if twins:
        dataset = replace(dataset, jpeg_sha256=pictures_sha256(_as_jpegs(dataset, made.twins, twins)))
    folder.write(DATASET_FILE, encode_dataset(dataset))
    return dataset


def _as_jpegs(
    dataset: Dataset, shards: Mapping[str, list[JpegTwin]], tables: Mapping[str, NDArray[np.void]]
) -> Dataset:
    """What a raw data set would be as JPEGs: its shards and its sample tables alone are others."""
    splits = {
        split: Split(samples=len(tables[split]), shards=tuple(twin.shard for twin in each))
        for split, each in shards.items()
    }
    return replace(dataset, store="jpeg", splits=splits, files={**dataset.files, **_hashes(_tables(tables))})


def _tables(tables: Mapping[str, NDArray[np.void]]) -> dict[str, bytes]:
    return {f"{split}/{SAMPLES_FILE}": array_bytes(table) for split, table in tables.items()}


def _hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def _nothing_usable(split: str, rejects: list[tuple[str, Reject]]) -> InputError:
    example = next((f"{reject.name}: {reject.reason}" for of, reject in rejects if of == split), "there are none")
    return InputError(f"no picture of {split} could be used, expected pictures that decode; {example}")


def _tiles(
    folder: Folder,
    made: DatasetResults,
    table: NDArray[np.void],
    twin: NDArray[np.void] | None,
    classes: tuple[PictureClass, ...],
    make_jpeg: Callable[[int], bytes],
) -> Iterator[Tile]:
    """The first sample of each of some classes, evenly spread over all that have one; twin: the table as JPEGs."""
    labels, first = np.unique(table["label"], return_index=True)
    chosen = np.unique(np.linspace(0, len(labels) - 1, MAX_TILES).round().astype(int))
    for label, number in zip(labels[chosen].tolist(), first[chosen].tolist(), strict=True):
        row = table[number]
        name, start = f"train/{made.shards['train'][row['shard']].name}", int(row["offset"])
        if twin is None:
            jpeg = folder.read(name, start, start + int(row["size"]))
        else:
            key = int(folder.read(name, start - BLOCK, start).partition(b".")[0])
            jpeg = make_jpeg(key)
            if zlib.crc32(jpeg) != twin[number]["crc32"]:
                raise InputError(
                    f"picture {key:08d} has changed since it was sharded, expected it as it was; shard again"
                )
        yield Tile(jpeg, classes[label].words)


def _json_lines(rejects: list[tuple[str, Reject]], classes: tuple[PictureClass, ...]) -> bytes:
    """What was left out, by split, class and name: the same lines for the same pictures, wherever they lay."""
    lines = [
        {
            "split": split,
            "class": classes[reject.label].id if reject.label >= 0 else None,
            "name": reject.name,
            "reason": reject.reason,
        }
        for split, reject in rejects
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")


def _png(mean: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.rint(mean).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
