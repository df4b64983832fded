"""Atomic, durable writes (a file is complete or absent), and the SHA-256 by which files are checked when read."""

import hashlib
import io
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.command import InputError


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
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{flag} is {path}, expected a file in a folder that is there; give another {flag}")
        if twice := [other for other in given if other != flag and given[other].absolute() == path.absolute()]:
            raise InputError(f"{flag} and {twice[0]} are both {path}, expected two files; give another {flag}")


def write_atomic(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably: after a crash it holds all of it, or what it held before."""
    with atomic_writer(path) as stream:
        stream.write(data)


@contextmanager
def atomic_writer(path: Path) -> Iterator[io.BufferedRandom]:
    """A file to write and read under a temporary name beside `path`; fsynced and renamed if the block succeeds.

    Each writer has a temporary name of its own, so writers of one file do not disturb each other, even when a host that
    was thought dead is still writing.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def is_temporary(name: str) -> bool:
    """Whether a path is a temporary name of `atomic_writer`, as a process leaves that is killed while writing."""
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(".tmp")


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is on disk only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return sha256_of_stream(stream)


def sha256_of_stream(stream: IO[bytes] | io.BufferedIOBase) -> str:
    """The SHA-256, in hexadecimal, of what is left to read."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
