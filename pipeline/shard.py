"""COMMAND python -m pipeline.shard: write a picture tree as WebDataset tars, once and reproducibly.

Same source, options and seed give the same bytes whatever the number of workers. The files are made in the output
folder itself, since it may be a mount point, which nothing can be renamed onto; `dataset.json` comes last and makes it
a data set.
"""

import errno
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import tyro
from rich.filesize import decimal

from pipeline.command import EXIT_DONE, InputError, end_on_signals, printable, run_command
from pipeline.executors.dask import LOCAL, is_executor, open_pool
from pipeline.executors.ordered import results_in_order
from pipeline.files import free_bytes, is_temporary, limit_remedy, remove_unneeded
from pipeline.folder import Folder, folder_at
from pipeline.host.cpus import usable_cores
from pipeline.manifest import CONTACT_FILE, DATASET_FILE, REJECTS_FILE, Dataset, Store, parse_dataset
from pipeline.picture.jpeg import encoder_version
from pipeline.picture.unusable import STATISTICS_SIZE
from pipeline.progress import progress, spinner
from pipeline.source.ilsvrc import Source, find_pictures
from pipeline.source.listing import UnreadablePicture
from pipeline.source.subset import hold_out, subset
from pipeline.write.dataset import DatasetResults, add_result, count_by_reason, no_results, write_dataset
from pipeline.write.lock import StillOwner, lock_output, remove_leftovers, require_same
from pipeline.write.metrics import ShardMetrics, serve_metrics
from pipeline.write.plan import ShardingPlan, estimated_bytes, jpeg_maker, shard_tasks
from pipeline.write.record import RECORD_SUFFIX, read_record
from pipeline.write.shard import write_shard

MOST_REJECTED: Final = 0.001  # of the pictures; more are a fault of the source


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Write the pictures of SOURCE as WebDataset shards with indexes, checksums and statistics.

    Interrupted, the same command goes on where it was.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """train/<class>/* with val/, Kaggle's ILSVRC/, ILSVRC2012_img_*.tar with the devkit, <class>/* or <class>.tar"""
    out: str = "shards"
    """folder to write, new or empty, or s3://bucket/prefix (needs the extra [s3])"""
    size: int = 256
    """pixels a side: shorter side to this, then the central square; 0 keeps the original JPEGs"""
    quality: int = 92
    """JPEG quality, 1 to 100"""
    store: Store = "jpeg"
    """jpeg, or raw: the pixels that those JPEGs decode to, in seven times the room, read without a decoder"""
    classes: int = 0
    """take only so many classes, the first ones; 0 takes all"""
    limit: int = 0
    """take only so many pictures of each class in each split, drawn by --seed; 0 takes all"""
    executor: str = LOCAL
    """who works: local, or dask://HOST:PORT of a Dask scheduler (needs the extra [dask])"""
    workers: int = field(default_factory=usable_cores)
    """local processes, as many as cores if not given; the result does not depend on it"""
    shard_samples: int = 0
    """samples a tar; 0 chooses: 2,500, fewer in a small set so that it has 16 tars"""
    val_fraction: float = 0.0
    """share of each class to hold out for validation where SOURCE has no val/, 0 to 1"""
    seed: int = 0
    """of the shuffle, of --limit's draw and of the held-out share"""
    reject_unreadable: bool = False
    """leave out pictures whose file cannot be read, as those that do not decode; else they end the run"""
    metrics_port: int | None = None
    """serve the progress to Prometheus on this port; 0 takes a free one and prints it"""
    metrics_host: str = "127.0.0.1"
    """address to serve it on"""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _require(self.size == 0 or 8 <= self.size <= 4096, "--size", self.size, "0 or 8 to 4096 pixels")
        _require(1 <= self.quality <= 100, "--quality", self.quality, "1 to 100")
        if self.store == "raw":
            _require(self.size > 0, "--size", self.size, "8 to 4096 pixels, which --store raw needs")
        _require(self.classes >= 0, "--classes", self.classes, "0 or more")
        _require(self.limit >= 0, "--limit", self.limit, "0 or more")
        _require(is_executor(self.executor), "--executor", self.executor, "local or dask://HOST:PORT")
        _require(self.workers >= 1, "--workers", self.workers, "1 or more")
        _require(self.shard_samples >= 0, "--shard-samples", self.shard_samples, "0 or more")
        _require(0 <= self.val_fraction < 1, "--val-fraction", self.val_fraction, "0 or more and less than 1")
        _require(0 <= self.seed < 2**64, "--seed", self.seed, "0 to 2**64 - 1")
        port = self.metrics_port or 0
        _require(0 <= port < 2**16, "--metrics-port", port, "0 to 65535")

    @property
    def plan(self) -> ShardingPlan:
        """What decides the data set besides the source."""
        return ShardingPlan(
            size=self.size,
            quality=self.quality,
            seed=self.seed,
            shard_samples=self.shard_samples,
            store=self.store,
        )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}, expected {expected}")


def main() -> int:
    """The command line: 0 done, or already done."""
    options = tyro.cli(ShardOptions, prog="python -m pipeline.shard")
    end_on_signals()
    try:
        return shard(options)
    except OSError as error:
        raise InputError(_explain(error, options.out)) from error
    except InputError as error:
        if isinstance(error.__cause__, UnreadablePicture):
            raise InputError(f"{error}, or give --reject-unreadable too") from error
        raise


def shard(options: ShardOptions) -> int:
    """Make the data set that `options` ask for, unless it exists; InputError when the output folder is in use."""
    with spinner(f"listing {printable(str(options.source))}"):
        listed = subset(find_pictures(options.source), options.classes, options.limit, options.seed)
    sys.stdout.write(_found(listed))
    for notice in listed.notices:
        sys.stderr.write(f"notice: {notice}\n")
    folder = folder_at(options.out)
    identity = _identity(options, listed)
    source = _with_validation(listed, options)
    if _is_complete(folder, identity):
        remove_leftovers(folder)
        return _already_sharded(folder)
    with lock_output(folder, identity) as check:
        if _is_complete(folder, identity):  # another run has finished it since the check above
            return _already_sharded(folder)
        needed = estimated_bytes(options.plan, source)
        if options.store == "raw":
            sys.stdout.write(f"--store raw: the data set will take about {decimal(round(needed))}\n")
        if folder.local:
            _require_room(folder.local, needed - sum(folder.sizes().values()))
        start = time.monotonic()
        made = _write_shards(options, folder, source, check)
        check()
        dataset = write_dataset(folder, made, identity, source.classes, jpeg_maker(options.plan, source))
        _remove_temporary_files(folder)
        out = printable(options.out)
        sys.stdout.write(_summary(dataset, made.resumed_pictures, out, time.monotonic() - start))
        sys.stdout.write(_reasons(made) + _many_rejected(dataset, out))
    return EXIT_DONE


def _is_complete(folder: Folder, identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds the data set of this identity; InputError when it holds another one."""
    if not folder.exists(DATASET_FILE):
        return False
    made = parse_dataset(folder.read(DATASET_FILE), f"{folder.place}/{DATASET_FILE}")
    require_same(folder, vars(made), identity)
    return True


def _already_sharded(folder: Folder) -> int:
    _remove_temporary_files(folder)
    sys.stdout.write(f"already sharded: {printable(folder.place)}\n")
    return EXIT_DONE


def _found(source: Source) -> str:
    classes = len(source.classes)
    lines = [
        f"found {name}: {len(pictures):,} pictures, {decimal(int(pictures.bytes.sum()))}, {source.descriptions[name]}"
        for name, pictures in source.splits.items()
    ]
    return "".join(f"{line}\n" for line in [f"found {classes:,} classes in {printable(str(source.root))}", *lines])


def _identity(options: ShardOptions, source: Source) -> dict[str, Any]:
    """The fields of Dataset that decide all the others."""
    return {
        "encoder": encoder_version(),
        "size": options.size,
        "quality": options.quality,
        "store": options.store,
        "seed": options.seed,
        "shard_samples": options.shard_samples,
        "val_fraction": options.val_fraction,
        "source_sha256": source.sha256(),
    }


def _with_validation(source: Source, options: ShardOptions) -> Source:
    if "val" in source.splits:
        _require(not options.val_fraction, "--val-fraction", options.val_fraction, f"0, since {source.root} has val/")
        return source
    if options.val_fraction:
        return hold_out(source, options.val_fraction, options.seed)
    sys.stderr.write(
        f"notice: {printable(str(source.root))} has no val/, so training skips validation; "
        "--val-fraction holds some out\n"
    )
    return source


def _require_room(out: Path, needed: float) -> None:
    if (free := free_bytes(out)) < needed:
        raise InputError(
            f"the disk of {out} has {decimal(round(free))} free, expected about {decimal(round(needed))} more for the "
            "data set; free some or give --out on another disk"
        )


def _write_shards(options: ShardOptions, folder: Folder, source: Source, check: StillOwner) -> DatasetResults:
    tasks = shard_tasks(options.plan, source, folder.address, encoder_version(), options.reject_unreadable)
    total = sum(len(pictures) for pictures in source.splits.values())
    metrics = ShardMetrics(total)
    with (
        serve_metrics(metrics, options.metrics_host, options.metrics_port),
        open_pool(options.executor, options.workers) as pool,
        progress(total, "pictures") as advance,
        results_in_order(write_shard, tasks, pool) as results,
    ):
        made = no_results(options.size or STATISTICS_SIZE, source.splits)
        for task, before in results:
            check()
            one = read_record(folder, task.name)
            add_result(made, task.split, one, before)
            metrics.observe(task.pictures, one, before)
            size = sum(picture.bytes for picture in task.pictures)
            rejected = f"{len(made.rejects):,} rejected" if made.rejects else ""
            advance(len(task.pictures), rejected, size=size, before=before)
    return made


def _remove_temporary_files(folder: Folder) -> None:
    """Remove files that only an unfinished data set needs, and temporary files of workers that died."""
    names = (name for name in folder.sizes() if name.endswith(RECORD_SUFFIX) or is_temporary(name))
    remove_unneeded(names, folder.remove)


def _summary(dataset: Dataset, before: int, out: str, seconds: float) -> str:
    samples = sum(split.samples for split in dataset.splits.values())
    parts = ", ".join(f"{name} {each.samples:,} in {len(each.shards)} shards" for name, each in dataset.splits.items())
    rate = (samples + dataset.rejected - before) / seconds
    earlier = f"; {before:,} were done by an earlier run" if before else ""
    rejected = f"{dataset.rejected:,} rejected" + (f" (see {out}/{REJECTS_FILE})" if dataset.rejected else "")
    return (
        f"{out}: {parts}; {rejected}{earlier}; {seconds:.1f} s, {rate:,.0f} pictures/s\nlook at {out}/{CONTACT_FILE}\n"
    )


def _reasons(made: DatasetResults) -> str:
    """A line for each reason for which pictures are left out."""
    return "".join(f"left out {count:,}: {printable(reason)}\n" for reason, count in count_by_reason(made.rejects))


def _many_rejected(dataset: Dataset, out: str) -> str:
    """A warning where more are left out than a sound source has."""
    pictures = dataset.rejected + sum(split.samples for split in dataset.splits.values())
    if dataset.rejected <= MOST_REJECTED * pictures:
        return ""
    return (
        f"warning: {dataset.rejected:,} of {pictures:,} pictures ({dataset.rejected / pictures:.2%}) are left out, "
        f"expected at most {MOST_REJECTED:.1%}; see why in {out}/{REJECTS_FILE} before you train\n"
    )


def _explain(error: OSError, out: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        temporary = os.path.dirname(error.filename) if error.filename else tempfile.gettempdir()
        made_in, room = (temporary, "a shard a worker") if "://" in out else (out, "the whole data set")
        what = "disk" if error.errno == errno.ENOSPC else "quota on the disk"
        return f"the {what} of {made_in} is full, expected room for {room}; free some, then run the same again"
    place = f"{error.filename}: " if error.filename else ""  # of no file: it is not the output's fault
    remedy = f"; {raise_limit}" if (raise_limit := limit_remedy(error)) else ""
    return f"{place}{error.strerror or error}; expected to read the source and write {out}{remedy}"


if __name__ == "__main__":
    run_command(main)
