"""What a folder or an archive of pictures holds: class folders, class archives, or the pictures themselves.

Folders and archives give the same kind of answer, so callers need not know which of the two a split comes in.
"""

import errno
import os
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.command import InputError
from pipeline.manifest import DATASET_FILE, UNFINISHED_FILE
from pipeline.source.listing import File
from pipeline.source.tars import tar_members

_PICTURES: Final = (".jpeg", ".jpg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_TAR: Final = ".tar"
_ORIGINAL: Final = "ILSVRC"  # how the names of the original archives begin; none of them is a class's


class ClassLocation(NamedTuple):
    """Where the pictures of a class lie: a folder, an archive, or an archive in an archive."""

    path: str  # of the folder or the outer archive, relative to the source's root
    start: int = -1  # of the class's tar in that file; -1 for a folder
    size: int | None = None  # of a tar in a tar


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder or an archive holds; `flat` are pictures that lie in it without a class."""

    classes: dict[str, ClassLocation]  # by class id, sorted
    flat: tuple[File, ...]


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return name.lower().endswith(_PICTURES)


def first_few(names: Iterable[str]) -> str:
    """The first names of some, for a message."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def list_contents(root: Path, path: str, *, excluding: Container[str] = ()) -> Contents:
    """What lies in `root/path`, a folder or a tar, except for the names in `excluding`.

    InputError when classes or pictures come in two ways at once, or the tar is unusable.
    """
    found = _in_folder(root, path, excluding) if (root / path).is_dir() else _in_archive(root, path)
    if found.classes and found.flat:
        raise InputError(
            f"{root / path} holds {len(found.classes):,} classes ({first_few(found.classes)}) and, outside them, "
            f"{len(found.flat):,} pictures ({first_few(os.fsdecode(file.name) for file in found.flat)}), "
            "expected one or the other; finish sorting the pictures into classes, or move them away"
        )
    return found


def class_files(root: Path, holder: ClassLocation, id: str) -> list[File]:
    """The files of one class: all below its folder, or all in its archive; InputError when that is unusable."""
    if holder.start < 0:
        return list(_files_below(root / holder.path))
    within = "" if holder.size is None else f"{id}{_TAR}"
    found = tar_members(root / holder.path, holder.start, holder.size, within)
    return _last_of_each_name((_without_wrapper(member.name, id), member.bytes, member.offset) for member in found)


def visible_names(folder: Path) -> tuple[list[str], list[str]]:
    """The visible folders and files in a folder, each sorted; links count as what they lead to."""
    visible = _visible(folder)
    folders = sorted(entry.name for entry, found in visible if _is_folder(found))
    return folders, sorted(entry.name for entry, found in visible if found and stat.S_ISREG(found.st_mode))


def _in_folder(root: Path, path: str, excluding: Container[str]) -> Contents:
    visible = [(entry, found) for entry, found in _visible(root / path) if entry.name not in excluding]
    classes: dict[str, ClassLocation] = {}
    packed: dict[str, ClassLocation] = {}
    flat: list[File] = []
    for entry, found in visible:
        name = entry.name
        if _is_folder(found):
            classes[name] = ClassLocation(_join(path, name))
        elif name.endswith(_TAR) and not name.startswith(_ORIGINAL):
            packed[name[: -len(_TAR)]] = ClassLocation(_join(path, name), 0)
        elif is_picture(name) and (found is None or stat.S_ISREG(found.st_mode)):
            flat.append(_file(os.fsencode(name), found))
    if both := sorted(classes.keys() & packed.keys()):
        raise InputError(
            f"{root / path} holds some classes both as folder and as {_TAR} ({first_few(both)}), expected one of them; "
            "finish unpacking and remove the archives, or remove the folders"
        )
    return Contents(classes=dict(sorted((classes | packed).items())), flat=tuple(flat))


def _in_archive(root: Path, path: str) -> Contents:
    classes: dict[str, ClassLocation] = {}
    flat: list[tuple[list[bytes], int, int]] = []
    for member in tar_members(root / path):
        parts = _without_wrapper(member.name, "train", "val", "test", Path(path).stem)
        name = os.fsdecode(b"/".join(parts))
        if _is_hidden(name):
            continue
        if len(parts) > 1:
            raise InputError(
                f"{root / path} holds folders ({name}), expected pictures or the classes' tars; unpack it into a folder"
            )
        if name.endswith(_TAR):
            classes[name[: -len(_TAR)]] = ClassLocation(path, member.offset, member.bytes)
        elif is_picture(name):
            flat.append((parts, member.bytes, member.offset))
    return Contents(classes=dict(sorted(classes.items())), flat=tuple(_last_of_each_name(flat)))


def _without_wrapper(name: bytes, *wrappers: str) -> list[bytes]:
    """A member's path without "./", and without the folder that the archive wraps everything in."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    return parts[1:] if len(parts) > 1 and os.fsdecode(parts[0]) in wrappers else parts


def _last_of_each_name(found: Iterable[tuple[list[bytes], int, int]]) -> list[File]:
    """Visible files; of several with one name the last, which is the one that unpacking would leave."""
    visible = (row for row in found if row[0] and not any(_is_hidden(os.fsdecode(part)) for part in row[0]))
    named = ((b"/".join(parts), size, offset) for parts, size, offset in visible)
    return list({name: File(name, size, offset) for name, size, offset in named}.values())


def _files_below(folder: Path) -> Iterator[File]:
    """All visible files below a folder, through links but never in circles."""
    waiting = [(str(folder), b"", frozenset([_identity(folder.stat())]))]
    while waiting:
        path, prefix, above = waiting.pop()
        for entry, found in _visible(path):
            name = prefix + os.fsencode(entry.name)
            if found is None or stat.S_ISREG(found.st_mode):
                yield _file(name, found)
            elif stat.S_ISDIR(found.st_mode) and (identity := _identity(found)) not in above:
                waiting.append((entry.path, name + b"/", above | {identity}))


def _visible(folder: str | Path) -> list[tuple[os.DirEntry[str], os.stat_result | None]]:
    """Visible entries of a folder with their stat results, links followed; None for broken links.

    Output folders of pipeline.shard are skipped, so that a run that writes into its own source can be resumed.
    """
    with os.scandir(folder) as entries:
        found = [(entry, _stat(entry)) for entry in entries if not _is_hidden(entry.name)]
    return [(entry, each) for entry, each in found if not (_is_folder(each) and _is_output(entry.path))]


def _is_folder(found: os.stat_result | None) -> bool:
    return found is not None and stat.S_ISDIR(found.st_mode)


def _is_output(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in (DATASET_FILE, UNFINISHED_FILE))


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def _file(name: bytes, found: os.stat_result | None) -> File:
    # A broken link is listed as an empty file: reading it fails with a message, so it is not lost silently.
    return File(name, 0 if found is None else found.st_size, -1)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
