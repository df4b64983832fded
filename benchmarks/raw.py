"""Raw shards by our loader on the CPU against a plain copy of as many bytes, and against JPEG, in one run.

    python benchmarks/raw.py RAW [--jpeg JPEG] [--batch-size 128] [--rounds 5] [--seconds 4]

The bound: as many threads copy the bytes of as many crops, each as one piece, from the same mapped files at the same
random samples into batches' memory that is used again; it checks nothing, and neither cuts nor mirrors. With CRC-32 it
also reads each file whole, as the loader does. For a GPU the loader leaves mirroring to the GPU, its batches lie in
page-locked memory (here locked by mlock, without CUDA), and the GPU's copy of them is replaced by one of the host's:
what that leaves is what the host must do, and one pass over memory more than it must. Windows take turns; each begins
with batches that are not counted.
"""

import ctypes
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.host.cpus import usable_cores
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.crops import CropConfig, parts_of
from pipeline.load.storage import Location, SampleStore
from pipeline.picture.raw import HEADER_BYTES

GPU_IMAGES = 80_000  # images/s that a GPU is to be given
# GB/s in one direction on paper: lanes times transfers a second times 128 / 130, PCI-SIG's base specifications.
LINKS = {"PCIe 4.0 x16": 31.5, "PCIe 5.0 x16": 63.0}

BOUND = "copy of the crops' bytes"
OURS = "raw, uint8"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    raw: tyro.conf.Positional[Path]
    """Folder that python -m pipeline.shard --store raw made; the sides go round its training pictures."""
    jpeg: Path | None = None
    """Folder of the same pictures as JPEGs, to measure these too."""
    crop: int = 224
    batch_size: int = 128
    rounds: int = 5
    seconds: float = 4.0
    """Length of a window."""
    threads: int = 0
    """Threads of each side; 0 means one for each core this process may use."""
    prefetch: int = 2
    """Batches that each side prepares ahead."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    threads = options.threads or usable_cores()
    made = sides(options, threads)
    rates = measure(made, options)
    print(
        f"torch {torch.__version__}, {threads} threads, prefetch {options.prefetch}, batch {options.batch_size}, ",
        end="",
    )
    print(f"crop {options.crop}, load {os.getloadavg()[0]:.1f}; n = {options.rounds}")
    crop_bytes = 3 * options.crop**2
    print(f"{'':42} {'images/s median':>15} {'range':>17} {'GB/s of crops':>14} {'of the copy':>12} {'range':>11}")
    for name, values in rates.items():
        shares = [its / bound for its, bound in zip(values, rates[BOUND], strict=True)]
        median = statistics.median(values)
        spread = f"{min(values):,.0f}-{max(values):,.0f}"
        print(
            f"{name:42} {median:15,.0f} {spread:>17} "
            f"{median * crop_bytes / 1e9:14.2f} {statistics.median(shares):12.2f} "
            f"{f'{min(shares):.2f}-{max(shares):.2f}':>11}"
        )
    for line in on_paper(crop_bytes, file_bytes(options.raw)):
        print(line)


def sides(options: Options, threads: int) -> dict[str, Iterator[int]]:
    """Endless batches of each side, made and done with: how many pictures each had."""
    raw = loader(options.raw, options, threads, "uint8")
    if raw.dataset.store != "raw":
        raise InputError(f"{options.raw} holds JPEGs, expected raw squares; shard with --store raw")
    for_device = loader(options.raw, options, threads, "uint8", ForDevice)
    store = SampleStore(options.raw, raw.dataset, "train")
    made = {
        BOUND: copies(store, options, threads, checks=False),
        "the same, and CRC-32 of the whole files": copies(store, options, threads, checks=True),
        OURS: batches(raw, options, lambda _: None),
        "raw, float32": batches(loader(options.raw, options, threads, "float32"), options, lambda _: None),
        "raw, uint8, for a device that mirrors": batches(for_device, options, lambda _: None),
        "the same, then a copy for the device's": batches(for_device, options, device_copy(locks=False)),
    }
    if can_lock():
        made["the same, page-locked"] = batches(for_device, options, device_copy(locks=True))
    if options.jpeg:
        for output in ("uint8", "float32"):
            jpeg = loader(options.jpeg, options, threads, output)
            made[f"JPEG, {output}"] = batches(jpeg, options, lambda _: None)
    return made


class ForDevice(BatchLoader):
    """Leaves to the device what it leaves to a GPU."""

    def _crop_config(self, batch_size: int) -> CropConfig:
        return replace(super()._crop_config(batch_size), mirrors=False)


def loader(
    shards: Path, options: Options, threads: int, output: str, kind: type[BatchLoader] = BatchLoader
) -> BatchLoader:
    config = DataConfig(
        shards=shards,
        crop=options.crop,
        output=output,  # pyright: ignore[reportArgumentType]
        threads=threads,
        prefetch=options.prefetch,
        tuned=False,
    )
    return kind(config)


def batches(loader: BatchLoader, options: Options, use: Callable[[torch.Tensor], None]) -> Iterator[int]:
    """Our loader's, each given to `use`."""
    for batch in loader.train(options.batch_size):
        use(batch.pictures)
        yield len(batch.pictures)


def device_copy(locks: bool) -> Callable[[torch.Tensor], None]:
    """Copies a batch once more, as the device would fetch it; locks: its memory, when it is first seen."""
    locked = set[int]()
    device: list[torch.Tensor] = []

    def copy(pictures: torch.Tensor) -> None:
        if locks and (address := pictures.data_ptr()) not in locked:
            lock(address, pictures.nbytes)
            locked.add(address)
        if not device:
            device.append(torch.empty_like(pictures))
        device[0].copy_(pictures)

    return copy


def lock(address: int, size: int) -> None:
    """Keep memory from being paged out; OSError where the limit of locked memory is too low."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)):
        raise OSError(ctypes.get_errno(), "mlock")


def can_lock() -> bool:
    trial = np.ones(64 * 2**20, np.uint8)
    try:
        lock(trial.ctypes.data, trial.nbytes)
    except OSError as error:
        print(f"no page-locked memory ({os.strerror(error.errno or 0)}); raise ulimit -l")
        return False
    return True


def copies(store: SampleStore, options: Options, threads: int, checks: bool) -> Iterator[int]:
    """Batches of plain copies, by a pool like the loader's."""
    generator, size = np.random.default_rng(1), 3 * options.crop**2
    pool, memory = ThreadPoolExecutor(threads), deque[NDArray[np.uint8]]()
    for _ in range(options.prefetch + 2):
        memory.append(np.ones((options.batch_size, size), np.uint8))  # touched: new pages cost more than the copy
    begun = deque[list[Future[None]]]()
    while True:
        while len(begun) <= options.prefetch:
            memory.rotate()
            locations = store.locate(generator.integers(0, len(store), options.batch_size))
            parts = [slice(part.start, part.stop) for part in parts_of(options.batch_size, threads)]
            begun.append([
                pool.submit(copy_part, store, locations[part], memory[0][part], checks) for part in parts
            ])  # fmt: skip
        for part in begun.popleft():
            part.result()
        yield options.batch_size


def copy_part(store: SampleStore, locations: list[Location], to: NDArray[np.uint8], checks: bool) -> None:
    for location, place in zip(locations, to, strict=True):
        (data,) = store.read([location])
        if checks:
            assert crc32(data) == location[3]
        place[...] = data[HEADER_BYTES : HEADER_BYTES + len(place)]


def measure(made: dict[str, Iterator[int]], options: Options) -> dict[str, list[float]]:
    """Images/s of each side, one window of each a round, in alternating order."""
    rates: dict[str, list[float]] = {name: [] for name in made}
    names = list(made)
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            rates[name].append(rate(made[name], options))
    return rates


def rate(side: Iterator[int], options: Options) -> float:
    """Images/s over a window of whole batches, once what was prepared ahead is used up."""
    for _ in range(2 * (options.prefetch + 1)):
        next(side)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < options.seconds:
        count += next(side)
    return count / elapsed


def file_bytes(raw: Path) -> int:
    """The length of a picture's file."""
    return BatchLoader(DataConfig(shards=raw, crop=8, tuned=False)).dataset.size ** 2 * 3 + HEADER_BYTES


def on_paper(crop_bytes: int, file_bytes: int) -> Iterator[str]:
    """What a GPU's rate asks of page cache and link."""
    link, cache = (GPU_IMAGES * size / 1e9 for size in (crop_bytes, file_bytes))
    yield f"on paper: {GPU_IMAGES:,} images/s for a GPU are {link:.1f} GB/s of crops over its link,"
    yield f"and {cache:.1f} GB/s read from the page cache, where each file's CRC-32 is checked"
    for name, rate in LINKS.items():
        yield f"on paper: {name} carries {rate} GB/s, or {rate * 1e9 / crop_bytes:,.0f} crops/s"


if __name__ == "__main__":
    main()
