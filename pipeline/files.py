"""Atomic, durable writes (a file is complete or absent), locks, and the SHA-256 by which files are checked when read.

A file system that does not know how to flush to its disk will do; one without locks will not.
"""

import errno
import fcntl
import hashlib
import io
import math
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from pipeline.command import InputError, printable, say

# What fsync says where a file system does not know it (FUSE, SMB, 9p): EBADF for folders alone. PostgreSQL takes the
# same for granted (fsync_fname in fd.c).
_NO_FSYNC: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_FSYNC_OF_FOLDERS: Final = (*_NO_FSYNC, errno.EBADF)
_T = TypeVar("_T")
_NAME_KEPT: Final = 48  # characters of a file's name in its temporary one, which must not become too long for a name


def write_output(path: Path, data: bytes, flag: str) -> None:
    """Write the file that a command was asked for by `flag`, as `write_atomic` does; InputError where it cannot be."""
    try:
        write_atomic(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); give another {flag}") from error


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """InputError where a file that a flag asks for cannot be one, or two flags ask for the same."""
    given = {flag: path for flag, path in paths.items() if path}
    for flag, path in given.items():
        try:
            possible = not path.is_dir() and path.absolute().parent.is_dir()
        except OSError as error:  # its name is too long, or its parent cannot be looked into
            raise InputError(f"{flag} {path} cannot be written ({error.strerror}); give another {flag}") from error
        if not possible:
            raise InputError(f"{flag} is {path}, expected a file in a folder that is there; give another {flag}")
        if twice := [other for other in given if other != flag and given[other].absolute() == path.absolute()]:
            raise InputError(f"{flag} and {twice[0]} are both {path}, expected two files; give another {flag}")


def write_atomic(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably: after a crash it holds all of it, or what it held before."""
    with atomic_writer(path) as stream:
        stream.write(data)


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it that are not there, durably: a crash may else lose them with all that is in
    them, however often that was flushed.
    """
    folder = folder.absolute()
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing or [folder]:  # whoever made it may have been killed before this
        fsync_folder(made.parent)


@contextmanager
def atomic_writer(path: Path) -> Iterator[io.BufferedRandom]:
    """A file to write and read under a temporary name beside `path`; fsynced and renamed if the block succeeds.

    Each writer has a temporary name of its own, so writers of one file do not disturb each other, even when a host that
    was thought dead is still writing. An OSError names `path`, also that of a write, which by itself names nothing.
    """
    temporary = path.with_name(f".{path.name[:_NAME_KEPT]}.{secrets.token_hex(4)}.tmp")
    with naming(path, temporary):
        try:
            with open(temporary, "w+b") as stream:
                yield stream
                stream.flush()
                fsync_file(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # it is not there, or the next run removes it
                temporary.unlink()
            raise
        fsync_folder(path.parent)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an OSError name `path` where it names no file, as one of a write or a flush, or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_unneeded(names: Iterable[_T], remove: Callable[[_T], object]) -> None:
    """Remove what finished work does not need; what cannot be removed is told, and makes nothing unfinished."""
    for name, error in remove_each(names, remove).items():
        say(f"notice: {printable(str(name))} cannot be removed ({error.strerror}); it is left, and not needed")


def remove_each(names: Iterable[_T], remove: Callable[[_T], object]) -> dict[_T, OSError]:
    """Remove all that can be removed; returns what cannot be, and why."""
    errors: dict[_T, OSError] = {}
    for name in names:
        try:
            remove(name)
        except FileNotFoundError:  # somebody else has removed it
            pass
        except OSError as error:
            errors[name] = error
    return errors


def free_bytes(folder: Path) -> float:
    """What is free on the file system of a folder; infinite where it does not know how large it is."""
    total, _, free = shutil.disk_usage(folder)
    return free if total else math.inf


def is_temporary(name: str) -> bool:
    """Whether a path is a temporary name of `atomic_writer`, as a process leaves that is killed while writing."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".tmp")


def fsync_file(descriptor: int) -> bool:
    """Make the bytes of an open file durable; False where its file system does not know how to.

    It writes them in its own time then: what a crash of the machine cuts off is found by the hashes when it is read.
    """
    return _fsync(descriptor, _NO_FSYNC)


def fsync_folder(folder: Path) -> bool:
    """Make the names in `folder` durable: a rename is on disk only after this.

    False where that cannot be asked for: the file system does not know it, or the folder may be written but not read.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return False
    try:
        with naming(folder):
            return _fsync(descriptor, _NO_FSYNC_OF_FOLDERS)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int, unknown: tuple[int, ...]) -> bool:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in unknown:
            raise
        return False
    return True


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed, or this process ends; False where another process holds the lock.

    InputError where its file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        remedy = "mount its file system with locks (flock, not noflock; NFS: start lockd), or give another --out"
        raise InputError(f"{file.name} cannot be locked ({error.strerror}), expected a lock; {remedy}") from error
    return True


def limit_remedy(error: OSError) -> str:
    """What to do where the limit of open files is the cause of an error; empty for another cause."""
    if error.errno != errno.EMFILE:
        return ""
    return f"raise the limit of open files, now {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} (ulimit -n)"


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file to read; OSError for a folder, a device or a pipe, which may have no end, or nobody who writes it."""
    return open(path, "rb", opener=open_descriptor)


def open_descriptor(path: str | os.PathLike[str], flags: int = os.O_RDONLY | os.O_CLOEXEC) -> int:
    """The descriptor of a regular file, or of one that a link leads to; OSError as open_regular's."""
    _require_regular(os.stat(path), path)  # before it is opened, which a device may notice
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # of a regular file somebody has a lease, as Samba does: he is asked to give it back
        descriptor = os.open(path, flags)
    try:
        _require_regular(os.fstat(descriptor), path)  # it may have been replaced
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as stream:
        return sha256_of_stream(stream)


def sha256_of_stream(stream: IO[bytes] | io.BufferedIOBase) -> str:
    """The SHA-256, in hexadecimal, of what is left to read."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
