"""Crops of stored squares on the CPU: threads check, decode, cut and mirror the pictures of the next batches.

No DALI: its passes over memory after the decoder cost a quarter of a decode. Here a JPEG is decoded to such a place in
the batch's memory that its crop comes to lie where the batch has the picture. A picture that fails fails alone.
"""

import ctypes
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import simplejpeg
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pipeline.load.inputs import Replace, SampleInputs
from pipeline.load.storage import Location, SampleStore
from pipeline.manifest import Store
from pipeline.picture.raw import npy_square

LEAST_PART: Final = 16  # pictures that a thread takes at a time, at least: each part waits for the others' Python
NUMPY_TYPES: Final = {"uint8": np.uint8, "float16": np.float16, "float32": np.float32}


class ReadSquare(Protocol):
    """Makes a stored sample's bytes a picture: (side, side, 3) uint8 RGB, each row's pixels in one piece.

    place: (side, side, 3) uint8 to which a decoder writes; what needs no decoding is returned where it lies in `data`.
    ValueError where the bytes are no picture of that size.
    """

    def __call__(self, data: NDArray[np.uint8], place: NDArray[np.uint8], /) -> NDArray[np.uint8]: ...


def decode_square(data: NDArray[np.uint8], place: NDArray[np.uint8], /, fast: bool = False) -> NDArray[np.uint8]:
    """A JPEG file's pixels, in `place`; fast: by the fast DCT and plain upsampling of chroma."""
    square = simplejpeg.decode_jpeg(data, "RGB", fast, fast, buffer=place)
    if square.shape != place.shape:
        raise ValueError(f"the picture is {square.shape[1]} x {square.shape[0]} pixels, not {place.shape[1]} a side")
    return square


def read_npy(data: NDArray[np.uint8], place: NDArray[np.uint8], /) -> NDArray[np.uint8]:
    """The pixels of a raw data set's file, where they lie."""
    return npy_square(data, len(place))


def square_reader(store: Store, decoding: Literal["exact", "fast"]) -> ReadSquare:
    """How squares that are stored so become pixels."""
    return read_npy if store == "raw" else partial(decode_square, fast=decoding == "fast")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What the threads make."""

    batch_size: int  # the most rows of a batch
    side: int  # of the stored squares, pixels
    crop: int  # side of the crops, pixels
    output: str  # a key of NUMPY_TYPES; the floats are less `subtract`, and divided by std
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB
    threads: int
    prefetch: int  # batches ahead
    pinned: bool = False  # in memory that a GPU copies from by itself; only uint8 is
    mirrors: bool = True  # else who takes the batch mirrors it, by `mirrored`


def crop_batches(
    store: SampleStore,
    read_square: ReadSquare,
    rows: Iterator[SampleInputs],
    replace: Replace,
    config: CropConfig,
) -> Iterator[tuple[torch.Tensor, SampleInputs]]:
    """Pictures (n, crop, crop, 3) of each of the rows, in order, and the rows as they came to be.

    RuntimeError where a process that was forked since the start asks for more: the threads are its parent's.
    """
    cropping = _Cropping(store, read_square, config)
    pool = ThreadPoolExecutor(config.threads, "crops", initializer=_compute_alone)
    process, begun = os.getpid(), deque[_Begun]()
    try:
        while True:
            while len(begun) <= config.prefetch and (row := next(rows, None)) is not None:
                begun.append(_begin(pool, cropping, row))
            if not begun:
                return
            yield _finish(begun.popleft(), cropping, replace)
            if os.getpid() != process:
                raise RuntimeError("these batches were begun by the parent of this process; begin new ones here")
    finally:
        if os.getpid() == process:
            pool.shutdown(wait=False, cancel_futures=True)


def mirrored(pictures: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    """Pictures (n, crop, crop, 3) with left and right exchanged where mirror (n,) is not 0."""
    return torch.where(mirror.bool().view(-1, 1, 1, 1), pictures.flip(2), pictures)


class _Room(NamedTuple):
    """Memory of a batch."""

    pictures: NDArray[Any]  # (n, crop, crop, 3), of the output's type
    whole: NDArray[Any]  # (batch_size, numbers): what they are a view of


@dataclass(kw_only=True)
class _Begun:
    """A batch that threads are at work on."""

    rows: SampleInputs
    room: _Room
    parts: list[Future[list[int]]] = field(default_factory=list)


def _begin(pool: ThreadPoolExecutor, cropping: "_Cropping", rows: SampleInputs) -> _Begun:
    count = len(rows.locations)
    batch = _Begun(rows=rows, room=cropping.memory.take(count))
    batch.parts = [
        pool.submit(cropping.fill, batch.room, rows, part) for part in parts_of(count, cropping.config.threads)
    ]
    return batch


def parts_of(count: int, threads: int) -> list[range]:
    """The rows of a batch that a thread makes at a time: one part for each thread, of `LEAST_PART` rows at least."""
    size = max(-(-count // threads), LEAST_PART)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _finish(batch: _Begun, cropping: "_Cropping", replace: Replace) -> tuple[torch.Tensor, SampleInputs]:
    failed = [row for part in batch.parts for row in part.result()]
    while failed:  # again where a replacement that was sound has failed since, as on a disk that fails
        batch.rows = replace(batch.rows, failed, cropping.is_usable)
        failed = cropping.fill(batch.room, batch.rows, failed)
    return torch.from_numpy(batch.room.pictures), batch.rows


class _Memory:
    """Memory of batches, used again when no tensor is left that lies in it: new pages cost more than decoding does.

    Where a JPEG becomes uint8, each picture has room for its whole square, so that one can be decoded to such a place
    that its crop comes to lie where the batch has the picture, without a copy; a batch's rows of pixels are then a
    square's apart.
    """

    def __init__(self, config: CropConfig, roomy: bool):
        side, crop, margin = config.side, config.crop, config.side - config.crop
        self._config, self._item = config, np.dtype(NUMPY_TYPES[config.output]).itemsize
        self._first = 3 * margin * (side + 1) if roomy else 0  # numbers before the picture: of the rows above a crop
        self._row = 3 * (side if roomy else crop)  # numbers from one row of pixels to the next
        self._numbers = self._first + 3 * side * side if roomy else 3 * crop * crop  # of each picture
        self._free: list[NDArray[Any]] = []

    def take(self, count: int) -> _Room:
        """Memory for `count` pictures; a tensor made from `pictures` keeps it, and so do its views."""
        whole = self._free.pop() if self._free else self._new()
        crop, strides = self._config.crop, (self._numbers, self._row, 3, 1)
        pictures = as_strided(
            whole[:, self._first :], (count, crop, crop, 3), tuple(self._item * step for step in strides)
        )
        weakref.finalize(pictures, self._free.append, whole).atexit = False
        return _Room(pictures, whole)

    def square_place(self, whole: NDArray[Any], row: int, y: int, x: int) -> NDArray[np.uint8]:
        """(side, side, 3): where a square must lie for the crop with this corner to lie where the picture does."""
        side = self._config.side
        start = self._first - y * self._row - 3 * x
        return whole[row, start : start + 3 * side * side].reshape(side, side, 3)

    def _new(self) -> NDArray[Any]:
        shape, output = (self._config.batch_size, self._numbers), self._config.output
        if self._config.pinned:
            assert output == "uint8"
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return np.empty(shape, NUMPY_TYPES[output])


class _Cropping:
    """What a thread does, and the memory that it does it in."""

    def __init__(self, store: SampleStore, read_square: ReadSquare, config: CropConfig):
        self.store, self.read_square, self.config = store, read_square, config
        self.in_place = store.kind == "jpeg" and config.output == "uint8"
        self.memory = _Memory(config, roomy=self.in_place)
        self.factors = 1 / torch.tensor(config.std).repeat(config.crop) if set(config.std) != {1.0} else None
        self._own = threading.local()
        _expect_read_only()

    def fill(self, room: _Room, rows: SampleInputs, which: Sequence[int]) -> list[int]:
        """Make these rows' pictures; returns those rows whose samples cannot be used."""
        scratch, crop = self._scratch(), self.config.crop
        lines = room.pictures.reshape(-1, crop, crop * 3)  # rows of pixels are copied twice as fast as pixels
        failed: list[int] = []
        first, last = which[0], which[-1] + 1
        corners, mirrors = rows.corner[first:last].astype(np.intp).tolist(), rows.mirror[first:last].tolist()
        for row in which:
            (y, x), mirror = corners[row - first], self.config.mirrors and mirrors[row - first]
            place = self.memory.square_place(room.whole, row, y, x) if self.in_place else scratch.square
            try:
                square = self._square(rows.locations[row], place)
            except ValueError:
                failed.append(row)
                continue
            if not self.in_place:
                self._copy(square, y, x, mirror, rows.subtract[row], lines[row])
            elif mirror:
                lines[row][...] = _mirrored_lines(room.pictures[row])
        return failed

    def _copy(
        self, square: NDArray[np.uint8], y: int, x: int, mirror: bool, subtract: NDArray[np.float32], to: NDArray[Any]
    ) -> None:
        """Put a square's crop where the batch has the picture; to: (crop, crop * 3)."""
        scratch, crop = self._scratch(), self.config.crop
        lines = square.reshape(-1, square.shape[1] * 3)[y : y + crop, 3 * x : 3 * (x + crop)]
        if mirror:
            lines = _mirrored_lines(square[y : y + crop, x : x + crop])
        if to.dtype == np.uint8:
            to[...] = lines
        else:
            scratch.floats.numpy()[...] = lines
            _normalise(scratch.floats, torch.from_numpy(subtract), self.factors, torch.from_numpy(to))

    def is_usable(self, location: Location) -> bool:
        """Whether there is a picture that can take a damaged one's place."""
        try:
            self._square(location, self._scratch().square)
        except ValueError:
            return False
        return True

    def _square(self, location: Location, place: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A sample's pixels; ValueError where its bytes are not those that were sharded, or no such picture."""
        return self.read_square(self.store.read_intact(location), place)

    def _scratch(self) -> "_Scratch":
        """This thread's."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = _Scratch(self.config.side, self.config.crop)
        return self._own.scratch


class _Scratch:
    """Memory of one thread."""

    def __init__(self, side: int, crop: int):
        self.square = np.empty((side, side, 3), np.uint8)
        self.floats = torch.empty((crop, crop * 3))


def _mirrored_lines(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (crop, crop, 3) with left and right exchanged, as lines (crop, crop * 3); torch has a kernel for it."""
    return torch.from_numpy(picture).flip(1).view(len(picture), -1).numpy()


@cache
def _expect_read_only() -> None:
    """Have torch say unheard, once, that what it is given must not be written, as shards' pages: it only reads them."""
    with warnings.catch_warnings(action="ignore"):
        torch.from_numpy(np.frombuffer(b"0", np.uint8))


def _normalise(pixels: torch.Tensor, subtract: torch.Tensor, factors: torch.Tensor | None, to: torch.Tensor) -> None:
    """Pixels (crop, crop * 3) in float32, less RGB, and times `factors`: whole lines, which is what vectorises.

    `to`, which lies in memory that no cache holds, is passed over once.
    """
    line = subtract.repeat(pixels.shape[1] // 3)
    if factors is None and to.dtype == pixels.dtype:
        torch.sub(pixels, line, out=to)
        return
    pixels.sub_(line)
    if factors is not None:
        pixels.mul_(factors)
    to.copy_(pixels)


def _compute_alone() -> None:
    """Keep torch's operations in the calling thread: it has the other pictures' threads beside it."""
    torch.get_num_threads()  # torch sets the number when a thread first asks for it, and must not do so later
    with suppress(AttributeError):  # built with something else than OpenMP
        ctypes.CDLL(None).omp_set_num_threads(1)
