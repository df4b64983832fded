"""Folders on disk: what is seen in one, and all files below it, through links but never in circles."""

import errno
import os
import stat
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.manifest import DATASET_FILE, UNFINISHED_FILE
from pipeline.source.listing import File
from pipeline.source.names import is_passed_over, is_picture, passed_over_as

Identity = tuple[int, int]  # device and inode: what two paths to one folder have in common

_MARKS: Final = (DATASET_FILE, UNFINISHED_FILE)
DATA_SETS: Final = "folders that pipeline.shard writes"
ASTRAY: Final = "links to a folder above or in another class"
BROKEN: Final = "links that lead nowhere"


class PassedOver(NamedTuple):
    """Something where pictures are looked for, of which none is taken."""

    what: str  # in the plural, for a message
    path: str


class Entry(NamedTuple):
    """A file or a folder in a folder; a link counts as what it leads to."""

    name: str
    path: str
    found: os.stat_result | None  # None for a link that leads nowhere
    is_link: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.found is not None and stat.S_ISDIR(self.found.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.found is not None and stat.S_ISREG(self.found.st_mode)

    @property
    def identity(self) -> Identity:
        """Of what is there."""
        assert self.found is not None
        return _identity(self.found)

    def as_file(self, name: bytes) -> File:
        """Listed under a name.

        A broken link is listed as an empty file: reading it fails with a message, so that it is not lost silently.
        """
        return File(name, 0 if self.found is None else self.found.st_size, -1)


class Seen(NamedTuple):
    """What is seen in a folder, and what is not."""

    entries: list[Entry]
    passed_over: list[PassedOver]


def look(folder: str | Path) -> Seen:
    """The entries of a folder, but for hidden ones and for folders that systems or pipeline.shard make.

    The last so that a run that writes into its own source can be resumed.
    """
    with os.scandir(folder) as scanned:
        found = sorted(scanned, key=lambda entry: entry.name)
    unseen = [each for each in found if is_passed_over(each.name)]
    told = [(passed_over_as(each.name, is_folder=_is_folder(each)), each.path) for each in unseen]
    seen = [each for each in found if not is_passed_over(each.name)]
    entries = [Entry(each.name, each.path, _stat(each), each.is_symlink()) for each in seen]
    outputs = {each.path for each in entries if each.is_folder and _is_output(each.path)}
    return Seen(
        [each for each in entries if each.path not in outputs],
        [PassedOver(what, path) for what, path in told if what] + [PassedOver(DATA_SETS, each) for each in outputs],
    )


def visible_names(folder: Path) -> tuple[list[str], list[str]]:
    """The visible folders and files in a folder, each sorted; links count as what they lead to."""
    entries, _ = look(folder)
    return [each.name for each in entries if each.is_folder], [each.name for each in entries if each.is_file]


def has_pictures(folder: Path, depth: int = 1) -> bool:
    """Whether pictures lie in a folder that can be read, or so deep below it: by their names, to be quick."""
    try:
        with os.scandir(folder) as scanned:
            entries = [each for each in scanned if not is_passed_over(each.name)]
        if any(each.name in _MARKS for each in entries) and _is_output(str(folder)):
            return False
        if any(is_picture(each.name) and each.is_file() for each in entries):
            return True
        return depth > 1 and any(has_pictures(Path(each.path), depth - 1) for each in entries if each.is_dir())
    except OSError:
        return False


def files_below(folder: Path, holders: Set[Identity]) -> tuple[list[File], list[PassedOver]]:
    """All visible files below a class's folder, through links, but nothing that lies in another of the `holders`.

    These are the folders of all splits and classes.
    """
    files: list[File] = []
    passed_over: list[PassedOver] = []
    waiting = [(str(folder), b"", frozenset([_identity(folder.stat())]))]
    while waiting:
        path, prefix, above = waiting.pop()
        entries, unseen = look(path)
        passed_over += unseen
        for entry in entries:
            name = prefix + os.fsencode(entry.name)
            if entry.is_file or entry.found is None:
                files.append(entry.as_file(name))
            elif entry.is_folder:
                is_elsewhere = entry.identity in above or entry.identity in holders
                if is_elsewhere or (entry.is_link and _leads_astray(entry, folder, holders)):
                    passed_over.append(PassedOver(ASTRAY, entry.path))
                else:
                    waiting.append((entry.path, name + b"/", above | {entry.identity}))
    return files, passed_over


def identity_of(folder: Path) -> Identity:
    """Of a folder; OSError when it is not there."""
    return _identity(folder.stat())


def leads_above(entry: Entry, folder: Path) -> bool:
    """Whether an entry is a link to `folder` itself or to one that it lies in."""
    return entry.is_link and entry.is_folder and entry.identity in _line(folder)


def what_was_passed_over(root: Path, passed_over: Iterable[PassedOver]) -> list[str]:
    """A line for each kind, with how many and an example."""
    kinds: dict[str, set[str]] = {}
    for what, path in passed_over:
        kinds.setdefault(what, set()).add(os.path.relpath(path, root))
    return [f"passed over {what} ({len(paths):,}), such as {min(paths)}" for what, paths in kinds.items()]


def _leads_astray(link: Entry, folder: Path, others: Set[Identity]) -> bool:
    """Whether a link below a class's folder leads above it, or into another of the folders that hold pictures."""
    above = _line(folder)
    target = _line(Path(os.path.realpath(link.path)))
    return link.identity in above or not others.isdisjoint(target - above)


def _line(folder: Path) -> set[Identity]:
    """A folder and all above it, as its path and as its real path say."""
    ways = (Path(os.path.abspath(folder)), Path(os.path.realpath(folder)))
    return {_identity(place.stat()) for way in ways for place in (way, *way.parents)}


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_output(folder: str) -> bool:
    """Whether pipeline.shard writes there; a class may hold other files that are called so.

    Its marker is empty only where it has not begun to write anything else.
    """
    marks = [path for name in _MARKS if os.path.isfile(path := os.path.join(folder, name))]
    return any(
        b'"source_sha256"' in data or (not data and len(os.listdir(folder)) == 1)
        for data in (Path(path).read_bytes() for path in marks)
    )


def _stat(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino
