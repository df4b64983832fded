"""The shards of a data set in a store, sliced as those that are mapped into memory are."""

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.folder import Folder, folder_at
from pipeline.manifest import SAMPLES_FILE, Shard
from pipeline.reading.cache import INDEX_FILE, Index, Segments
from pipeline.reading.fetch import read_range
from pipeline.reading.place import RemotePlace, hold_in_use, remote_place
from pipeline.reading.samples import RemoteSamples

_PIECE_BYTES: Final = 8 * 2**20  # that a request brings of what is no sample, where more is read of the same piece


class RemoteShard:
    """A shard in a store: its samples as RemoteSamples has them, and anything else by reading it.

    first: the number in the split's table of its first sample. offsets: (samples,) where each begins, ascending.
    """

    def __init__(self, folder: Folder, name: str, samples: RemoteSamples, first: int, offsets: NDArray[np.uint64]):
        self._folder, self._name, self._samples = folder, name, samples
        self._first, self._offsets = first, offsets
        self._piece = lru_cache(maxsize=2)(self._read_piece)
        self._touched = -1  # the piece that was read from last

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        """The bytes from start to before stop; others, so that they are taken for damaged, where the store sends such.

        InputError where the store keeps failing.
        """
        start, stop = int(part.start), int(part.stop)
        place = int(np.searchsorted(self._offsets, np.uint64(start)))
        if place < len(self._offsets) and self._offsets[place] == start:
            return np.frombuffer(self._samples.get(self._first + place), np.uint8)
        return np.frombuffer(self._range(start, stop), np.uint8)

    def prefetch(self, start: int, length: int) -> None:
        """Have the samples that begin in this range here soon; returns at once."""
        bounds = np.array([start, start + length], np.uint64)
        begin, end = np.searchsorted(self._offsets, bounds).tolist()
        self._samples.ask(range(self._first + begin, self._first + end))

    def _range(self, start: int, stop: int) -> bytes:
        """A single header is read by itself; one that follows another, as where all are read, by its whole piece."""
        first, last = start // _PIECE_BYTES, (stop - 1) // _PIECE_BYTES
        follows, self._touched = self._touched in (first, last), last
        if not follows:
            return read_range(self._folder, self._name, start, stop)
        data = b"".join(self._piece(number) for number in range(first, last + 1))
        return data[start - first * _PIECE_BYTES : stop - first * _PIECE_BYTES]

    def _read_piece(self, number: int) -> bytes:
        return read_range(self._folder, self._name, number * _PIECE_BYTES, (number + 1) * _PIECE_BYTES)


def remote_shards(root: Path, place: RemotePlace, split: str, shards: Sequence[Shard]) -> list[RemoteShard]:
    """A split's shards; root: the folder with the data set's small files, where its samples are kept too."""
    return _remote_shards(os.getpid(), root, place.url, split, tuple(shards))


@cache
def _remote_shards(process: int, root: Path, url: str, split: str, shards: tuple[Shard, ...]) -> list[RemoteShard]:
    """Once in a process: what has come for one reader is there for the next. A forked process starts its own."""
    table = np.load(root / split / SAMPLES_FILE, allow_pickle=False)
    folder, names = folder_at(url), [f"{split}/{shard.name}" for shard in shards]
    index = Index(root / split / INDEX_FILE, len(table))
    samples = RemoteSamples(folder, names, table, _segments(process, root), index)
    firsts = np.searchsorted(table["shard"], np.arange(len(shards) + 1)).tolist()
    offsets = np.ascontiguousarray(table["offset"])
    return [
        RemoteShard(folder, name, samples, first, offsets[first:stop])
        for name, first, stop in zip(names, firsts[:-1], firsts[1:], strict=True)
    ]


@cache
def _segments(_process: int, root: Path) -> Segments:
    """Once in a process, whose first bound stays: that of another opening would have a segment of its own written."""
    hold_in_use(root)
    place = remote_place(root)
    assert place is not None
    return Segments(root, place.bound)
