"""Where a data set is written and verified: a folder on this host, or a prefix in an object store, by fsspec.

On disk a file appears whole because it is renamed; in a store because objects do. Names are relative, with slashes.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.command import InputError
from pipeline.files import atomic_writer, fsync_folder, open_regular

_READ_AHEAD: Final = 8 * 2**20  # bytes that a request to a store asks for
# What file systems, storage boxes and tools make among a person's files: thumbnails, deleted files, what was damaged.
# Often nobody else may read them.
_SYSTEM_FOLDERS: Final = frozenset(
    {
        *("lost+found", ".snapshot", "~snapshot", ".snapshots", ".zfs"),  # ext4, NetApp, Btrfs, ZFS
        *("@eaDir", "@tmp", "@sharesnap", "#recycle", "#snapshot"),  # Synology
        *("@Recycle", "@Recently-Snapshot", "@__thumb"),  # QNAP
        *("$RECYCLE.BIN", "$Recycle.Bin", "$Recycle.bin", "RECYCLER", "System Volume Information"),  # Windows
        *("__MACOSX", ".Trashes", ".Spotlight-V100", ".fseventsd", "__pycache__"),  # macOS; Python
        *("Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder"),  # macOS on shares
    }
)
_EXTRAS: Final = {"s3": "s3", "s3a": "s3"}


@dataclass(frozen=True)
class Folder:
    """Files by name. FileNotFoundError for one that is not there, another OSError where the place fails."""

    place: str  # as the user wrote it
    fs: Any  # fsspec's types are of no help
    root: str  # the place as `fs` writes its paths

    @property
    def local(self) -> Path | None:
        """The folder's path, where it is on this host."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    @property
    def address(self) -> str:
        """A path or URL that folder_at opens in any process, whatever its current directory."""
        return self.root if self.local else self.place

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file below, sorted by name; empty when the folder does not exist.

        What a disk's own system keeps there is not looked at: is_system_folder.
        """
        if self.local:
            return dict(sorted((path[len(self.root) + 1 :], size) for path, size in _files(self.root)))
        with _failures(self.root):
            self.fs.invalidate_cache()
            found = self.fs.find(self.root, detail=True)
        return {path[len(self.root) + 1 :]: info["size"] for path, info in sorted(found.items())}

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            return bool(self.size(name) + 1)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        with _failures(self._path(name)):
            self.fs.invalidate_cache(self.root)
            return self.fs.info(self._path(name))["size"]

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file's bytes, or those from start to before stop."""
        if self.local:
            with open_regular(self._path(name)) as stream:  # a pipe or a device would have no end
                stream.seek(start or 0)
                return stream.read(-1 if stop is None else stop - (start or 0))
        with _failures(self._path(name)):
            return self.fs.cat_file(self._path(name), start=start, end=stop)

    @contextmanager
    def open_reader(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A stream to read a file from its start to its end."""
        path = self._path(name)
        if self.local:
            with open_regular(path) as stream:
                yield stream
            return
        with _failures(path):
            remote = self.fs.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead")
        with remote, io.BufferedReader(_Remote(remote, path)) as stream:
            yield stream

    def write(self, name: str, data: bytes) -> None:
        """Make a file hold `data`, durably: after a crash it holds all of it, or what it held before."""
        with self.open_writer(name) as stream:
            stream.write(data)

    def create(self, name: str, data: bytes) -> bool:
        """Create a complete file unless one of that name exists; returns whether it was created."""
        try:
            with _failures(self._path(name)):
                self.fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    @contextmanager
    def open_writer(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write and to read that takes its name, durably, if the block succeeds."""
        if self.local:
            path = self.local / name
            if not path.parent.is_dir():
                path.parent.mkdir(exist_ok=True)  # another worker may be faster
                fsync_folder(path.parent.parent)
            with atomic_writer(path) as stream:
                yield stream
            return
        with tempfile.NamedTemporaryFile(prefix="shard-") as stream:
            with _failures(stream.name):
                yield stream
                stream.flush()
            with _failures(self._path(name)):
                self.fs.put_file(stream.name, self._path(name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _failures(self._path(name)):
            try:
                self.fs.rm_file(self._path(name))
            except FileNotFoundError:
                pass

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


class _Remote(io.RawIOBase):
    """A store's file whose reads fail with OSErrors, as a disk's do."""

    def __init__(self, stream: Any, path: str):
        self._stream, self._name = stream, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        room = memoryview(buffer)
        with _failures(self._name):
            data = self._stream.read(len(room))
        room[: len(data)] = data
        return len(data)


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name is the file system's or the system's own: lost+found, a recycle bin, snapshots."""
    return name in _SYSTEM_FOLDERS or name.startswith(".Trash-")


def _files(folder: str) -> Iterator[tuple[str, int]]:
    """The path and the size of each file below; a link counts as what it leads to, and a broken one has no bytes."""
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except FileNotFoundError:  # it has never been, or is gone since it was listed
        return
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            try:
                yield entry.path, entry.stat().st_size
            except FileNotFoundError:
                if entry.is_symlink():
                    yield entry.path, 0
        elif not is_system_folder(entry.name):
            yield from _files(entry.path)


def folder_at(place: str | os.PathLike[str]) -> Folder:
    """The folder of a path or of an fsspec URL (s3://bucket/prefix); InputError for a URL that cannot be opened."""
    place = os.fspath(place)
    protocol, separator, _ = place.partition("://")
    try:
        # fsspec caches file systems and their listings; other processes make those stale: see `invalidate_cache` above.
        fs, root = fsspec.url_to_fs(place) if separator else (LocalFileSystem(), os.path.abspath(place))
    except ImportError as error:
        extra = f"; pip install -e '.[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else ""
        raise InputError(
            f"{place} cannot be opened ({error}), expected its file system to be installed{extra}"
        ) from error
    except ValueError as error:
        raise InputError(f"{place} cannot be opened ({error}), expected a folder or s3://bucket/prefix") from error
    return Folder(place, fs, root.rstrip("/"))


@contextmanager
def _failures(path: str) -> Iterator[None]:
    """Whatever a store's library raises (no credentials, no such host) as an OSError, as from a disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise
    except Exception as error:
        raise OSError(None, f"{type(error).__name__}: {error}".replace("\n", " "), path) from error
