"""COMMAND python -m pipeline.shard: write a picture tree as WebDataset tars, once and reproducibly.

Same source, options and seed give the same bytes whatever the number of workers. The files are made in the output
folder itself, since it may be a mount point, which nothing can be renamed onto; `dataset.json` comes last and makes it
a data set.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from pipeline.archive import MadeShard, Reject, ShardTask, make_shard
from pipeline.claim import claimed, release
from pipeline.command import DONE, InputError, run_command
from pipeline.ilsvrc import Source, find_pictures, hold_out
from pipeline.manifest import (
    DATASET_FILE,
    MEAN_FILE,
    SAMPLES_FILE,
    Dataset,
    Split,
    load_dataset,
    write_array,
    write_atomic,
    write_dataset,
)
from pipeline.order import SHARD, permutation
from pipeline.picture import STATISTICS_SIZE, encoder
from pipeline.progress import progress
from pipeline.stats import PixelSums, empty_sums, finish, merge
from pipeline.workers import results_in_order

_MEAN_PICTURE: Final = "mean.png"
_REJECTS_FILE: Final = "rejects.jsonl"
_STREAMS: Final = {"train": 0, "val": 1}  # each split has its own shuffle

# A reader may hold every tar of ImageNet open (513 + 20) under the usual limit of 1,024; 75 MB each at 256 pixels.
_MOST_SHARD_SAMPLES: Final = 2500
_FEWEST_SHARD_SAMPLES: Final = 64
_SHARDS_OF_A_SMALL_SET: Final = 16  # so that workers and ranks can share it

_TAR_BYTES_A_SAMPLE: Final = 2 * 512 + 512 + 511  # two headers, the label's block, the JPEG's padding


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Write the pictures of SOURCE as WebDataset shards with indexes, checksums and statistics."""

    source: tyro.conf.Positional[Path]
    """folder with train/<class>/<pictures> and, optionally, val/<class>/<pictures>"""
    out: Path = Path("shards")
    """folder to write, new or empty"""
    size: int = 256
    """pixels a side: shorter side to this, then the central square; 0 keeps the original JPEGs"""
    quality: int = 92
    """JPEG quality, 1 to 100"""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """processes, as many as cores if not given; the result does not depend on it"""
    shard_samples: int = 0
    """samples a tar; 0 chooses: 2,500, fewer in a small set so that it has 16 tars"""
    val_fraction: float = 0.0
    """share of each class to hold out for validation where SOURCE has no val/, 0 to 1"""
    seed: int = 0
    """of the shuffle and of the held-out share"""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _require(self.size == 0 or 8 <= self.size <= 4096, "--size", self.size, "0 or 8 to 4096 pixels")
        _require(1 <= self.quality <= 100, "--quality", self.quality, "1 to 100")
        _require(self.workers >= 1, "--workers", self.workers, "1 or more")
        _require(self.shard_samples >= 0, "--shard-samples", self.shard_samples, "0 or more")
        _require(0 <= self.val_fraction < 1, "--val-fraction", self.val_fraction, "0 or more and less than 1")
        _require(0 <= self.seed < 2**64, "--seed", self.seed, "0 to 2**64 - 1")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}, expected {expected}")


def main() -> int:
    """The command line: 0 done, or already done."""
    options = tyro.cli(ShardOptions, prog="python -m pipeline.shard")
    try:
        return shard(options)
    except OSError as error:
        raise InputError(_explain(error, options.out)) from error


def shard(options: ShardOptions) -> int:
    """Make the data set that `options` ask for, or find it made; InputError when the output folder is taken."""
    listed = find_pictures(options.source)
    identity = _identity(options, listed)
    source = _with_validation(listed, options)
    if (options.out / DATASET_FILE).exists():
        _require_same(options.out, identity)
        release(options.out)
        sys.stdout.write(f"already sharded: {options.out}\n")
        return DONE
    with claimed(options.out, [*_STREAMS, MEAN_FILE, _MEAN_PICTURE, _REJECTS_FILE]):
        _require_room(options, source)
        start = time.monotonic()
        dataset = _make(options, source, identity)
        sys.stdout.write(_summary(dataset, options.out, time.monotonic() - start))
    return DONE


def _identity(options: ShardOptions, source: Source) -> dict[str, Any]:
    """The fields of Dataset that decide all the others."""
    digest = hashlib.sha256()
    for each in source.classes:
        digest.update(os.fsencode(f"{each.id}\t{each.words}\n"))
    for pictures in source.splits.values():
        for picture in pictures:
            digest.update(os.fsencode(f"{picture.path}\t{picture.bytes}\n"))
    return {
        "encoder": encoder(),
        "size": options.size,
        "quality": options.quality,
        "seed": options.seed,
        "shard_samples": options.shard_samples,
        "val_fraction": options.val_fraction,
        "source_sha256": digest.hexdigest(),
    }


def _with_validation(source: Source, options: ShardOptions) -> Source:
    if "val" in source.splits:
        _require(not options.val_fraction, "--val-fraction", options.val_fraction, f"0, since {source.root} has val/")
        return source
    if options.val_fraction:
        return hold_out(source, options.val_fraction, options.seed)
    sys.stderr.write(
        f"notice: {source.root} has no val/, so training skips validation; --val-fraction holds some out\n"
    )
    return source


def _require_same(out: Path, identity: dict[str, Any]) -> None:
    made = load_dataset(out)
    differences = [name for name, value in identity.items() if getattr(made, name) != value]
    if differences:
        described = ", ".join(f"{name} {getattr(made, name)} there, {identity[name]} here" for name in differences)
        raise InputError(f"{out} holds another data set ({described}), expected the same; give another --out")


def _require_room(options: ShardOptions, source: Source) -> None:
    pictures = [picture for split in source.splits.values() for picture in split]
    needed = sum(_most_bytes(options, picture.bytes) for picture in pictures)
    free = shutil.disk_usage(options.out).free
    if free < needed:
        raise InputError(
            f"the disk of {options.out} has {free / 1e9:.1f} GB free, expected about {needed / 1e9:.1f} GB for "
            f"{len(pictures):,} pictures; free some or give --out on another disk"
        )


def _most_bytes(options: ShardOptions, source_bytes: int) -> float:
    # Bytes a pixel over 200 ImageNet pictures at 256 pixels: 0.40 at quality 92, 0.51 at 95, 0.98 at 100.
    bytes_a_pixel = 0.5 + 0.1 * max(options.quality - 92, 0)
    jpeg = options.size**2 * bytes_a_pixel if options.size else source_bytes
    return jpeg + _TAR_BYTES_A_SAMPLE


def _make(options: ShardOptions, source: Source, identity: dict[str, Any]) -> Dataset:
    for split in source.splits:
        (options.out / split).mkdir()
    made, sums = _collect(list(_tasks(options, source)), options)
    splits = {name: _finish_split(options, name, made) for name in source.splits}
    rejects = sorted(reject for each in made for reject in each.rejects)
    write_atomic(options.out / _REJECTS_FILE, _json_lines(rejects))
    mean, colour = finish(sums)
    write_atomic(options.out / _MEAN_PICTURE, _png(mean))
    dataset = Dataset(
        **identity,
        classes=source.classes,
        splits=splits,
        rejected=len(rejects),
        colour=colour,
        mean_sha256=write_array(options.out / MEAN_FILE, mean),
    )
    write_dataset(options.out, dataset)
    return dataset


def _tasks(options: ShardOptions, source: Source) -> Iterator[ShardTask]:
    for split, pictures in source.splits.items():
        order = permutation(options.seed, SHARD, len(pictures), stream=_STREAMS[split]).tolist()
        step = options.shard_samples or _shard_samples(len(pictures))
        for number, first in enumerate(range(0, len(pictures), step)):
            yield ShardTask(
                source=source.root,
                split=split,
                path=options.out / split / f"{number:06d}.tar",
                first_key=first,
                pictures=tuple(pictures[index] for index in order[first : first + step]),
                size=options.size,
                quality=options.quality,
            )


def _shard_samples(pictures: int) -> int:
    return min(_MOST_SHARD_SAMPLES, max(_FEWEST_SHARD_SAMPLES, -(-pictures // _SHARDS_OF_A_SMALL_SET)))


def _collect(tasks: list[ShardTask], options: ShardOptions) -> tuple[list[MadeShard], PixelSums]:
    made: list[MadeShard] = []
    sums = empty_sums(options.size or STATISTICS_SIZE)
    rejected = 0
    total = sum(len(task.pictures) for task in tasks)
    with progress(total, "pictures") as advance, results_in_order(make_shard, tasks, options.workers) as results:
        for task, (result, measured) in zip(tasks, results, strict=True):
            made.append(result)
            if task.split == "train":
                sums = merge(sums, measured)
            rejected += len(result.rejects)
            advance(len(task.pictures), f"{rejected:,} rejected" if rejected else "")
    return made, sums


def _finish_split(options: ShardOptions, split: str, made: list[MadeShard]) -> Split:
    written = [(each.shard, each.rows) for each in made if each.split == split and each.shard is not None]
    if not written:
        example = next(each for each in made if each.split == split).rejects[0]
        raise InputError(
            f"no picture in {options.source}/{split} could be used, expected pictures that decode; "
            f"{example.path}: {example.reason}"
        )
    table = np.concatenate([rows for _, rows in written])
    table["shard"] = np.repeat(np.arange(len(written)), [len(rows) for _, rows in written])
    return Split(
        samples=len(table),
        shards=tuple(shard for shard, _ in written),
        table_sha256=write_array(options.out / split / SAMPLES_FILE, table),
    )


def _json_lines(rejects: list[Reject]) -> bytes:
    return "".join(json.dumps(reject._asdict()) + "\n" for reject in rejects).encode("ascii")


def _png(mean: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.rint(mean).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _summary(dataset: Dataset, out: Path, seconds: float) -> str:
    samples = sum(split.samples for split in dataset.splits.values())
    parts = ", ".join(f"{name} {each.samples:,} in {len(each.shards)} shards" for name, each in dataset.splits.items())
    rate = (samples + dataset.rejected) / seconds
    rejected = f"{dataset.rejected:,} rejected" + (f" (see {out / _REJECTS_FILE})" if dataset.rejected else "")
    return f"{out}: {parts}; {rejected}; {seconds:.1f} s, {rate:,.0f} pictures/s\n"


def _explain(error: OSError, out: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {out} is full, expected room for the whole data set; free some, then run the same again"
    return f"{error.filename or out}: {error.strerror}; expected to read the source and write {out}"


if __name__ == "__main__":
    run_command(main)
