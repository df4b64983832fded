"""Images/s of our loader on the CPU, of graphs with DALI's own reader, and of libjpeg-turbo alone, in one run.

    python benchmarks/loader.py SHARDS [--batch-size 128] [--rounds 5] [--seconds 4] [--parts]

All sides read the same shards, decode with smooth chroma upsampling, and have the same threads and batches ahead. All
but libjpeg-turbo, which only decodes and so is the bound, crop at random, mirror half of the pictures and hand over
torch tensors (B, crop, crop, 3) on the host. Float32 pictures are less the mean colour and a random shift along its
principal components; for uint8 ones our batch carries the shift beside them. Windows of a few seconds take turns, and
each begins with batches that are not counted, since a side that waited has filled its queue.
"""

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import nvidia.dali
import simplejpeg
import torch
import tyro
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType

from pipeline.host.cpus import usable_cores
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.crops import parts_of
from pipeline.load.graph import DALI_TYPES, FULL_SIDE
from pipeline.load.order import samples_at
from pipeline.load.storage import Location, SampleStore
from pipeline.manifest import ColourStatistics

COLOUR_STD = 0.1  # of the shift's random factors, section 4.1
SHUFFLE_BUFFER = 1024  # pictures that the readers hold to draw from

OURS = "ours"

Output = Literal["uint8", "float32"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shards: tyro.conf.Positional[Path]
    """Folder that python -m pipeline.shard made; the sides go round its training pictures."""
    batch_size: int = 128
    rounds: int = 5
    seconds: float = 4.0
    """Length of a window."""
    threads: int = 0
    """CPU threads of each side; 0 means one for each core this process may use."""
    prefetch: int = 2
    """Batches that each side prepares ahead."""
    outputs: tuple[Output, ...] = ("uint8", "float32")
    parts: bool = False
    """Add our loader without its checksums, and without mirroring, to see what they cost."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    threads = options.threads or usable_cores()
    print(f"DALI {nvidia.dali.__version__}, torch {torch.__version__}, simplejpeg {simplejpeg.__version__}", end=", ")
    print(f"{threads} threads, prefetch {options.prefetch}, batch {options.batch_size}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"{'':32} {'images/s median':>15} {'range':>15} {'ours / it':>10} {'range':>11}   n = {options.rounds}")
    for output in options.outputs:
        report(output, measure(sides(options, output, threads), options))


def sides(options: Options, output: Output, threads: int) -> dict[str, Iterator[int]]:
    """Endless batches of each side, as the number of pictures in each."""
    config = DataConfig(
        shards=str(options.shards), output=output, threads=threads, prefetch=options.prefetch, tuned=False
    )
    loader, size = BatchLoader(config), options.batch_size
    made = {OURS: ours(loader, size), "DALI's reader": native(loader, size, cropped=False)}
    if loader.dataset.size:
        made["DALI's reader, image_crop"] = native(loader, size, cropped=True)
        made["libjpeg-turbo alone"] = decoding(loader, size)
    if options.parts:
        with mock.patch("pipeline.load.batch_loader.SampleStore", Unchecked):
            made["ours without checksums"] = ours(loader, size)
        plain = replace(config, augment=replace(config.augment, mirror=False))
        made["ours without mirroring"] = ours(BatchLoader(plain), size)
    return made


class Unchecked(SampleStore):
    """Takes all bytes for sound."""

    def read_intact(self, location: Location) -> NDArray[np.uint8]:
        """The bytes there."""
        return self.read([location])[0]


def ours(loader: BatchLoader, batch_size: int) -> Iterator[int]:
    """Our loader's batches."""
    return (len(batch.pictures) for batch in loader.train(batch_size))


def decoding(loader: BatchLoader, batch_size: int, fastdct: bool = False, fastupsample: bool = False) -> Iterator[int]:
    """Whole pictures in the order of ours, decoded by threads into memory of their own: what no loader can exceed."""
    config, side = loader.config, loader.dataset.size
    store = SampleStore(loader.root, loader.dataset, "train")
    own = threading.local()

    def decode(files: list[NDArray[np.uint8]]) -> None:
        if not hasattr(own, "pixels"):
            own.pixels = np.empty((side, side, 3), np.uint8)
        for file in files:
            simplejpeg.decode_jpeg(file, "RGB", fastdct, fastupsample, buffer=own.pixels)

    ahead = deque[list[Future[None]]]()
    with ThreadPoolExecutor(config.threads) as pool:
        for first in count(0, batch_size):
            files = store.read(store.locate(samples_at(loader.seed, len(store), first, batch_size)))
            ahead.append([pool.submit(decode, files[p.start : p.stop]) for p in parts_of(batch_size, config.threads)])
            if len(ahead) > config.prefetch:
                for part in ahead.popleft():
                    part.result()
                yield batch_size


def native(loader: BatchLoader, batch_size: int, cropped: bool) -> Iterator[int]:
    """Batches of a graph as DALI's users write it: it reads the tars through their indexes and draws by itself.

    cropped: its decoder gives the crop alone.
    """
    config, dataset = loader.config, loader.dataset
    tars = [str(loader.root / "train" / shard.name) for shard in dataset.splits["train"].shards]
    graph = Pipeline(
        batch_size=batch_size,
        num_threads=config.threads,
        device_id=None,
        prefetch_queue_depth=config.prefetch,
        seed=1,
    )
    with graph:
        read: Any = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar.removesuffix(".tar") + ".idx" for tar in tars],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=SHUFFLE_BUFFER,
        )
        jpegs, labels = read
        graph.set_outputs(transformed(jpegs, loader, cropped), labels)
    graph.build()
    while True:
        pictures, _ = graph.run()
        yield len(torch.from_dlpack(pictures.as_tensor()))


def transformed(jpegs: Any, loader: BatchLoader, cropped: bool) -> Any:
    """What our loader does to JPEG files, with draws of the graph's own."""
    config, dataset = loader.config, loader.dataset
    crop: dict[str, Any] = {"crop": (config.crop, config.crop)}
    crop |= {f"crop_pos_{axis}": fn.random.uniform(range=(0.0, 1.0)) for axis in "xy"}
    options: dict[str, Any] = {"output_type": DALIImageType.RGB, "jpeg_fancy_upsampling": True}
    if cropped:
        pictures: Any = fn.decoders.image_crop(jpegs, **crop, **options)
        crop = {}
        if loader.output == "uint8":
            return fn.flip(pictures, horizontal=fn.random.coin_flip())
    else:
        pictures = fn.decoders.image(jpegs, **options)
    if not dataset.size:
        pictures = fn.resize(pictures, size=FULL_SIDE, mode="not_smaller", interp_type=DALIInterpType.INTERP_TRIANGULAR)
    return fn.crop_mirror_normalize(
        pictures,
        **crop,
        mirror=fn.random.coin_flip(),
        mean=[0.0, 0.0, 0.0] if loader.output == "uint8" else shifted_mean(dataset.colour),
        dtype=DALI_TYPES[loader.output],
        output_layout="HWC",
    )


def shifted_mean(colour: ColourStatistics) -> Any:
    """The mean colour less a shift drawn for each picture."""
    factors: Any = fn.random.normal(shape=(3,), stddev=COLOUR_STD)
    mean: Any = Constant(np.array(colour.mean, np.float32), dtype=DALIDataType.FLOAT)
    for j, component in enumerate(components(colour)):
        mean = mean - factors[j] * Constant(component, dtype=DALIDataType.FLOAT)
    return mean


def components(colour: ColourStatistics) -> list[NDArray[np.float32]]:
    """The principal components, as long as a factor of 1 shifts along them, on 0..255."""
    return list((np.array(colour.eigenvectors) * np.array(colour.eigenvalues) / 255).T.astype(np.float32))


def measure(batches: dict[str, Iterator[int]], options: Options) -> dict[str, list[float]]:
    """Images/s of each side, one window of each a round, in alternating order."""
    rates: dict[str, list[float]] = {name: [] for name in batches}
    names = list(batches)
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            rates[name].append(rate(batches[name], options))
    return rates


def rate(batches: Iterator[int], options: Options) -> float:
    """Images/s over a window of whole batches, once what was prepared ahead is used up."""
    for _ in range(2 * (options.prefetch + 1)):
        next(batches)
    start, pictures = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < options.seconds:
        pictures += next(batches)
    return pictures / elapsed


def report(output: Output, rates: dict[str, list[float]]) -> None:
    """A line for each side; ratios are of the windows of the same round."""
    for name, values in rates.items():
        ratios = [mine / its for mine, its in zip(rates[OURS], values, strict=True)]
        print(
            f"{f'{output}: {name}':40} {statistics.median(values):7,.0f} "
            f"{f'{min(values):,.0f}-{max(values):,.0f}':>15} {statistics.median(ratios):10.2f} "
            f"{f'{min(ratios):.2f}-{max(ratios):.2f}':>11}",
            flush=True,
        )


if __name__ == "__main__":
    main()
