"""Sample indices -> the bytes of their files, JPEG or .npy, of the shards of a split."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from isal.isal_zlib import crc32  # several times as fast as zlib's, which not every Python has with SIMD
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.manifest import HEADER_BYTES, Dataset, load_samples
from pipeline.reading.mapping import open_shards
from pipeline.reading.samples import GAP_BYTES

# Where the bytes of a sample's file stand, and what they are: shard, offset and size in bytes, CRC-32. A plain tuple,
# because a named one takes longer to make, and there is one for each sample of an epoch.
Location = tuple[int, int, int, int]

NAME_BYTES: Final = 100  # at its start; a sample's name is its key, a dot and a suffix


class SampleStore:
    """The files' bytes and the labels of a split, by sample index."""

    def __init__(self, root: Path, dataset: Dataset, split: str):
        self.root, self.split = root, split
        self.size, self.kind = dataset.size, dataset.store
        self.table = load_samples(root, dataset, split)
        self.shards = dataset.splits[split].shards
        self.labels: NDArray[np.int64] = self.table["label"].astype(np.int64)
        self._shards = open_shards(root, split, self.shards)
        self._bytes = [shard.data for shard in self._shards]

    def __len__(self) -> int:
        return len(self.table)

    def locate(self, samples: NDArray[np.int64]) -> list[Location]:
        """Locations of the samples, in their order."""
        rows = self.table[samples]
        return list(zip(*(rows[name].tolist() for name in ("shard", "offset", "size", "crc32")), strict=True))

    def read(self, locations: Sequence[Location]) -> list[NDArray[np.uint8]]:
        """The files there, JPEG or .npy, as views of the mapped shards: nothing is copied, pages load when touched.

        InputError where shards are not mapped, and one cannot be opened any more.
        """
        shards = self._bytes
        return [shards[shard][offset : offset + size] for shard, offset, size, _ in locations]

    def read_intact(self, location: Location) -> NDArray[np.uint8]:
        """The file there, as `read` gives it; ValueError where they cannot be read, or are not what was sharded."""
        shard, offset, size, checksum = location
        if not self._shards[shard].is_readable(offset, size):
            raise ValueError("the bytes cannot be read")
        data = self._bytes[shard][offset : offset + size]
        if crc32(data) != checksum:
            raise ValueError("the bytes are not those that were sharded")
        return data

    def is_intact(self, location: Location) -> bool:
        """Whether the bytes there are what was sharded."""
        try:
            self.read_intact(location)
        except ValueError:
            return False
        return True

    def place(self, location: Location) -> str:
        """Where a sample's bytes lie, for a person."""
        return f"{self.split}/{self.shards[location[0]].name}, byte {location[1]}"

    def key(self, sample: int) -> int:
        """A sample's key, which its file's header in the tar begins with: its place in the split's shuffle."""
        shard, start = int(self.table["shard"][sample]), int(self.table["offset"][sample]) - HEADER_BYTES
        name = self._bytes[shard][start : start + NAME_BYTES].tobytes()
        digits = name.partition(b".")[0]
        if not digits.isdigit() or len(digits) > 18:
            place = self.place((shard, start + HEADER_BYTES, 0, 0))
            raise InputError(f"{place}: no key before it, but {digits[:20]!r}, expected a number; copy or shard again")
        return int(digits)

    def keys(self) -> NDArray[np.int64]:
        """(N,) the keys of all samples."""
        return np.array([self.key(sample) for sample in range(len(self))], np.int64)

    def replacement(self, location: Location, is_usable: Callable[[Location], bool]) -> int:
        """The sample that takes a damaged one's place, always the same: the next usable one of the table."""
        at_shard, at_offset = (
            self.table[name] == value for name, value in zip(("shard", "offset"), location, strict=False)
        )
        (damaged,) = np.flatnonzero(at_shard & at_offset)
        for after in range(1, len(self)):
            sample = int(damaged + after) % len(self)
            if is_usable(self.locate(np.array([sample]))[0]):
                return sample
        raise InputError(
            f"{self.root / self.split} has no sound sample, expected at least one; shard the data set again"
        )

    def prefetch(self, locations: Sequence[Location]) -> None:
        """Ask for these bytes in the background: of the kernel, or of the store; returns at once."""
        for shard, begin, end in _ranges(locations):
            self._shards[shard].prefetch(begin, end - begin)


def _ranges(locations: Sequence[Location]) -> Iterator[tuple[int, int, int]]:
    """(shard, begin, end) of samples, as one range where they follow one another."""
    last, begin, end = -1, 0, 0
    for shard, offset, size, _ in locations:
        if shard == last and 0 <= offset - end <= GAP_BYTES:
            end = offset + size
            continue
        if last >= 0:
            yield last, begin, end
        last, begin, end = shard, offset, offset + size
    if last >= 0:
        yield last, begin, end
