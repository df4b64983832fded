"""The files of shards, mapped into memory; on file systems that cannot map files, read.

A mapping holds no descriptor here, so that any limit of open files is enough for any number of shards.
"""

import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError, say
from pipeline.files import limit_remedy, open_descriptor
from pipeline.manifest import Shard
from pipeline.reading.place import remote_place
from pipeline.reading.shards import remote_shards

_LARGE_PAGE: Final = 2 * 2**20  # bytes; the kernel maps pages of a file that lie together in memory as one
_MAP_FIXED: Final = 0x10  # of Linux's mman.h: at this address, in place of what is there
_ADVISED: Final = 128 * 2**10  # bytes that the kernel loads at once: a disk's read_ahead_kb, as most disks have it
_LIMIT_SHARE: Final = 4  # of the open files that the limit allows, shards that are read may hold one in so many

_EHWPOISON: Final = 133  # of Linux's errno.h: memory that has failed
_POPULATE_READ: Final = 22  # of Linux's mman.h, since 5.14: load these pages now, or say that they cannot be

_notice_once = cache(say)
_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _madvise = _libc.mmap, _libc.madvise  # unlike Python's own madvise this one leaves the interpreter's lock alone
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class ShardBytes(Protocol):
    """What is sliced to have a shard's bytes."""

    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]: ...


class OpenShard(NamedTuple):
    """A shard's bytes, and two questions about those from a start, so many of them."""

    data: ShardBytes
    prefetch: Callable[[int, int], None]  # load them in the background; returns at once
    is_readable: Callable[[int, int], bool]  # False: to touch them would end the process


def open_shards(root: Path, split: str, shards: Sequence[Shard]) -> list[OpenShard]:
    """Each shard, opened; InputError unless each is as long as it must be.

    root: the data set's folder, or of one in a store the folder that open_place gave.
    """
    if (place := remote_place(root)) is not None:
        return [OpenShard(remote, remote.prefetch, _always) for remote in remote_shards(root, place, split, shards)]
    paths = [root / split / shard.name for shard in shards]
    try:
        return [_map(path, shard.bytes) for path, shard in zip(paths, shards, strict=True)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _notice_once(f"notice: {root} cannot be mapped into memory ({reason}): its shards are read, more slowly")
    for path, shard in zip(paths, shards, strict=True):
        _open_shard(path, shard.bytes)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(paths) if soft == resource.RLIM_INFINITY else soft // _LIMIT_SHARE
    open_file = lru_cache(most)(_OpenFile)
    unmapped = [_Unmapped(path, open_file) for path in paths]
    return [OpenShard(each, each.prefetch, _always) for each in unmapped]


def _always(_start: int, _length: int) -> bool:
    return True


def _map(path: Path, size: int) -> OpenShard:
    """A file in memory. OSError where the file system, or a limit of the kernel, does not let it be mapped.

    Python's own mapping of a file keeps a descriptor (until version 3.13, whose `trackfd` says), and a process may have
    only 1,024. So Python maps memory that is no file's, and the kernel puts the file there, where large pages begin:
    elsewhere reading is a third slower.
    """
    file = _open_shard(path, size)
    # What cannot be mapped fails here, while there is nothing yet that could be replaced by half.
    mmap.mmap(file.descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ).close()
    mapped = mmap.mmap(-1, size + _LARGE_PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ)
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    first = -address % _LARGE_PAGE
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    if _mmap(address + first, size, mmap.PROT_READ, flags, file.descriptor, 0) != address + first:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # Samples are read in random order: the kernel's read-ahead beyond a sample would load what is not asked for.
    mapped.madvise(mmap.MADV_RANDOM, first, size)
    data = np.frombuffer(mapped, np.uint8)[first : first + size]
    return OpenShard(data, partial(_prefetch, mapped, first), partial(_is_readable, address + first))


def _prefetch(mapped: mmap.mmap, first: int, start: int, length: int) -> None:
    begin = (first + start) & -mmap.PAGESIZE
    for step, size in _steps(begin, first + start + length - begin):
        mapped.madvise(mmap.MADV_WILLNEED, step, size)


def _steps(start: int, length: int) -> Iterator[tuple[int, int]]:
    """A range in parts: of a long one that it is to load in the background the kernel takes the beginning alone."""
    for step in range(start, start + length, _ADVISED):
        yield step, min(_ADVISED, start + length - step)


def _is_readable(address: int, start: int, length: int) -> bool:
    """Load a range now; False where that fails, as at a bad sector, or since the file has become shorter.

    Whoever touches such a page is ended by SIGBUS. Kernels before 5.14 do not know the question.
    """
    begin, end = (address + start) & -mmap.PAGESIZE, address + start + length
    return not _madvise(begin, end - begin, _POPULATE_READ) or ctypes.get_errno() not in (errno.EFAULT, _EHWPOISON)


class _Unmapped:
    """A shard on a file system that cannot map it: read when asked for, by the slices that a mapped one takes."""

    def __init__(self, path: Path, open_file: Callable[[Path], "_OpenFile"]):
        self._path, self._open_file = path, open_file

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        """The bytes from start to before stop; fewer, so that they are taken for damaged, where the disk fails."""
        file, start, size, data = self._open_file(self._path), int(part.start), int(part.stop - part.start), b""
        try:
            while len(data) < size and (piece := os.pread(file.descriptor, size - len(data), start + len(data))):
                data += piece
        except OSError as error:
            if error.errno != errno.EIO:
                raise _unreadable(self._path, error) from error
        return np.frombuffer(data, np.uint8)

    def prefetch(self, start: int, length: int) -> None:
        """Ask the kernel to load these bytes in the background, as of a mapping."""
        with suppress(OSError):  # it is no more than advice
            descriptor = self._open_file(self._path).descriptor
            for step, size in _steps(start, length):
                os.posix_fadvise(descriptor, step, size, os.POSIX_FADV_WILLNEED)


class _OpenFile:
    """A file's descriptor, closed with the last reference to it."""

    def __init__(self, path: Path):
        self.descriptor = -1
        try:
            self.descriptor = open_descriptor(path)
        except OSError as error:
            raise _unreadable(path, error) from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _open_shard(path: Path, size: int) -> _OpenFile:
    """InputError unless it can be opened and has so many bytes."""
    file = _OpenFile(path)
    found = os.fstat(file.descriptor).st_size
    if found != size:
        raise InputError(f"{path} has {found} bytes, expected {size} by dataset.json; shard the data set again")
    return file


def _unreadable(path: Path, error: OSError) -> InputError:
    remedy = limit_remedy(error) or "mend that, copy it anew, or shard the data set again"
    return InputError(f"{path} cannot be read ({error.strerror}), expected a shard of the data set; {remedy}")
