"""Samples on this host's disk, shared by processes and bounded.

Samples are appended to segments, files that one process writes and every process reads; an index, mapped by all, says
where each sample lies. What is kept stays: with a new random order every epoch, one that was kept is needed as soon as
any other, so that throwing out what was used longest ago would keep fewer hits than to keep what is there and let the
rest pass (Mohan et al. 2021, "Analyzing and Mitigating Data Stalls in DNN Training", section 4.1).

Nothing here is trusted: whoever reads a sample holds it against its CRC. So a process that is killed, or a host that
crashes, leaves no lie: a sample enters the index after it was written, and if the disk lost it, its CRC says so.
"""

import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError, say
from pipeline.files import write_atomic

INDEX_FILE: Final = "cached.index"
SEGMENT_SUFFIX: Final = ".segment"
LOCK_FILE: Final = "lock"  # held shared by who uses a data set's cache, and alone by who removes it
_SPACE_FILE: Final = "space.lock"  # held by who shares out the cache's room
_OFFSET_BITS: Final = 40  # of an entry of the index; those above count segments from 1, and an entry of 0 is none
_SEGMENTS: Final = 64  # that a full cache has; one descriptor each


class Segments:
    """The files of a data set's cache: each process appends to one of its own.

    `bound` is in bytes. A segment that is being written counts as full, whoever writes it, so that all processes
    together stay within the bound.
    """

    def __init__(self, folder: Path, bound: int):
        self._folder, self._size = folder, max(bound // _SEGMENTS, 1)
        self._lock, self._descriptors = threading.Lock(), dict[int, int]()
        self._mine: int | None = None
        self._written, self._full = 0, False
        self._bound = bound
        with self._sharing_out():
            self._shrink()

    @property
    def has_room(self) -> bool:
        """Whether more is kept, as far as this process knows."""
        return not self._full

    def append(self, data: bytes) -> tuple[int, int] | None:
        """Keep these bytes; the segment and the place in it where they lie, or None where there is no room."""
        with self._lock:
            if self._full or len(data) > self._size:
                return None
            try:
                if self._mine is None or self._written + len(data) > self._size:
                    self._mine, self._written = self._begin(), 0
                if self._mine is None:
                    self._full = True
                    return None
                place, segment = self._written, self._mine
                if os.pwrite(self._descriptors[segment], data, place) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._full = True
                say(f"notice: {self._folder} takes no more samples ({error.strerror}); the others come from the store")
                return None
            self._written += len(data)
            return segment, place

    def read(self, segment: int, place: int, size: int) -> bytes:
        """The bytes there; fewer where the segment is gone, or its disk fails."""
        try:
            return os.pread(self._open(segment), size, place)
        except OSError:
            return b""

    def advise(self, segment: int, place: int, size: int) -> None:
        """Ask the kernel to load these bytes in the background."""
        with suppress(OSError):
            os.posix_fadvise(self._open(segment), place, size, os.POSIX_FADV_WILLNEED)

    def _open(self, segment: int) -> int:
        if (descriptor := self._descriptors.get(segment)) is not None:
            return descriptor
        with self._lock:
            if segment not in self._descriptors:
                self._descriptors[segment] = os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[segment]

    def _begin(self) -> int | None:
        """A new segment, locked as long as this process writes it; None where there is no room for one."""
        if self._mine is not None:  # it is full, and counts as what it has
            fcntl.flock(self._descriptors[self._mine], fcntl.LOCK_UN)
        with self._sharing_out():
            found = self._sizes()
            if sum(found.values()) + self._size > self._bound:
                return None
            segment = max(found, default=-1) + 1
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self._path(segment), flags, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._descriptors[segment] = descriptor
        return segment

    def _shrink(self) -> None:
        """Remove the oldest segments that nobody writes until the rest is within the bound."""
        sizes = self._sizes()
        for segment in sorted(sizes):
            if sum(sizes.values()) <= self._bound:
                return
            if not _is_written(self._path(segment)):
                self._path(segment).unlink(missing_ok=True)
                del sizes[segment]

    def _sizes(self) -> dict[int, int]:
        """The bytes that each segment may take."""
        sizes = {}
        for path in self._folder.glob(f"*{SEGMENT_SUFFIX}"):
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                sizes[int(path.stem)] = max(size, self._size) if _is_written(path) else size
        return sizes

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:06d}{SEGMENT_SUFFIX}"

    def _sharing_out(self) -> "Held":
        return Held(self._folder / _SPACE_FILE, fcntl.LOCK_EX)


class Index:
    """Where the samples of a split lie in the segments: an array that all processes have mapped."""

    def __init__(self, path: Path, samples: int):
        empty = np.zeros(samples, np.uint64)
        try:
            with Held(path.parent / _SPACE_FILE, fcntl.LOCK_EX):
                if not path.is_file() or path.stat().st_size != empty.nbytes:
                    write_atomic(path, empty.tobytes())
            self._places: NDArray[np.uint64] = np.memmap(path, np.uint64, "r+") if samples else empty
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}), expected a disk of this host; give another --data.cache"
            ) from error

    def __contains__(self, sample: int) -> bool:
        return bool(self._places[sample])

    def place(self, sample: int) -> tuple[int, int] | None:
        """The segment of a sample, and its place in it; None where it is not kept."""
        entry = int(self._places[sample])
        return ((entry >> _OFFSET_BITS) - 1, entry & ((1 << _OFFSET_BITS) - 1)) if entry else None

    def set(self, sample: int, place: tuple[int, int]) -> None:
        """Say where a sample was written."""
        self._places[sample] = ((place[0] + 1) << _OFFSET_BITS) | place[1]

    def forget(self, sample: int) -> None:
        """Say that a sample is not kept."""
        self._places[sample] = 0


class Held:
    """A lock that is held from here to the end of a `with`, or of the process; OSError where it cannot be had."""

    def __init__(self, path: Path, kind: int, *, create: bool = True):
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
        try:
            fcntl.flock(self._descriptor, kind)
        except OSError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go of the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_written(path: Path) -> bool:
    """Whether a process is appending to this segment."""
    try:
        Held(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False).release()
    except BlockingIOError:
        return True
    return False
