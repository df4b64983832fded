"""What each way of decoding JPEG costs and changes: images/s against PSNR to the accurate decoding.

    python benchmarks/decoding.py SHARDS [--rounds 5] [--seconds 4] [--pictures 500]
    python benchmarks/decoding.py SHARDS --train [--seeds 0 1] [--epochs 6]

The four combinations of libjpeg-turbo's integer or fast DCT and its smooth or plain upsampling of chroma, by
libjpeg-turbo alone and by our loader's threads, which also crop and mirror, over the same training pictures of a data
set of stored squares. `--data.decoding exact` is the first, `fast` the last. Windows take turns, as in
benchmarks/loader.py.

--train trains the demo's recipe with either, once for each seed, and shows the errors that `service.evaluate` finds,
which decodes exactly: what remains of the difference when a network trained on one is used on the other.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import tyro
from numpy.typing import NDArray

from loader import Options as LoaderOptions
from loader import decoding, measure
from pipeline.host.cpus import usable_cores
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.crops import CropConfig, crop_batches
from pipeline.load.inputs import Replacements, TrainInputs
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset


class Way(NamedTuple):
    """One way of decoding."""

    fastdct: bool
    fastupsample: bool

    def __str__(self) -> str:
        dct, chroma = "fast" if self.fastdct else "integer", "plain" if self.fastupsample else "smooth"
        return f"{dct} DCT, {chroma} chroma"


WAYS = [Way(dct, chroma) for dct in (False, True) for chroma in (False, True)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shards: tyro.conf.Positional[Path]
    """Folder that python -m pipeline.shard made, with a size."""
    batch_size: int = 128
    rounds: int = 5
    seconds: float = 4.0
    """Length of a window."""
    pictures: int = 500
    """Training pictures whose PSNR is taken."""
    train: bool = False
    """Train with both instead."""
    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 6
    arguments: tuple[str, ...] = ()
    """More arguments for service.train, e.g. --max-steps=10."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    dataset = load_dataset(options.shards)
    if not dataset.size or dataset.store != "jpeg":
        raise SystemExit(f"{options.shards} holds no JPEGs of one size, expected them; shard with --size 256")
    crop = dataset.size * 7 // 8  # 224 of 256
    loader = BatchLoader(DataConfig(shards=str(options.shards), crop=crop, threads=usable_cores(), tuned=False))
    if options.train:
        compare_training(options)
    else:
        compare_speed(options, loader)


def compare_speed(options: Options, loader: BatchLoader) -> None:
    """A line for each way."""
    store = SampleStore(loader.root, loader.dataset, "train")
    batches = {f"{way}, alone": decoding(loader, options.batch_size, **way._asdict()) for way in WAYS}
    batches |= {f"{way}, loader": loaded(loader, store, way, options.batch_size) for way in WAYS}
    settings = LoaderOptions(shards=options.shards, rounds=options.rounds, seconds=options.seconds)
    rates = measure(batches, settings)
    print(f"simplejpeg {simplejpeg.__version__}, {loader.config.threads} threads, n = {options.rounds}; ", end="")
    print("images/s, median (range); PSNR in dB to the first, of the mean and of the greatest error of a picture")
    print(f"{'':28} {'libjpeg-turbo alone':>24} {'our loader':>24} {'PSNR mean':>10} {'worst':>6}")
    for way in WAYS:
        speeds = [rates[f"{way}, {side}"] for side in ("alone", "loader")]
        alone, ours = (f"{statistics.median(each):,.0f} ({min(each):,.0f}-{max(each):,.0f})" for each in speeds)
        errors = squared_errors(store, way, options.pictures)
        mean, worst = psnr(statistics.mean(errors)), psnr(max(errors))
        print(f"{way!s:28} {alone:>24} {ours:>24} {mean:10.1f} {worst:6.1f}", flush=True)


def loaded(loader: BatchLoader, store: SampleStore, way: Way, batch_size: int) -> Iterator[int]:
    """Batches of our loader's threads, decoding in this way."""
    drawn: dict[str, Any] = {"seed": loader.seed, "crop_margin": loader.crop_margin, "mean": loader.mean}
    draw = TrainInputs(store, loader.config.augment, loader.dataset.colour, **drawn)
    config = CropConfig(
        batch_size=batch_size,
        side=loader.dataset.size,
        crop=loader.config.crop,
        output="uint8",
        threads=loader.config.threads,
        prefetch=loader.config.prefetch,
    )
    rows = (draw(first, batch_size) for first in count(0, batch_size))
    read = partial(decoded, way=way)
    return (len(pictures) for pictures, _ in crop_batches(store, read, rows, Replacements(store, 0, print), config))


def decoded(data: NDArray[np.uint8], scratch: NDArray[np.uint8], /, way: Way) -> NDArray[np.uint8]:
    """A picture, decoded in this way."""
    return simplejpeg.decode_jpeg(data, "RGB", way.fastdct, way.fastupsample, buffer=scratch)


def squared_errors(store: SampleStore, way: Way, most: int) -> list[float]:
    """Of each picture, the mean over its values on 0..255, against the accurate decoding."""
    found: list[float] = []
    for file in store.read(store.locate(np.arange(min(most, len(store))))):
        pixels, accurate = (simplejpeg.decode_jpeg(file, "RGB", *each).astype(np.float64) for each in (way, WAYS[0]))
        found.append(float(((pixels - accurate) ** 2).mean()))
    return found


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio, dB; infinite where all pixels are the same."""
    return 10 * math.log10(255**2 / squared_error) if squared_error else float("inf")


def compare_training(options: Options) -> None:
    """A line for each run, and the mean of each way."""
    errors: dict[str, list[float]] = {"exact": [], "fast": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for way, found in errors.items():
                top1 = trained(options, way, seed, Path(folder) / f"{way}-{seed}")
                found.append(top1)
                print(f"{way}, seed {seed}: top-1 error {top1:.2%}", flush=True)
    for way, found in errors.items():
        print(f"{way}: mean {statistics.mean(found):.2%}, n = {len(found)}")


def trained(options: Options, way: str, seed: int, out: Path) -> float:
    """The top-1 error of a network trained with pictures decoded in this way, on pictures decoded exactly."""
    shards, answer = str(options.shards), out.with_suffix(".json")
    run = ["--data.shards", shards, "--data.decoding", way, "--seed", str(seed), "--out", str(out)]
    call("service.train", "demo", *run, "--epochs", str(options.epochs), "--port", "0", *options.arguments)
    call("service.evaluate", str(out), "--shards", shards, "--json", str(answer))
    return json.loads(answer.read_text())["top1_error"]


def call(module: str, *arguments: str) -> None:
    """Run a command of the project; its words are shown if it fails."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{module}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
