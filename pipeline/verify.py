"""COMMAND python -m pipeline.verify: whether every byte of a data set is as it was written, and what is not.

`dataset.json` holds the hash of itself and of all other files but the indexes, which follow from their tars; so each
change of a byte is found. Whether the files
agree with one another is checked separately, to report which samples are affected.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.filesize import decimal

from pipeline.check.faults import Fault, first_faults
from pipeline.check.metadata import check_description, check_file, check_table, expected_names
from pipeline.check.shard import ShardCheck, ShardReport, check_shard
from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, run_command
from pipeline.executors.ordered import results_in_order
from pipeline.executors.pool import LocalPool
from pipeline.files import check_outputs, write_output
from pipeline.folder import Folder, folder_at
from pipeline.foreign import MOST_JSON
from pipeline.host.cpus import usable_cores
from pipeline.manifest import (
    DATASET_FILE,
    SAMPLES_FILE,
    TUNED_FILE,
    Dataset,
    index_name,
    parse_dataset,
)
from pipeline.progress import progress

_STDOUT: Final = "-"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Check every byte of a data set: exit 0 if all are as written, else each fault on a line and exit 1."""

    dir: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """folder of pipeline.shard, or s3://bucket/prefix (needs the extra [s3])"""
    decode: bool = False
    """also decode every JPEG whole, and check its size; of raw shards the headers are always looked at"""
    workers: int = field(default_factory=usable_cores)
    """processes, as many as cores if not given"""
    json: str = ""
    """file for a report as JSON, outside DIR; - for stdout, in place of the lines"""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.workers < 1:
            raise InputError(f"--workers is {self.workers}, expected 1 or more")
        if self.json in ("", _STDOUT):
            return
        check_outputs({"--json": Path(self.json)})
        path = Path(self.json).resolve()
        if "://" not in self.dir and path.is_relative_to(Path(self.dir).resolve()):
            raise InputError(
                f"--json is {self.json}, expected a file outside {self.dir}, which holds the data set alone"
            )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification found."""

    faults: tuple[Fault, ...]
    samples: int = 0  # in the shards that were read
    bytes: int = 0  # of those shards' tars
    seconds: float


def main() -> int:
    """The command line: 0 sound, 1 faults."""
    options = tyro.cli(VerifyOptions, prog="python -m pipeline.verify")
    end_on_signals()
    report = verify(folder_at(options.dir), decode=options.decode, workers=options.workers)
    if options.json:
        _write_json(options, report)
    if options.json != _STDOUT:
        sys.stdout.write("".join(f"{fault}\n" for fault in report.faults))
    sys.stderr.write(_summary(options.dir, report))
    return EXIT_FAULTS if report.faults else EXIT_DONE


def verify(folder: Folder, *, decode: bool = False, workers: int = 1) -> Report:
    """Read all of a data set; InputError when there is none. Memory does not grow with the size of the tars."""
    start = time.monotonic()
    there = _listing(folder)
    dataset, faults = _description(folder, there[DATASET_FILE])
    if dataset is None:
        return Report(faults=faults, seconds=time.monotonic() - start)
    found = list(_presence(dataset, there))
    for name in sorted(dataset.files.keys() & there.keys()):
        if not name.endswith(f"/{SAMPLES_FILE}"):
            found += check_file(folder, name, dataset)
    tables: dict[str, NDArray[np.void] | None] = {}
    for split in dataset.splits:
        if (size := there.get(f"{split}/{SAMPLES_FILE}")) is not None:
            tables[split], faults = check_table(folder, dataset, split, size)
            found += faults
    samples = size = 0
    tasks = _tasks(folder, dataset, there, tables, decode)
    for task, checked in _check_shards(
        tasks, sum(split.samples for split in dataset.splits.values()), len(found), workers
    ):
        found += checked.faults
        samples += task.shard.samples
        size += checked.bytes
    return Report(faults=tuple(found), samples=samples, bytes=size, seconds=time.monotonic() - start)


def _listing(folder: Folder) -> dict[str, int]:
    try:
        there = folder.sizes()
    except OSError as error:
        reason = error.strerror or error
        place = error.filename if folder.local else folder.place
        raise InputError(f"{place} cannot be listed ({reason}), expected a data set; give its folder") from error
    if DATASET_FILE not in there:
        raise InputError(
            f"{folder.place} has no {DATASET_FILE}, expected a finished data set; give its folder or run pipeline.shard"
        )
    return there


def _description(folder: Folder, size: int) -> tuple[Dataset | None, tuple[Fault, ...]]:
    """What the data set should be; None where dataset.json cannot be trusted, and so nothing else can be checked."""
    if size > MOST_JSON:
        return None, (Fault(DATASET_FILE, "bytes", f"at most {MOST_JSON:,}", f"{size:,}"),)
    try:
        dataset = parse_dataset(folder.read(DATASET_FILE), "it")
    except OSError as error:
        return None, (Fault(DATASET_FILE, "cannot be read", found=str(error.strerror or error)),)
    except InputError as error:
        return None, (Fault(DATASET_FILE, str(error)),)
    faults = check_description(dataset)
    return (None if faults else dataset), faults


def _presence(dataset: Dataset, there: dict[str, int]) -> Iterator[Fault]:
    expected = expected_names(dataset)
    yield from first_faults("missing files", (Fault(name, "missing") for name in sorted(expected - there.keys())))
    # Web consoles of object stores create an object for a folder; its name ends with a slash.
    others = sorted(name for name in there.keys() - expected - {TUNED_FILE} if name and not name.endswith("/"))
    yield from first_faults(
        "unexpected files", (Fault(name, "unexpected; it is no file of the data set") for name in others)
    )


def _tasks(
    folder: Folder, dataset: Dataset, there: dict[str, int], tables: dict[str, NDArray[np.void] | None], decode: bool
) -> Iterator[ShardCheck]:
    for name, split in dataset.splits.items():
        table, first = tables.get(name), 0
        for shard in split.shards:
            task = ShardCheck(
                folder=folder.address,
                split=name,
                shard=shard,
                rows=None if table is None else table[first : first + shard.samples],
                classes=len(dataset.classes),
                size=dataset.size,
                store=dataset.store,
                decode=decode,
                indexed=index_name(f"{name}/{shard.name}") in there,
            )
            first += shard.samples
            if task.tar in there:
                yield task


def _check_shards(
    tasks: Iterator[ShardCheck], total: int, faults: int, workers: int
) -> Iterator[tuple[ShardCheck, ShardReport]]:
    """Each shard's report; its keys are also compared with those of the shard before it."""
    last_key: dict[str, int] = {}
    with (
        progress(total, "pictures") as advance,
        results_in_order(check_shard, tasks, LocalPool(workers)) as results,
    ):
        for task, checked in results:
            faults += len(checked.faults)
            advance(task.shard.samples, f"{faults:,} faults" if faults else "", size=checked.bytes)
            above = last_key.get(task.split, -1)
            if 0 <= checked.first_key <= above:
                fault = Fault(task.tar, "first key", f"one above {above:08d}", f"{checked.first_key:08d}")
                checked = ShardReport(**{**vars(checked), "faults": (*checked.faults, fault)})
            last_key[task.split] = max(above, checked.last_key)
            yield task, checked


def _write_json(options: VerifyOptions, report: Report) -> None:
    fields = {
        "dir": options.dir,
        "sound": not report.faults,
        "decoded": options.decode,
        "samples": report.samples,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "faults": [fault._asdict() for fault in report.faults],
    }
    text = json.dumps(fields, indent=1) + "\n"
    if options.json == _STDOUT:
        sys.stdout.write(text)
        return
    write_output(Path(options.json), text.encode("ascii"), "--json")


def _summary(place: str, report: Report) -> str:
    found = f"{len(report.faults):,} faults" if report.faults else "every byte is as written"
    seconds = max(report.seconds, 1e-9)
    rates = f"{report.samples / seconds:,.0f} pictures/s, {decimal(round(report.bytes / seconds))}/s"
    return f"{place}: {found}; {report.samples:,} pictures, {decimal(report.bytes)} in {seconds:,.1f} s, {rates}\n"


if __name__ == "__main__":
    run_command(main, results=True)
