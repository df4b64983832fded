"""Samples/s of what feeds the DALI graph in Python: from a training position to JPEG bytes and drawn parameters.

    python benchmarks/callback.py [--batch-size 1024] [--samples 100000]

DALI calls this for each batch where pictures go to a GPU: the part of the pipeline that holds Python's lock and
that no thread can share. It runs here on one core, alone and beside a thread that never leaves Python, over a generated
data set. Nothing decodes, so the pictures are random bytes after the start of a JPEG file, laid out as tars are. With a
cold page cache a byte of every page is read too.
"""

import gc
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tyro
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pipeline.files import write_atomic
from pipeline.load.batch_loader import BatchLoader, graph_inputs
from pipeline.load.config import DataConfig
from pipeline.load.feed import Feed, graph_batches
from pipeline.load.inputs import SampleInputs, TrainInputs
from pipeline.load.read_ahead import ask_for_samples, asked_ahead
from pipeline.load.storage import Location, SampleStore
from pipeline.manifest import (
    DATASET_FILE,
    MEAN_FILE,
    SAMPLE_DTYPE,
    SAMPLES_FILE,
    ColourStatistics,
    Dataset,
    PictureClass,
    Shard,
    Split,
    array_bytes,
    encode_dataset,
)

SHARD_SAMPLES = 2500
BLOCK = 512  # bytes: a tar's members and their headers stand at multiples of it
PAGE = 4096  # bytes
JPEG_START = simplejpeg.encode_jpeg(np.zeros((256, 256, 3), np.uint8))  # with the header, by which the size is checked


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    batch_size: int = 1024
    samples: int = 100_000
    """Pictures of the generated data set."""
    picture_bytes: int = 26_000
    """Mean size of a picture; 26,000 is ImageNet's at 256 pixels and quality 92."""
    rounds: int = 5
    seconds: float = 3.0
    """Length of a window."""
    folder: Path | None = None
    """Where to make the data set, on the disk to be measured; a temporary folder if not given."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        print(f"writing {options.samples:,} pictures of about {options.picture_bytes:,} bytes", flush=True)
        write_data_set(root, options)
        print(
            f"numpy {np.__version__}, batch {options.batch_size}, one core, load {os.getloadavg()[0]:.1f}", flush=True
        )
        print(f"{'':32} {'samples/s median':>16} {'range':>20}   n = {options.rounds}", flush=True)
        in_memory(root, options)
        from_disk(root, options)


def write_data_set(root: Path, options: Options) -> None:
    """A data set folder whose pictures are random bytes."""
    generator = np.random.default_rng(0)
    least, most = options.picture_bytes // 2, options.picture_bytes * 3 // 2
    sizes = generator.integers(least, most, options.samples, endpoint=True)
    (root / "train").mkdir()
    made = [write_shard(root, number, part) for number, part in enumerate(_shares(sizes))]
    table = np.concatenate([rows for _, rows in made])
    contents = {
        f"train/{SAMPLES_FILE}": array_bytes(table),
        MEAN_FILE: array_bytes(np.full((256, 256, 3), 110, np.float32)),
    }
    for name, data in contents.items():
        write_atomic(root / name, data)
    split = Split(samples=len(table), shards=tuple(shard for shard, _ in made))
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_atomic(root / DATASET_FILE, encode_dataset(_dataset(split, files)))


def _shares(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [sizes[first : first + SHARD_SAMPLES] for first in range(0, len(sizes), SHARD_SAMPLES)]


def write_shard(root: Path, number: int, sizes: NDArray[np.int64]) -> tuple[Shard, NDArray[np.void]]:
    """One file as large as the tar of such pictures, and its rows of the sample table."""
    members = BLOCK + -(-sizes // BLOCK) * BLOCK + 2 * BLOCK  # header, picture, the label's header and block
    ends = np.cumsum(members)
    rows = np.zeros(len(sizes), SAMPLE_DTYPE)
    rows["shard"], rows["size"], rows["offset"] = number, sizes, ends - members + BLOCK
    data = bytearray(np.random.default_rng(number).bytes(int(ends[-1])))
    for row in rows:
        start, stop = int(row["offset"]), int(row["offset"]) + int(row["size"])
        data[start : start + len(JPEG_START)] = JPEG_START
        row["crc32"] = crc32(memoryview(data)[start:stop])
    path = root / "train" / f"{number:06d}.tar"
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())  # a page is only dropped from memory when it is on disk
    return Shard(name=path.name, samples=len(sizes), bytes=int(ends[-1]), sha256=""), rows


def _dataset(split: Split, files: dict[str, str]) -> Dataset:
    return Dataset(
        encoder="random bytes",
        size=256,
        quality=92,
        seed=0,
        shard_samples=SHARD_SAMPLES,
        val_fraction=0.0,
        source_sha256="",
        classes=(PictureClass(index=0, id="n00000000", words="noise"),),
        splits={"train": split},
        rejected=0,
        colour=ColourStatistics(
            mean=(110.0, 110.0, 110.0),
            eigenvalues=(9000.0, 500.0, 100.0),
            eigenvectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            standard_deviations=(9000.0**0.5, 500.0**0.5, 10.0),
        ),
        files=files,
    )


class Graph:
    """In the place of DALI's: asks for what a graph is fed, and gives the JPEG files of it."""

    def __init__(self, feed: Feed):
        self.feed = feed

    def run(self) -> tuple[Any]:
        """The files of a batch, as DALI's tensors."""
        return (self.feed()[0],)


def batches(root: Path, batch_size: int, output: Any = "uint8") -> Iterator[list[Any]]:
    """The JPEG files of batch after batch; the parameters are drawn and laid out for the graph as well."""
    loader = BatchLoader(DataConfig(shards=str(root), output=output, tuned=False))
    store = SampleStore(root, loader.dataset, "train")
    drawn = {"seed": loader.seed, "crop_margin": loader.crop_margin, "mean": loader.mean}
    draw = TrainInputs(store, loader.config.augment, loader.dataset.colour, **drawn)
    rows = asked_ahead(
        (draw(first, batch_size) for first in count(0, batch_size)),
        ask_for_samples(store),
        batches=loader.config.prefetch,
        most_bytes=loader.config.read_ahead * 10**6,
    )
    build: Any = Graph
    return (files for files, _ in graph_batches(store, rows, no_replacement, partial(graph_inputs, store), build))


def no_replacement(rows: SampleInputs, damaged: Sequence[int], _: Callable[[Location], bool]) -> SampleInputs:
    """The rows; none may be damaged."""
    assert not damaged
    return rows


def touching(source: Iterator[list[Any]]) -> Iterator[list[NDArray[np.uint8]]]:
    """The same, with a byte of every page read, so that the page must be there."""
    for files in source:
        jpegs = [np.asarray(file) for file in files]
        for jpeg in jpegs:
            int(jpeg[::PAGE].sum())
            int(jpeg[-1])
        yield jpegs


def rate(source: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Samples/s over a window of whole batches."""
    start, samples = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(source)
        samples += batch_size
    return samples / elapsed


@contextmanager
def busy_thread() -> Iterator[None]:
    """A thread that computes in Python and gives up the lock only when it must."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            for _ in range(1000):
                pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def in_memory(root: Path, options: Options) -> None:
    """The callback alone and beside a busy thread, for both kinds of output, in turn."""
    sources = {output: batches(root, options.batch_size, output) for output in ("uint8", "float32")}
    for source in sources.values():
        rate(source, options.batch_size, 1.0)
    rates: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for output, source in sources.items():
            alone = rate(source, options.batch_size, options.seconds)
            with busy_thread():
                beside = rate(source, options.batch_size, options.seconds)
            rates.setdefault(f"{output}, alone", []).append(alone)
            rates.setdefault(f"{output}, beside a busy thread", []).append(beside)
    for name, values in rates.items():
        report(name, values)


def from_disk(root: Path, options: Options) -> None:
    """An epoch's first pictures with a warm and with a cold page cache, every page read, in turn."""
    number = max(min(options.samples // options.batch_size, 20), 1)
    kinds: dict[str, Callable[[Path], None]] = {"warm": load_pages, "cold": drop_pages}
    rates: dict[str, list[float]] = {f"pages read, {kind}": [] for kind in kinds}
    read: list[float] = []
    for _ in range(options.rounds):
        for kind, ready in kinds.items():
            ready(root)
            before = disk_bytes()
            source = touching(batches(root, options.batch_size))
            start = time.perf_counter()
            touched = sum(jpeg.nbytes for _ in range(number) for jpeg in next(source))
            rates[f"pages read, {kind}"].append(number * options.batch_size / (time.perf_counter() - start))
            del source
            if kind == "cold":
                read.append((disk_bytes() - before) / touched)
    for name, values in rates.items():
        report(name, values)
    ratios = [cold / warm for warm, cold in zip(*rates.values(), strict=True)]
    print(f"cold / warm {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})", end="; ")
    print(f"cold, the disk gave {statistics.median(read):.2f} bytes for each byte of the pictures")


def load_pages(root: Path) -> None:
    """Bring every shard into the page cache."""
    for path in (root / "train").glob("*.tar"):
        path.read_bytes()


def drop_pages(root: Path) -> None:
    """Take every shard out of the page cache."""
    gc.collect()  # what is still mapped would stay
    for path in (root / "train").glob("*.tar"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """Bytes that this process has had read from disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def report(name: str, rates: list[float]) -> None:
    low, high = min(rates), max(rates)
    print(f"{name:32} {statistics.median(rates):16,.0f} {f'{low:,.0f}-{high:,.0f}':>20}", flush=True)


if __name__ == "__main__":
    main()
