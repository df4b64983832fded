"""Peak memory of python -m pipeline.shard, and of each of its workers, by the number of pictures.

    python benchmarks/sharding_memory.py [--counts 2000 20000 200000] [--size 0] [--workers 2]

Pictures are generated, small, each its own file, in folders of 1,000 as ImageNet has them. The peaks are the kernel's
(VmHWM of /proc), read all along, so that none is missed that a process had long before it ended.
"""

import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tyro

from pipeline.picture.jpeg import encoder_version

CLASS_PICTURES = 1000
LOOK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    counts: tuple[int, ...] = (2_000, 20_000, 200_000)
    """Pictures, one run each."""
    size: int = 0
    """Pixels a side that pipeline.shard is asked for."""
    pixels: int = 64
    """Pixels a side of the generated pictures."""
    workers: int = 2
    scratch: Path | None = None
    """Folder for pictures and shards; a new temporary one if not given."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(f"Python {platform.python_version()}, {platform.machine()}; {encoder_version()}; --size {options.size}")
    print(f"{'pictures':>9} {'parent':>9} {'largest worker':>15} {'seconds':>8}")
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        source, there = Path(scratch) / "source", 0
        for count in sorted(options.counts):
            make_pictures(source, there, count, options.pixels)
            there = count
            parent, worker, seconds = shard(source, Path(scratch) / f"shards-{count}", options)
            print(f"{count:9,} {parent / 2**20:6.0f} MiB {worker / 2**20:11.0f} MiB {seconds:8.1f}", flush=True)


def make_pictures(source: Path, first: int, stop: int, pixels: int) -> None:
    """The pictures numbered from first to before stop, each with pixels of its own."""
    for number in range(first, stop):
        folder = source / f"train/{number // CLASS_PICTURES:06d}"
        if number % CLASS_PICTURES == 0 or number == first:
            folder.mkdir(parents=True, exist_ok=True)
        blocks = np.random.default_rng(number).integers(0, 256, (pixels // 8, pixels // 8, 3), np.uint8)
        picture = np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1))
        (folder / f"{number:08d}.JPEG").write_bytes(simplejpeg.encode_jpeg(picture))


def shard(source: Path, out: Path, options: Options) -> tuple[int, int, float]:
    """Peak bytes of the command and of its largest worker, and how long it took."""
    command = [sys.executable, "-m", "pipeline.shard", str(source), "--out", str(out)]
    arguments = ["--size", str(options.size), "--workers", str(options.workers)]
    start = time.monotonic()
    peaks: dict[int, int] = {}
    with subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while run.poll() is None:
            for pid in (run.pid, *children(run.pid)):
                peaks[pid] = max(peaks.get(pid, 0), peak(pid))
            time.sleep(LOOK_SECONDS)
        assert run.stderr is not None and run.returncode == 0, run.stderr and run.stderr.read().decode()
    return peaks.pop(run.pid), max(peaks.values()), time.monotonic() - start


def children(pid: int) -> list[int]:
    """Processes that a process has started and not yet buried."""
    try:
        return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    except OSError:  # it has just ended
        return []


def peak(pid: int) -> int:
    """The most bytes of memory that a process has held; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
