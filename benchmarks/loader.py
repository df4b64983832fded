"""Images/s of our loader on the CPU, of a graph with DALI's own reader, and of webdataset with Pillow, in one run.

    python benchmarks/loader.py SHARDS [--batch-size 128] [--rounds 5] [--seconds 4]

All sides read the same shards, decode with smooth chroma upsampling, crop at random, mirror half of the pictures and
hand over torch tensors (B, crop, crop, 3) on the host. Float32 pictures are less the mean colour and a random shift
along its principal components; for uint8 ones our batch carries the shift beside them. The DALI sides have the same
threads and prefetch. Windows of a few seconds take turns, and each begins with batches that are not counted, since a
side that waited has filled its queue.
"""

import io
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import nvidia.dali
import torch
import tyro
import webdataset
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType
from PIL import Image
from webdataset.compat import WebDataset

from pipeline.host.cpus import usable_cores
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.graph import DALI_TYPES, FULL_SIDE
from pipeline.manifest import ColourStatistics, Dataset

COLOUR_STD = 0.1  # of the shift's random factors, section 4.1
SHUFFLE_BUFFER = 1024  # pictures that the readers hold to draw from

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
    """DALI's CPU threads on either side; 0 means one for each core this process may use."""
    prefetch: int = 2
    """Batches that DALI prepares ahead on either side."""
    outputs: tuple[Output, ...] = ("uint8", "float32")
    pillow: bool = True
    """Whether webdataset with Pillow takes part: one process, no threads."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    threads = options.threads or usable_cores()
    print(f"DALI {nvidia.dali.__version__}, torch {torch.__version__}, webdataset {webdataset.__version__}", end=", ")
    print(f"{threads} DALI threads, prefetch {options.prefetch}, batch {options.batch_size}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"{'':32} {'images/s median':>15} {'range':>15} {'ours / it':>10} {'range':>11}   n = {options.rounds}")
    for output in options.outputs:
        report(output, measure(sides(options, output, threads), options))


def sides(options: Options, output: Output, threads: int) -> dict[str, Iterator[torch.Tensor]]:
    """Endless batches of each side."""
    config = DataConfig(shards=options.shards, output=output, threads=threads, prefetch=options.prefetch)
    loader = BatchLoader(config)
    made = {
        "ours": ours(loader, options.batch_size),
        "fn.readers.webdataset": native(loader, options.batch_size),
    }
    if options.pillow and loader.dataset.size:
        made["webdataset + Pillow, 1 process"] = pillow(loader, options.batch_size)
    return made


def ours(loader: BatchLoader, batch_size: int) -> Iterator[torch.Tensor]:
    """Our loader's pictures."""
    return (batch.pictures for batch in loader.train(batch_size))


def native(loader: BatchLoader, batch_size: int) -> Iterator[torch.Tensor]:
    """Pictures of a graph that reads the tars through their indexes and draws in the graph."""
    config, dataset = loader.config, loader.dataset
    tars = [str(config.shards / "train" / shard.name) for shard in dataset.splits["train"].shards]
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
        graph.set_outputs(transformed(jpegs, loader), labels)
    graph.build()
    while True:
        pictures, _ = graph.run()
        yield torch.from_dlpack(pictures.as_tensor())


def transformed(jpegs: Any, loader: BatchLoader) -> Any:
    """What our graph does to JPEG files, with draws of the graph's own."""
    config, dataset = loader.config, loader.dataset
    pictures: Any = fn.decoders.image(jpegs, device="cpu", output_type=DALIImageType.RGB, jpeg_fancy_upsampling=True)
    if not dataset.size:
        pictures = fn.resize(pictures, size=FULL_SIDE, mode="not_smaller", interp_type=DALIInterpType.INTERP_TRIANGULAR)
    return fn.crop_mirror_normalize(
        pictures,
        crop=(config.crop, config.crop),
        crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
        crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
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


def pillow(loader: BatchLoader, batch_size: int) -> Iterator[torch.Tensor]:
    """Pictures as the webdataset library reads them, with Pillow and numpy for the rest."""
    config, dataset = loader.config, loader.dataset
    tars = [str(config.shards / "train" / shard.name) for shard in dataset.splits["train"].shards]
    reader: Any = WebDataset(tars, shardshuffle=len(tars), seed=1)
    samples = reader.shuffle(SHUFFLE_BUFFER).repeat()
    generator = np.random.default_rng(1)
    pictures = (picture(sample["jpg"], dataset, loader, generator) for sample in samples)
    while True:
        yield torch.from_numpy(np.stack(list(itertools.islice(pictures, batch_size))))


def picture(jpeg: bytes, dataset: Dataset, loader: BatchLoader, generator: np.random.Generator) -> NDArray[Any]:
    """One picture decoded, cropped, mirrored and, as float32, normalised."""
    crop = loader.config.crop
    y, x = generator.integers(0, loader.crop_margin, 2, endpoint=True)
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))[y : y + crop, x : x + crop]
    pixels = pixels[:, ::-1] if generator.integers(2) else pixels
    if loader.output == "uint8":
        return pixels
    shift = generator.normal(0, COLOUR_STD, 3) @ np.stack(components(dataset.colour))
    return pixels - (np.array(dataset.colour.mean) - shift).astype(np.float32)


def measure(batches: dict[str, Iterator[torch.Tensor]], options: Options) -> dict[str, list[float]]:
    """Images/s of each side, one window of each a round, in alternating order."""
    rates: dict[str, list[float]] = {name: [] for name in batches}
    names = list(batches)
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            rates[name].append(rate(batches[name], options))
    return rates


def rate(batches: Iterator[torch.Tensor], options: Options) -> float:
    """Images/s over a window of whole batches, once what was prepared ahead is used up."""
    for _ in range(2 * (options.prefetch + 1)):
        next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < options.seconds:
        count += len(next(batches))
    return count / elapsed


def report(output: Output, rates: dict[str, list[float]]) -> None:
    """A line for each side; ratios are of the windows of the same round."""
    for name, values in rates.items():
        ratios = [mine / its for mine, its in zip(rates["ours"], values, strict=True)]
        print(
            f"{f'{output}: {name}':40} {statistics.median(values):7,.0f} "
            f"{f'{min(values):,.0f}-{max(values):,.0f}':>15} {statistics.median(ratios):10.2f} "
            f"{f'{min(ratios):.2f}-{max(ratios):.2f}':>11}",
            flush=True,
        )


if __name__ == "__main__":
    main()
