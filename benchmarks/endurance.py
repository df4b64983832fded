"""Whether the loader stays as it is: memory, descriptors and threads over many batches of small pictures.

    python benchmarks/endurance.py [--batches 200000] [--minutes 30] [--out endurance.png]

Pictures are squares of 32 pixels with crops of 28, so that many batches fit in the time; what happens in each batch is
the same. The first tenth does not count: buffers are still being made. After it a line is fitted through the memory,
which is flat if the line rises by less than 1% of the process from end to end, or by 2 MiB. Descriptors and threads are
flat if there are no more at the end than after that tenth. Exit status 1 where something grew.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import simplejpeg
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.command import InputError, run_command
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig

SIDE, CROP, CLASSES = 32, 28, 10  # pixels, pixels, classes
BEGINNING: Final = 0.1  # of the run, not counted
FLAT, FLAT_BYTES = 0.01, 2 * 2**20
MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long."""

    batches: int = 200_000
    minutes: float = 30.0
    """It ends after these, if that comes first."""
    batch_size: int = 128
    threads: int = 0
    """The loader's; 0 means one for each core."""
    pictures: int = 20_000
    """Of the data set that is made."""
    samples: int = 400
    """How often to look, spread evenly."""
    shards: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A data set of squares instead of the one that is made."""
    store: str = "jpeg"
    """How the pictures are kept: jpeg or raw."""
    out: Path | None = None
    """PNG file for the curves."""
    json: Path | None = None
    """File for the samples."""

    def __post_init__(self) -> None:
        if self.batches < 20 or self.samples < 20:
            raise InputError(f"{self.batches} batches and {self.samples} samples, expected at least 20 of each")


class Sample(NamedTuple):
    """The process after a number of batches."""

    batches: int
    seconds: float
    resident: int  # bytes, with pages of files
    own: int  # bytes, anonymous and shared memory
    descriptors: int
    threads: int


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        shards = options.shards or make_shards(Path(scratch), options.pictures, options.store)
        samples = list(run(shards, options))
    table = np.array(samples, np.float64)
    if options.out:
        plot(table, options.out)
    if options.json:
        options.json.write_text(json.dumps([sample._asdict() for sample in samples]) + "\n")
    last = samples[-1]
    print(f"{last.batches:,} batches of {options.batch_size} in {last.seconds:,.0f} s")
    faults = list(growth(table))
    print("\n".join(faults) or "memory, descriptors and threads are flat")
    return int(bool(faults))


def make_shards(folder: Path, pictures: int, store: str) -> Path:
    """Squares of random blocks, sharded."""
    for number in range(pictures):
        place = folder / f"source/train/{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        blocks = np.random.default_rng(number).integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)
        (place / f"{number}.JPEG").write_bytes(simplejpeg.encode_jpeg(blocks.repeat(4, 0).repeat(4, 1)))
    command = [sys.executable, "-m", "pipeline.shard", str(folder / "source"), "--out", str(folder / "shards")]
    subprocess.run([*command, "--size", str(SIDE), "--store", store], check=True, stdout=subprocess.DEVNULL)
    return folder / "shards"


def run(shards: Path, options: Options) -> Iterator[Sample]:
    """What the process is while it goes through the batches."""
    config = DataConfig(shards=shards, crop=CROP, threads=options.threads)
    start, every = time.monotonic(), max(1, options.batches // options.samples)
    for number, _ in enumerate(BatchLoader(config).train(options.batch_size), start=1):
        late = time.monotonic() - start > 60 * options.minutes
        if number % every == 0 or number == options.batches or late:
            yield look(number, time.monotonic() - start)
            print(f"\r{number:,} of {options.batches:,}", end="", file=sys.stderr, flush=True)
        if number == options.batches or late:
            break
    print(file=sys.stderr)


def look(batches: int, seconds: float) -> Sample:
    """The process now."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    own = sizes["Pss_Anon"] + sizes["Pss_Shmem"]
    descriptors, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return Sample(batches, seconds, sizes["Rss"], own, descriptors, threads)


def growth(table: NDArray[np.float64]) -> Iterator[str]:
    """What grew after the beginning, and by how much; table: (samples, fields of Sample)."""
    rows = table[table[:, 0] > BEGINNING * table[-1, 0]]
    batches = rows[:, 0]
    for name, column in (("resident memory", 2), ("own memory", 3)):
        slope, _ = np.polyfit(batches, rows[:, column], 1)
        rise, most = slope * (batches[-1] - batches[0]), max(FLAT * rows[:, column].mean(), FLAT_BYTES)
        if rise > most:
            per = f"{slope * 1000 / 1024:.1f} KiB a thousand batches"
            yield f"{name} grew by {rise / MIB:.1f} MiB ({per}), expected at most {most / MIB:.1f} MiB"
    for name, column in (("descriptors", 4), ("threads", 5)):
        counts = rows[:, column]
        if counts[-1] > counts[0]:
            yield f"{name} grew from {counts[0]:.0f} to {counts[-1]:.0f}, expected no more"


def plot(table: NDArray[np.float64], out: Path) -> None:
    """Memory above, descriptors and threads below."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    batches = table[:, 0] / 1000
    above.plot(batches, table[:, 2] / MIB, label="resident, with pages of files")
    above.plot(batches, table[:, 3] / MIB, label="own")
    above.set_ylabel("memory, MiB")
    below.plot(batches, table[:, 4], label="descriptors")
    below.plot(batches, table[:, 5], label="threads")
    below.set_xlabel("thousand batches")
    below.set_ylabel("number")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    run_command(main)
