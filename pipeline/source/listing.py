"""A compact list of pictures, and how one of them is read.

ImageNet is 1.3 million pictures: as columns, with the names in one piece, they take about 51 bytes each, where a tuple
of Python objects takes about 275. Names are bytes on disk, so any name that a file system allows survives.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.command import printable

_CHUNK: Final = 1 << 16  # names that are Python objects at one time


class Picture(NamedTuple):
    """One picture, with all that is needed to read it."""

    name: str  # within its class: "n01440764_10026.JPEG"; in nested folders the path below the class folder
    label: int  # -1 where it has none
    bytes: int  # of the picture's file
    file: str  # that holds it, relative to the source's root: "train/n01/x.JPEG" or "ILSVRC2012_img_train.tar"
    offset: int  # where it starts in that file; -1 where it is the whole file


class File(NamedTuple):
    """One picture within a folder or an archive, while these are listed."""

    name: bytes
    bytes: int
    offset: int  # -1 where it is a file of its own


class UnreadablePicture(Exception):
    """A listed picture cannot be read; the message is one line: where it lies, and the reason."""

    def __init__(self, where: str, reason: str):
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        """Where it lies, and the reason."""
        return f"{self.where} {self.reason}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """An immutable sequence of n Pictures in columns; sorted by (label, name's bytes) as make_listing makes it."""

    labels: NDArray[np.int32]  # (n,)
    bytes: NDArray[np.int64]  # (n,)
    offsets: NDArray[np.int64]  # (n,), -1 where the picture is the whole file
    path_indices: NDArray[np.int32]  # (n,), indices into `paths`
    name_ends: NDArray[np.int64]  # (n,), where each name ends in `names`
    names: "memoryview[int]"  # all names, one after the other
    paths: tuple[str, ...]  # archives, and folders of pictures that are files of their own

    def __post_init__(self) -> None:
        """Make the columns read-only: splits and subsets share them."""
        for column in (self.labels, self.bytes, self.offsets, self.path_indices, self.name_ends):
            column.flags.writeable = False

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.labels)

    def __iter__(self) -> Iterator[Picture]:
        """Every picture, made as it is asked for."""
        chunks = (np.arange(first, min(first + _CHUNK, len(self))) for first in range(0, len(self), _CHUNK))
        return chain.from_iterable(self.pictures(chunk) for chunk in chunks)

    def lengths(self) -> NDArray[np.int64]:
        """The number of bytes of each name, (n,)."""
        return np.diff(self.name_ends, prepend=0)

    def pictures(self, indices: NDArray[np.int64]) -> tuple[Picture, ...]:
        """The pictures at `indices`, in that order."""
        columns = (self.labels, self.bytes, self.offsets, self.path_indices)
        rows = zip(self._names(indices), *(column[indices].tolist() for column in columns), strict=True)
        return tuple(
            Picture(name, label, size, f"{self.paths[place]}/{name}" if offset < 0 else self.paths[place], offset)
            for name, label, size, offset, place in ((os.fsdecode(raw), *row) for raw, *row in rows)
        )

    def take(self, indices: NDArray[np.int64]) -> "Listing":
        """The pictures at `indices`, in that order, as a listing of their own."""
        chunks = (indices[first : first + _CHUNK] for first in range(0, len(indices), _CHUNK))
        return Listing(
            labels=self.labels[indices],
            bytes=self.bytes[indices],
            offsets=self.offsets[indices],
            path_indices=self.path_indices[indices],
            name_ends=np.cumsum(self.lengths()[indices], dtype=np.int64),
            names=memoryview(b"".join(b"".join(self._names(chunk)) for chunk in chunks)),
            paths=self.paths,
        )

    def _names(self, indices: NDArray[np.int64]) -> list[Any]:
        stops = self.name_ends[indices]
        starts = np.where(indices > 0, self.name_ends[indices - 1], 0)
        return [self.names[start:stop].tobytes() for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def make_listing(path: str, files: Sequence[File], labels: Sequence[int]) -> Listing:
    """The pictures that lie in one folder or archive, with their labels, sorted by (label, name)."""
    order = sorted(range(len(files)), key=lambda index: (labels[index], files[index].name))
    chosen = [files[index] for index in order]
    return Listing(
        labels=np.array([labels[index] for index in order], np.int32),
        bytes=np.array([file.bytes for file in chosen], np.int64),
        offsets=np.array([file.offset for file in chosen], np.int64),
        path_indices=np.zeros(len(chosen), np.int32),
        name_ends=np.cumsum([len(file.name) for file in chosen], dtype=np.int64),
        names=memoryview(b"".join(file.name for file in chosen)),
        paths=(path,),
    )


def concatenate(parts: Sequence[Listing]) -> Listing:
    """One listing of all parts, in their order; at least one part."""
    first_paths = np.cumsum([0, *(len(part.paths) for part in parts)]).tolist()
    first_names = np.cumsum([0, *(len(part.names) for part in parts)]).tolist()
    return Listing(
        labels=np.concatenate([part.labels for part in parts]),
        bytes=np.concatenate([part.bytes for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        path_indices=np.concatenate(
            [part.path_indices + np.int32(first) for part, first in zip(parts, first_paths, strict=False)]
        ),
        name_ends=np.concatenate([part.name_ends + first for part, first in zip(parts, first_names, strict=False)]),
        names=memoryview(b"".join(part.names for part in parts)),
        paths=tuple(chain.from_iterable(part.paths for part in parts)),
    )


def read_picture(root: Path, picture: Picture) -> bytes:
    """The bytes of one picture of the source at `root`.

    UnreadablePicture when it cannot be opened or read, or has not the number of bytes that it was listed with.
    """
    is_file = picture.offset < 0
    try:
        with open(root / picture.file, "rb") as stream:
            stream.seek(max(picture.offset, 0))
            data = stream.read(picture.bytes + is_file)  # one more, to see that a file has grown
    except OSError as error:
        raise UnreadablePicture(_where(picture), f"cannot be read ({error.strerror})") from error
    if len(data) != picture.bytes:
        found = "more" if len(data) > picture.bytes else f"{len(data):,}"
        raise UnreadablePicture(_where(picture), f"has changed: {found} bytes, listed with {picture.bytes:,}")
    return data


def _where(picture: Picture) -> str:
    return printable(picture.file if picture.offset < 0 else f"{picture.name} in {picture.file}")
