"""Seconds that the nearest neighbours of 1, 10 and 1,000 pictures take: ours and faiss, in interleaved rounds.

    python benchmarks/retrieve.py FOLDER [--rows 1281167] [--rounds 5]

FOLDER/features.npy is made if it is not there: as many rows as ImageNet has training pictures, of 4,096 values as ReLU
leaves them (1,000 centres, noise, a third of the values zero), float16, 10.5 GB. Queries are further such rows. Before
the rounds the file is read once, so that it is in the page cache if that is large enough.

Sides: `blocks` and `faiss blocks` are our two engines on the whole file; `reading` is what no search can be faster
than, to read the file once on all cores and sum it up; IndexFlatL2, faiss's exact index, holds its rows in memory as
float32, 21 GB for all of them, so it is given as many as fit, already loaded, and `blocks` is timed on the same rows
beside it. Peak memory is of a process of its own, less what it had after a small search.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from pipeline.host.cpus import usable_cores
from service.retrieval.search import RowsFile, search

CENTRES: Final = 1000
MAKE_ROWS: Final = 8192  # at a time
READ_ROWS: Final = 256
SPARE_BYTES: Final = 3 << 30  # that are left to the system and to the search


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    folder: tyro.conf.Positional[Path]
    """Where features.npy is, or is to be made."""
    rows: int = 1_281_167
    width: int = 4096
    queries: tuple[int, ...] = (1, 10, 1000)
    k: int = 6
    rounds: int = 5
    many_rounds: int = 3
    """Rounds where there are 100 queries or more."""
    index_rows: int = 0
    """Rows of IndexFlatL2; 0: as many as fit beside the file in the page cache."""


def main() -> None:
    if sys.argv[1:2] == ["peak"]:  # the process whose memory is measured
        return print_peak(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    options = tyro.cli(Options, description=__doc__)
    cores = usable_cores()
    print(f"Python {platform.python_version()}, {_processor()}, {cores} cores, load {os.getloadavg()[0]:.1f}; ", end="")
    print(f"torch {torch.__version__}, faiss {faiss.__version__}", flush=True)
    file = make_features(options)
    index_rows = options.index_rows or _rows_that_fit(options)
    part = RowsFile(file.path, file.offset, index_rows, file.width)
    read_once(file)
    flat = faiss.IndexFlatL2(file.width)
    for start in range(0, index_rows, MAKE_ROWS):
        flat.add(part.read(start, min(start + MAKE_ROWS, index_rows)).astype(np.float32))  # type: ignore[call-arg]
    bytes = 2 * file.rows * file.width
    print(f"{file.rows:,} x {file.width:,} float16, {bytes / 1e9:.2f} GB; IndexFlatL2 holds {index_rows:,} of them")
    print(f"{'':30} {'queries':>8} {'median s':>10} {'range':>18} {'n':>3} {'of reading':>11}")
    for count in options.queries:
        measure(options, file, part, flat, count)
    for count in options.queries:
        command = [sys.executable, __file__, "peak", str(file.path), *map(str, (file.rows, file.width, count))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"peak memory, {count:,} queries: {done.stdout.strip()}")


def measure(options: Options, file: RowsFile, part: RowsFile, flat: "faiss.IndexFlatL2", count: int) -> None:
    """A line for each side; and how often IndexFlatL2 found the same rows."""
    queries = next(features(options.width, count, seed=1)).numpy()
    single = queries.astype(np.float32)
    found: dict[str, NDArray[np.int64]] = {}

    def by_flat() -> None:
        faiss.omp_set_num_threads(usable_cores())
        found["flat"] = flat.search(single, options.k)[1]  # type: ignore[call-arg]

    def by_blocks() -> None:
        found["blocks"] = search(part, queries, options.k).rows

    sides: dict[str, Callable[[], object]] = {
        "reading": lambda: read_once(file),
        "blocks": lambda: search(file, queries, options.k),
        "faiss blocks": lambda: search(file, queries, options.k, engine="faiss"),
        f"IndexFlatL2, {part.rows:,} rows": by_flat,
        f"blocks, {part.rows:,} rows": by_blocks,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rounds = options.many_rounds if count >= 100 else options.rounds
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}, {count:,} queries: {name} {seconds[name][-1]:.3f} s", file=sys.stderr)
    for name, values in seconds.items():
        ratios = [value / least for value, least in zip(values, seconds["reading"], strict=True)]
        spread = f"{min(values):.3f}-{max(values):.3f}"
        print(
            f"{name:30} {count:8,} {statistics.median(values):10.3f} {spread:>18} {rounds:3} "
            f"{statistics.median(ratios):11.2f}",
            flush=True,
        )
    same = float((np.sort(found["flat"], 1) == np.sort(found["blocks"], 1)).all(1).mean())
    print(f"IndexFlatL2 found the same rows for {same:.1%} of {count:,} queries", flush=True)


def make_features(options: Options) -> RowsFile:
    """features.npy of the size that is asked for."""
    path = options.folder / "features.npy"
    options.folder.mkdir(parents=True, exist_ok=True)
    header = {"descr": "<f2", "fortran_order": False, "shape": (options.rows, options.width)}
    if not path.exists() or np.load(path, mmap_mode="r").shape != header["shape"]:
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for block in features(options.width, options.rows, seed=0):
                stream.write(block.numpy().tobytes())
    return RowsFile(path, path.stat().st_size - 2 * options.rows * options.width, options.rows, options.width)


def features(width: int, rows: int, seed: int) -> Iterator[Tensor]:
    """Blocks of (n, width) float16: a centre, noise, ReLU."""
    centres = torch.empty(CENTRES, width).normal_(0.2, 0.7, generator=torch.Generator().manual_seed(12345))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(min(MAKE_ROWS, rows), width)
    for start in range(0, rows, MAKE_ROWS):
        count = min(MAKE_ROWS, rows - start)
        which = torch.randint(CENTRES, (count,), generator=generator)
        values: Tensor = noise[:count].normal_(0, 0.7, generator=generator)
        yield values.add_(centres[which]).relu_().half()


def read_once(file: RowsFile) -> int:
    """Read the whole file, a thread for each core, and sum it up as integers of 8 bytes."""

    def sums(start: int) -> int:
        rows = file.read(start, min(start + READ_ROWS, file.rows))
        return int(torch.from_numpy(rows).view(torch.int64).sum())

    threads = usable_cores()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return sum(pool.map(sums, range(0, file.rows, READ_ROWS)))


def print_peak(path: Path, rows: int, width: int, count: int) -> None:
    """What a search takes beyond a small one: VmHWM less VmRSS before it."""
    file = RowsFile(path, path.stat().st_size - 2 * rows * width, rows, width)
    queries = next(features(width, count, seed=1)).numpy()
    search(RowsFile(path, file.offset, min(rows, 4096), width), queries[:1], 6)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _status("VmRSS")
    search(file, queries, 6)
    print(f"{(_status('VmHWM') - before) / 1e6:,.0f} MB, {_status('VmHWM') / 1e6:,.0f} MB with torch and all libraries")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _rows_that_fit(options: Options) -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found
    free = int(found[1]) * 1024 - 2 * options.rows * options.width - SPARE_BYTES
    return max(min(options.rows, free // (4 * options.width)), MAKE_ROWS)


def _processor() -> str:
    found = re.search(r"model name\s+: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    main()
