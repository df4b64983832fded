"""Samples/s read from a cold disk, without decoding: the global shuffle beside the block shuffle.

    python benchmarks/reading.py [--folder /mnt/disk] [--samples 40000]

Makes a data set of random bytes laid out as shards are, drops its pages from memory, and reads one epoch in the order
of training, each sample held against its CRC. Three times: on the disk as it is; on one that is slowed down; and in
less memory than the data set, two epochs. The last two by a control group, of version 1 or 2, which needs root: where
none can be made they are skipped, saying so.

Each figure is of a process of its own. "read/used" is what the kernel counts as read from the disk for it, by bytes
that were used: 1.0 is no byte in vain or twice. The shuffles take turns; --rounds gives median and range.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import tyro

from callback import Options as MadeOptions
from callback import disk_bytes, drop_pages, write_data_set
from pipeline.load.augment import AugmentConfig
from pipeline.load.inputs import TrainInputs
from pipeline.load.order import Shuffle
from pipeline.load.read_ahead import ask_for_blocks, ask_for_samples, asked_ahead
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset

GROUPS = Path("/sys/fs/cgroup")
NAME = "reading-benchmark"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    folder: Path | None = None
    """Where to make the data set, on the disk to be measured; a temporary folder if not given."""
    samples: int = 40_000
    """Pictures of the data set."""
    picture_bytes: int = 20_000
    """Mean size of a picture."""
    batch_size: int = 128
    block_samples: int = 256
    window_blocks: int = 16
    read_ahead: int = 64
    """Megabytes asked for early."""
    rounds: int = 3
    slow_mbytes: float = 60.0
    """MB/s of the disk that is slowed down."""
    slow_requests: int = 200
    """Requests/s of that disk; a hard disk makes 100 to 200."""
    memory_share: float = 0.3
    """Memory of the last part, by the data set's size; what Python itself takes is added."""


@dataclass(frozen=True)
class Figures:
    """Of one epoch or more."""

    samples: int
    used: int  # bytes
    seconds: float
    first: float  # seconds to the first batch
    read: int  # bytes, from the disk


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        made = MadeOptions(samples=options.samples, picture_bytes=options.picture_bytes)
        write_data_set(root, made)
        os.sync()
        size = sum(path.stat().st_size for path in root.rglob("*.tar"))
        print(f"{options.samples:,} samples, {size / 1e6:,.0f} MB, medians of {options.rounds}")
        compare("the disk as it is", root, options, [], epochs=1)
        disk = f"{options.slow_mbytes:g} MB/s, {options.slow_requests} requests/s"
        limited(f"a slow disk: {disk}", root, options, slow_disk(root, options), epochs=1)
        memory = int(size * options.memory_share) + 64 * 2**20
        limited(f"{memory / 1e6:,.0f} MB of memory, two epochs", root, options, little_memory(memory), epochs=2)


def limited(name: str, root: Path, options: Options, settings: "Settings", epochs: int) -> None:
    """The same in a control group, if it can be made."""
    try:
        with control_groups(settings) as groups:
            compare(name, root, options, groups, epochs)
    except OSError as error:
        print(f"\n{name}: skipped, no control group can be made ({error})")


def compare(name: str, root: Path, options: Options, groups: list[str], epochs: int) -> None:
    print(f"\n{name}\n{'':8}{'samples/s':>24}{'MB/s':>8}{'first batch':>14}{'read/used':>12}", flush=True)
    found: dict[str, list[Figures]] = {"global": [], "block": []}
    for _ in range(options.rounds):
        for kind, figures in found.items():
            drop_pages(root)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                figures.append(process.submit(measure, str(root), kind, options, groups, epochs).result())
    for kind, figures in found.items():
        rates = sorted(each.samples / each.seconds for each in figures)
        rate = f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})"
        mbytes = statistics.median(each.used / each.seconds / 1e6 for each in figures)
        first = statistics.median(each.first for each in figures)
        read = statistics.median(each.read / each.used for each in figures)
        print(f"{kind:8}{rate:>24}{mbytes:>8.0f}{first:>12.2f} s{read:>12.2f}", flush=True)


def measure(root: str, kind: str, options: Options, groups: list[str], epochs: int) -> Figures:
    """Read `epochs` in training's order, in these control groups."""
    for group in groups:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    dataset = load_dataset(Path(root))
    store = SampleStore(Path(root), dataset, "train")
    shuffle = Shuffle(
        kind="block" if kind == "block" else "global",
        block_samples=options.block_samples,
        window_blocks=options.window_blocks,
    )
    ask = ask_for_blocks(store, 0, shuffle) if shuffle.by_block(len(store)) else ask_for_samples(store)
    inputs = TrainInputs(store, AugmentConfig(), dataset.colour, seed=0, crop_margin=0, mean=None, shuffle=shuffle)
    rows = (inputs(first, options.batch_size) for first in count(0, options.batch_size))
    ahead = asked_ahead(rows, ask, batches=2, most_bytes=options.read_ahead * 10**6)
    inputs(0, 1)  # draws a block of positions, which is not reading
    before, start, first, used, samples = disk_bytes(), time.perf_counter(), 0.0, 0, 0
    while samples < epochs * len(store):
        for location in next(ahead).locations:
            assert store.is_intact(location)
            used, samples = used + location[2], samples + 1
        first = first or time.perf_counter() - start
    return Figures(samples, used, time.perf_counter() - start, first, disk_bytes() - before)


# Of a control group: the controller, and the files with what is written to them, of version 1 and of version 2.
Settings = list[tuple[str, dict[str, str], dict[str, str]]]


def slow_disk(root: Path, options: Options) -> Settings:
    device, rate = whole_disk(root), int(options.slow_mbytes * 1e6)
    one = {
        "blkio.throttle.read_bps_device": f"{device} {rate}",
        "blkio.throttle.read_iops_device": f"{device} {options.slow_requests}",
    }
    return [("blkio", one, {"io.max": f"{device} rbps={rate} riops={options.slow_requests}"})]


def little_memory(most: int) -> Settings:
    return [("memory", {"memory.limit_in_bytes": str(most)}, {"memory.max": str(most)})]


def whole_disk(root: Path) -> str:
    """MAJOR:MINOR of the disk that a folder is on; of a partition the disk's. Where it is none, no group takes it."""
    number = root.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    at = Path("/sys/dev/block", device).resolve()
    return (at.parent / "dev").read_text().strip() if (at / "partition").exists() else device


@contextmanager
def control_groups(settings: Settings) -> Iterator[list[str]]:
    """Folders of new groups with these settings; OSError where they cannot be made."""
    made: list[Path] = []
    new = (GROUPS / "cgroup.controllers").exists()
    try:
        for controller, first, second in settings:
            folder = GROUPS / NAME if new else GROUPS / controller / NAME
            if new:
                (GROUPS / "cgroup.subtree_control").write_text("+io +memory")
            folder.mkdir()
            made.append(folder)
            for name, value in (second if new else first).items():
                (folder / name).write_text(value)
        yield [str(folder) for folder in made]
    finally:
        for folder in made:
            folder.rmdir()


if __name__ == "__main__":
    main()
