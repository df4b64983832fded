"""What is measured: reading, decoding, the whole loader, the loader with a consumer, and what bounds them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from pipeline.host.cpus import usable_cores
from pipeline.load.batch_loader import Batch, BatchLoader
from pipeline.load.config import PREFETCH, DataConfig
from pipeline.load.crops import decode_square
from pipeline.load.graph import Device, square_side
from pipeline.load.order import samples_at
from pipeline.load.storage import Location, SampleStore
from pipeline.measure.gpu import copy_window, engine_use
from pipeline.measure.windows import Side, Stream, Window, Work, clear_peak, own_memory, status_bytes, time_stream

READING: Final = "reading"
DECODING: Final = "decoding"
COPYING: Final = "copying"  # in its place where pixels are stored
LOADER: Final = "loader"
CONSUMED: Final = "loader and consumer"
_CHUNK: Final = 16  # pictures that a thread takes at once, so that threads end together
_BOUND_PICTURES: Final = 4096  # at most, which the bound goes round: they are read before, and so in memory
_BOUND_BYTES: Final = 256e6


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all sides work on."""

    data: DataConfig
    split: str
    batch_size: int
    device: Device
    hold_seconds: float = 0.0  # for which a consumer keeps a batch; 0: as long as it copies it

    @property
    def threads(self) -> int:
        return self.data.threads or usable_cores()

    @property
    def ahead(self) -> int:
        return self.data.prefetch or PREFETCH

    @property
    def warm_up(self) -> int:
        """Batches that are not counted: more than the queue holds."""
        return 2 * (self.ahead + 1)


class Pictures:
    """A split's stored pictures, for sides that work on them without a loader."""

    def __init__(self, task: Task, loader: BatchLoader):
        self.store = SampleStore(loader.root, loader.dataset, task.split)
        self.size, self.raw = loader.dataset.size, loader.dataset.store == "raw"
        self.seed, self.shuffle = loader.seed, loader.shuffle
        self.mean_bytes = float(self.store.table["size"].mean())
        self._fast = task.data.decoding == "fast"
        self._scratch = threading.local()

    def batches(self, batch_size: int) -> Iterator[list[Location]]:
        """Batches in an order of training, endlessly."""
        for first in count(0, batch_size):
            yield self.store.locate(samples_at(self.seed, len(self.store), first, batch_size, self.shuffle))

    def check(self, location: Location) -> None:
        """Read all of a sample's bytes, as the loader does before it decodes them."""
        self.store.is_intact(location)

    def decode(self, data: NDArray[np.uint8]) -> None:
        """A sample's bytes to the pixels of its whole picture, in a buffer of the thread's own."""
        if self.raw:
            pixels = data[-self.size * self.size * 3 :]
            np.copyto(self._buffer()[: len(pixels)], pixels)
            return
        with suppress(ValueError):  # it is damaged, which the loader tells
            if self.size:
                decode_square(data, self._buffer().reshape(self.size, self.size, 3), self._fast)
            else:
                simplejpeg.decode_jpeg(data, "RGB", self._fast, self._fast)

    def _buffer(self) -> NDArray[np.uint8]:
        if not hasattr(self._scratch, "buffer"):
            self._scratch.buffer = np.zeros(self.size * self.size * 3, np.uint8)
        return self._scratch.buffer


def stage_sides(task: Task, loader: BatchLoader, pictures: Pictures) -> list[Side]:
    """Reading, decoding, the loader, the loader with a consumer."""
    name = COPYING if pictures.raw else DECODING
    work = {READING: pictures.check, name: lambda location: pictures.decode(pictures.store.read([location])[0])}
    stages = [_threads_side(name, task, pictures, each) for name, each in work.items()]
    loaded = [
        loader_side(LOADER, task, pictures.mean_bytes, loader),
        loader_side(CONSUMED, task, pictures.mean_bytes, loader, consume=consumer(task)),
    ]
    return stages + loaded


def bound_side(task: Task, loader: BatchLoader, pictures: Pictures) -> Side:
    """What the machine allows: decoding alone, a copy where nothing is decoded, or the copy to a GPU that decodes."""
    if task.device == "gpu":
        side = task.data.crop if pictures.raw else square_side(pictures.size)
        crossing = round(pictures.mean_bytes) if loader.decoder == "gpu" else side * side * 3
        name = "copy to the GPU"
        return Side(name=name, run=lambda seconds: copy_window(seconds, task.batch_size, crossing, pictures.mean_bytes))
    name = "copy of the pixels" if pictures.raw else "libjpeg-turbo alone"
    most = min(len(pictures.store), _BOUND_PICTURES, max(1, int(_BOUND_BYTES / pictures.mean_bytes)))
    locations = next(pictures.batches(most))
    _each(pictures.check, locations)
    files = pictures.store.read(locations)
    return Side(name=name, run=lambda seconds: _plain_threads(files, pictures.decode, task.threads, seconds))


def loader_side(
    name: str, task: Task, mean_bytes: float, loader: BatchLoader, consume: Callable[[Batch], None] | None = None
) -> Side:
    """The trainer's loader. mean_bytes: of a stored picture."""
    gpu = task.device == "gpu"

    def start() -> Stream:
        batches = _endless(loader, task)
        try:
            for batch in batches:
                images = len(batch.labels)
                yield Work(images, round(images * mean_bytes), batch)
        finally:
            batches.close()

    return Side(
        name=name,
        run=lambda seconds: time_stream(
            start,
            seconds,
            warm_up=task.warm_up,
            consume=consume or (lambda batch: None),
            finish=torch.cuda.synchronize if gpu else lambda: None,
            engine_use=engine_use if gpu else lambda: None,
        ),
    )


def consumer(task: Task) -> Callable[[Batch], None]:
    """A stand-in for a training step: copies a batch where it is, or keeps it for some time and leaves the cores."""
    if task.hold_seconds:
        return lambda batch: time.sleep(task.hold_seconds)
    room: list[Any] = []

    def copy(batch: Batch) -> None:
        # On a CPU not by torch, whose threads would wait, busily, for cores that the loader's have.
        pictures = batch.pictures if task.device == "gpu" else batch.pictures.numpy()
        if not room or room[0].shape != pictures.shape:
            room[:] = [torch.empty_like(pictures) if isinstance(pictures, torch.Tensor) else np.empty_like(pictures)]
        room[0][...] = pictures

    return copy


def _endless(loader: BatchLoader, task: Task) -> Generator[Batch, None, None]:
    if task.split == "train":
        yield from loader.train(task.batch_size)
    while True:
        yield from loader.pictures(task.split, range(loader.dataset.splits[task.split].samples), task.batch_size)


def _threads_side(name: str, task: Task, pictures: Pictures, work: Callable[[Location], None]) -> Side:
    def start() -> Stream:
        return _in_threads(work, pictures, task)

    return Side(name=name, run=lambda seconds: time_stream(start, seconds, warm_up=task.warm_up))


def _in_threads(work: Callable[[Location], None], pictures: Pictures, task: Task) -> Stream:
    """Batches done by a pool of threads, some ahead of those that are asked for, in their order."""
    batches = pictures.batches(task.batch_size)
    with ThreadPoolExecutor(task.threads) as pool:

        def submit(locations: list[Location]) -> tuple[list[Location], list[Future[None]]]:
            pictures.store.prefetch(locations)
            chunks = (locations[at : at + _CHUNK] for at in range(0, len(locations), _CHUNK))
            return locations, [pool.submit(_each, work, chunk) for chunk in chunks]

        ahead = deque(submit(locations) for locations in islice(batches, task.ahead))
        try:
            while True:
                ahead.append(submit(next(batches)))
                locations, parts = ahead.popleft()
                for part in parts:
                    part.result()
                yield Work(len(locations), sum(size for _, _, size, _ in locations))
        finally:
            pool.shutdown(cancel_futures=True)


def _each(work: Callable[[Any], None], items: Sequence[Any]) -> None:
    for item in items:
        work(item)


def _plain_threads(
    files: Sequence[NDArray[np.uint8]], work: Callable[[NDArray[np.uint8]], None], threads: int, seconds: float
) -> Window:
    """Threads that each go round their own part of the files, without batches, order or checks."""
    done = [(0, 0, 0.0, 0.0)] * threads
    barrier = threading.Barrier(threads + 1)

    def go_round(number: int) -> None:
        mine = [files[at % len(files)] for at in range(number, max(len(files), threads), threads)]
        work(mine[0])
        barrier.wait()
        begin, now, images, size = time.perf_counter(), 0.0, 0, 0
        for data in cycle(mine):
            work(data)
            images, size = images + 1, size + len(data)
            if (now := time.perf_counter()) > begin + seconds:
                break
        done[number] = images, size, begin, now

    running = [threading.Thread(target=go_round, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    clear_peak()
    barrier.wait()
    cpu = time.process_time()
    for thread in running:
        thread.join()
    images, sizes, begins, ends = zip(*done, strict=True)
    return Window(
        images=sum(images),
        bytes=sum(sizes),
        seconds=max(ends) - min(begins),
        cpu_seconds=time.process_time() - cpu,
        peak_rss=status_bytes("VmHWM"),
        peak_own=own_memory(),
    )
