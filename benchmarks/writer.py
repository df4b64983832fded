"""Pictures/s of python -m pipeline.shard and of FFCV's DatasetWriter over the same files, in interleaved rounds.

    python benchmarks/writer.py SOURCE --ffcv-python ffcv/bin/python [--rounds 5] [--pictures 4000] [--workers 2]

FFCV 1.0.2 lives in an environment of its own, since it must be compiled:

    apt-get install build-essential pkg-config libopencv-dev libturbojpeg0-dev
    python -m venv ffcv
    ffcv/bin/pip install 'setuptools<80' wheel numpy torch torchvision opencv-python-headless
    ffcv/bin/pip install --no-build-isolation ffcv==1.0.2

SOURCE is a folder with train/<class>/<pictures>; they are linked under new names as often as it takes, so that starting
processes does not decide. FFCV has its ImageNet script's way: an indexed dataset of PIL pictures, RGBImageField as JPEG,
longer side 256. The second FFCV side is given what we write, squares of 256 pixels, made by Pillow in its dataset since
FFCV has no such option. Either side's clock starts when its command has read its options and ends when its files are
complete; ours decodes, measures and checksums what it wrote, and syncs it to the disk.
"""

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import tyro

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
    print("pictures/s", len(dataset) / (time.monotonic() - start))
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


class Result(NamedTuple):
    """What a side did in one round."""

    rate: float  # pictures/s
    bytes: float  # written a picture


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(f"Python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}; {options.pictures:,} pictures, {options.workers} workers", flush=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        tree = link_pictures(options, Path(scratch) / "source")
        report(measure(options, tree, Path(scratch)))


def link_pictures(options: Options, tree: Path) -> Path:
    """A tree like the source's with as many files as asked for, as hard links where the file system can."""
    files = sorted(path for path in (options.source / "train").glob("*/*") if path.is_file())
    for number, path in enumerate(islice(cycle(files), options.pictures)):
        link = tree / "train" / path.parent.name / f"{number:07d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, link)
        except OSError:
            shutil.copyfile(path, link)
    return tree


def measure(options: Options, tree: Path, scratch: Path) -> dict[str, list[Result]]:
    """The results of each side, one of each a round, in alternating order."""
    sides = {
        "ours": lambda: ours(options, tree, scratch / "shards"),
        "FFCV, longer side 256": lambda: ffcv(options, tree, scratch, "whole", quality=90),
        "FFCV, squares of 256": lambda: ffcv(options, tree, scratch, "square", quality=options.quality),
    }
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            results[name].append(sides[name]())
            print(f"round {number + 1}: {name} {results[name][-1].rate:,.0f} pictures/s", file=sys.stderr, flush=True)
    return results


def ours(options: Options, tree: Path, out: Path) -> Result:
    """Our command, by the rate that it prints."""
    command = [sys.executable, "-m", "pipeline.shard", str(tree), "--out", str(out)]
    settings = ["--workers", str(options.workers), "--quality", str(options.quality)]
    answer = run([*command, *settings])
    found = re.search(r"([\d,]+) pictures/s", answer)
    assert found and "; 0 rejected" in answer, answer
    written = sum(path.stat().st_size for path in out.rglob("*.tar"))
    shutil.rmtree(out)
    return Result(float(found[1].replace(",", "")), written / options.pictures)


def ffcv(options: Options, tree: Path, scratch: Path, shape: str, *, quality: int) -> Result:
    """FFCV's writer, by the clock in its process."""
    script, out = scratch / "write_ffcv.py", scratch / "out.beton"
    script.write_text(FFCV)
    command = [str(options.ffcv_python), str(script), str(tree / "train"), str(out)]
    answer = run([*command, str(options.workers), str(quality), shape])
    found = re.search(r"pictures/s ([\d.]+)", answer)
    assert found, answer
    written = out.stat().st_size
    out.unlink()
    return Result(float(found[1]), written / options.pictures)


def run(command: list[str]) -> str:
    """The output of a command, which must succeed; each starts with no earlier one's writes in the way."""
    os.sync()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(results: dict[str, list[Result]]) -> None:
    """A line for each side; ratios are of the same round."""
    n = len(results["ours"])
    print(f"{'':24} {'pictures/s median':>17} {'range':>12} {'ours / it':>10} {'range':>10} {'bytes':>8}   n = {n}")
    for name, values in results.items():
        rates = [value.rate for value in values]
        ratios = [mine.rate / its for mine, its in zip(results["ours"], rates, strict=True)]
        print(
            f"{name:24} {statistics.median(rates):17,.0f} {f'{min(rates):,.0f}-{max(rates):,.0f}':>12} "
            f"{statistics.median(ratios):10.2f} {f'{min(ratios):.2f}-{max(ratios):.2f}':>10} {values[0].bytes:8,.0f}"
        )


if __name__ == "__main__":
    main()
