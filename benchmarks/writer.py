"""Pictures/s of python -m pipeline.shard and of FFCV's DatasetWriter over the same files, in interleaved rounds.

    python benchmarks/writer.py SOURCE --ffcv-python ffcv/bin/python [--rounds 5] [--pictures 4000] [--workers 2]

FFCV 1.0.2 lives in an environment of its own, since it must be compiled:

    apt-get install build-essential pkg-config libopencv-dev libturbojpeg0-dev
    python -m venv ffcv
    ffcv/bin/pip install 'setuptools<80' wheel numpy torch torchvision opencv-python-headless
    ffcv/bin/pip install --no-build-isolation ffcv==1.0.2

SOURCE is a folder with train/<class>/<pictures>; they are linked under new names as often as it takes, so that starting
processes does not decide. FFCV has its ImageNet script's way: an indexed dataset of PIL pictures, RGBImageField as
JPEG, longer side 256. The second FFCV side is given what we write, squares of 256 pixels, made by Pillow in its dataset
since FFCV has no such option. Either side's clock starts when its command has read its options and ends when its files
are complete; ours decodes, measures and checksums what it wrote, and syncs it to the disk. Of both the time and the
processor time a tenth of the pictures' run is taken off, so that starting does not count, which is nothing in an hour.
"""

import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import tyro

from pipeline.host.cpus import usable_cores
from pipeline.picture.jpeg import encoder_version

FFCV = """
import sys, time
from pathlib import Path
import ffcv.writer
from ffcv.fields import IntField, RGBImageField
from PIL import Image

SIDE = 256

class Folder:
    def __init__(self, root, square):
        classes = sorted(path for path in Path(root).iterdir())
        self.items = [(path, label) for label, each in enumerate(classes) for path in sorted(each.iterdir())]
        self.square = square

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        path, label = self.items[index]
        with open(path, "rb") as stream:
            picture = Image.open(stream).convert("RGB")
        return central_square(picture) if self.square else picture, label

def central_square(picture):
    scale = SIDE / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return picture.crop((left, top, left + SIDE, top + SIDE))

if __name__ == "__main__":
    root, out, workers, quality, square = sys.argv[1:]
    dataset = Folder(root, square == "square")
    start = time.monotonic()
    image = RGBImageField(write_mode="jpg", max_resolution=SIDE, jpeg_quality=int(quality))
    writer = ffcv.writer.DatasetWriter(out, {"image": image, "label": IntField()}, num_workers=int(workers))
    writer.from_indexed_dataset(dataset)
    print("seconds", time.monotonic() - start)
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    source: tyro.conf.Positional[Path]
    """Folder with train/<class>/<pictures>."""
    ffcv_python: Path
    """Python of the environment that FFCV is installed in."""
    rounds: int = 5
    pictures: int = 4000
    workers: int = 2
    """Processes of every side."""
    quality: int = 92
    """JPEG quality of ours and of FFCV's squares; FFCV's own pictures have its default, 90."""
    scratch: Path | None = None
    """Folder for links and output, a disk's; a new temporary one if not given."""


class Tree(NamedTuple):
    """Pictures to write."""

    root: Path
    pictures: int


class Result(NamedTuple):
    """What a side did in one run, or how two of its runs differ."""

    pictures: int
    elapsed: float  # seconds by the clock
    processor: float  # seconds of all its processes
    bytes: float  # written a picture


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(f"Python {platform.python_version()}, {platform.machine()}, {usable_cores()} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}; {options.pictures:,} pictures, {options.workers} workers; ", end="")
    print(f"ours: {encoder_version()}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        counts = options.pictures // 10, options.pictures
        trees = [link_pictures(options.source, count, Path(scratch)) for count in counts]
        report(measure(options, trees, Path(scratch)))


def link_pictures(source: Path, count: int, scratch: Path) -> Tree:
    """A tree like the source's with as many files as asked for, as hard links where the file system can."""
    root = scratch / f"source-{count}"
    files = sorted(path for path in (source / "train").glob("*/*") if path.is_file())
    for number, path in enumerate(islice(cycle(files), count)):
        link = root / "train" / path.parent.name / f"{number:07d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, link)
        except OSError:
            shutil.copyfile(path, link)
    return Tree(root, count)


def measure(options: Options, trees: list[Tree], scratch: Path) -> dict[str, list[Result]]:
    """The results of each side, one of each a round, in alternating order."""
    sides: dict[str, Callable[[Tree], Result]] = {
        "ours": lambda tree: ours(options, tree, scratch / "shards"),
        "FFCV, longer side 256": lambda tree: ffcv(options, tree, scratch, "whole", quality=90),
        "FFCV, squares of 256": lambda tree: ffcv(options, tree, scratch, "square", quality=options.quality),
    }
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            few, many = [sides[name](tree) for tree in trees]
            results[name].append(difference(many, few))
            print(
                f"round {number + 1}: {name} {many.pictures / many.elapsed:,.0f} pictures/s",
                file=sys.stderr,
                flush=True,
            )
    return results


def difference(many: Result, few: Result) -> Result:
    """A run without what any run takes, however few its pictures."""
    pictures, elapsed = many.pictures - few.pictures, many.elapsed - few.elapsed
    return Result(pictures, elapsed, many.processor - few.processor, many.bytes)


def ours(options: Options, tree: Tree, out: Path) -> Result:
    """Our command, by the rate that it prints."""
    command = [sys.executable, "-m", "pipeline.shard", str(tree.root), "--out", str(out)]
    answer, seconds = run([*command, "--workers", str(options.workers), "--quality", str(options.quality)])
    found = re.search(r"; 0 rejected; ([\d.]+) s,", answer)
    assert found, answer
    written = sum(path.stat().st_size for path in out.rglob("*.tar"))
    shutil.rmtree(out)
    return Result(tree.pictures, float(found[1]), seconds, written / tree.pictures)


def ffcv(options: Options, tree: Tree, scratch: Path, shape: str, *, quality: int) -> Result:
    """FFCV's writer, by the clock in its process."""
    script, out = scratch / "write_ffcv.py", scratch / "out.beton"
    script.write_text(FFCV)
    command = [str(options.ffcv_python), str(script), str(tree.root / "train"), str(out)]
    answer, seconds = run([*command, str(options.workers), str(quality), shape])
    found = re.search(r"seconds ([\d.]+)", answer)
    assert found, answer
    written = out.stat().st_size
    out.unlink()
    return Result(tree.pictures, float(found[1]), seconds, written / tree.pictures)


def run(command: list[str]) -> tuple[str, float]:
    """The output of a command, which must succeed, and its processor time; no earlier one's writes are in its way."""
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def report(results: dict[str, list[Result]]) -> None:
    """Two lines for each side, by the clock and by processor time; ratios are of the same round."""
    print(f"{'':22} {'':12} {'median':>8} {'range':>12} {'ours is':>8} {'range':>10}   n = {len(results['ours'])}")
    for name, values in results.items():
        line(name, "pictures/s", [rate(value) for value in values], [rate(value) for value in results["ours"]])
        line("", "per core s", [core_rate(value) for value in values], [core_rate(value) for value in results["ours"]])
        print(f"{'':22} {'bytes':12} {values[0].bytes:8,.0f}")


def rate(result: Result) -> float:
    """Pictures a second."""
    return result.pictures / result.elapsed


def core_rate(result: Result) -> float:
    """Pictures that take a second of processor time."""
    return result.pictures / result.processor


def line(name: str, unit: str, rates: list[float], ours: list[float]) -> None:
    """Median and range of a side's rates, and of how many times as fast ours are."""
    ratios = [mine / its for mine, its in zip(ours, rates, strict=True)]
    print(
        f"{name:22} {unit:12} {statistics.median(rates):8,.0f} {f'{min(rates):,.0f}-{max(rates):,.0f}':>12} "
        f"{statistics.median(ratios):8.2f} {f'{min(ratios):.2f}-{max(ratios):.2f}':>10}"
    )


if __name__ == "__main__":
    main()
