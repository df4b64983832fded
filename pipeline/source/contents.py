"""What a folder or an archive of pictures holds: class folders, class archives, or the pictures themselves.

Folders and archives give the same kind of answer, so callers need not know which of the two a split comes in.
"""

import os
from collections.abc import Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pipeline.command import InputError
from pipeline.manifest import SPLITS
from pipeline.source.folders import (
    ASTRAY,
    BROKEN,
    Identity,
    PassedOver,
    files_below,
    leads_above,
    look,
)
from pipeline.source.listing import File
from pipeline.source.names import TAR, first_few, is_packed, is_passed_over, is_picture, passed_over_as
from pipeline.source.tars import Member, tar_members

ARCHIVES: Final = "archives that are not looked into"
_ORIGINAL: Final = "ILSVRC"  # how the names of the original archives begin; none of them is a class's

_Row = tuple[list[bytes], int, int]  # a member of a tar: its path in parts, bytes, offset


class ClassLocation(NamedTuple):
    """Where the pictures of a class lie: a folder, an archive, or an archive in an archive."""

    path: str  # of the folder or the outer archive, relative to the source's root
    start: int = -1  # of the class's tar in that file; -1 for a folder
    size: int | None = None  # of a tar in a tar
    identity: Identity | None = None  # of a folder


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder or an archive holds; `flat` are pictures that lie in it without a class."""

    classes: dict[str, ClassLocation]  # by class id, sorted
    flat: tuple[File, ...]
    passed_over: tuple[PassedOver, ...]


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


def class_files(
    root: Path, holder: ClassLocation, id: str, holders: Set[Identity]
) -> tuple[list[File], Sequence[PassedOver]]:
    """The files of one class: all below its folder, or all in its archive.

    holders: the folders of all splits and classes, so that no link brings pictures of another. InputError when its
    archive is unusable, or tars are where its pictures should be.
    """
    where = root / holder.path
    if holder.start < 0:
        files, passed_over = files_below(where, holders)
    else:
        within = "" if holder.size is None else f"{id}{TAR}"
        members = tar_members(where, holder.start, holder.size, within)
        seen, passed_over = _sifted(_rows(members, id), where / within)
        files = _last_of_each_name(seen)
    if not any(is_picture(os.fsdecode(file.name)) for file in files):
        _require_no_tars(where, id, [os.fsdecode(file.name) for file in files])
    return files, passed_over


def _require_no_tars(where: Path, id: str, names: list[str]) -> None:
    if tars := [name for name in names if name.endswith(TAR)]:
        raise InputError(
            f"{where} holds {len(tars):,} tars and no pictures ({first_few(tars)}), expected pictures of class {id}; "
            "if these are classes, give it as the source itself, else unpack them"
        )


def is_class_archive(name: str) -> bool:
    """Whether a file's name says that it may be a class's tar."""
    return name.endswith(TAR) and not name.startswith(_ORIGINAL)


def kind_of_archive(path: Path) -> Literal["pictures", "folders", "tars", "neither"]:
    """What a tar holds, by the first picture or tar in it: pictures, folders of pictures, or tars.

    InputError when it is damaged or compressed.
    """
    for parts, _, _ in _rows(tar_members(path), _stem(path)):
        names = [os.fsdecode(part) for part in parts]
        if not names or any(map(is_passed_over, names)):
            continue
        if names[-1].endswith(TAR):
            return "tars"
        if is_picture(names[-1]):
            return "folders" if len(names) > 1 else "pictures"
    return "neither"


def _in_folder(root: Path, path: str, excluding: Container[str]) -> Contents:
    entries, passed_over = look(root / path)
    classes: dict[str, ClassLocation] = {}
    packed: dict[str, ClassLocation] = {}
    flat: list[File] = []
    for entry in entries:
        name = entry.name
        if name in excluding:
            continue
        if leads_above(entry, root / path):
            passed_over.append(PassedOver(ASTRAY, entry.path))
        elif entry.is_folder:
            classes[name] = ClassLocation(_join(path, name), identity=entry.identity)
        elif is_class_archive(name):
            packed[name[: -len(TAR)]] = ClassLocation(_join(path, name), 0)
        elif is_picture(name) and (entry.found is None or entry.is_file):
            flat.append(entry.as_file(os.fsencode(name)))
        elif entry.found is None:
            passed_over.append(PassedOver(BROKEN, entry.path))
        elif (is_packed(name) or name.endswith(TAR)) and "devkit" not in name:
            passed_over.append(PassedOver(ARCHIVES, entry.path))
    if both := sorted(classes.keys() & packed.keys()):
        raise InputError(
            f"{root / path} holds some classes both as folder and as {TAR} ({first_few(both)}), expected one of them; "
            "finish unpacking and remove the archives, or remove the folders"
        )
    _require_different_folders(root / path, classes)
    return Contents(classes=dict(sorted((classes | packed).items())), flat=tuple(flat), passed_over=tuple(passed_over))


def _require_different_folders(where: Path, classes: dict[str, ClassLocation]) -> None:
    ids: dict[Identity | None, list[str]] = {}
    for id, holder in classes.items():
        ids.setdefault(holder.identity, []).append(id)
    if same := [each for each in ids.values() if len(each) > 1]:
        raise InputError(
            f"{where} has one folder as {len(same[0])} classes ({first_few(same[0])}), expected a folder for each; "
            "remove the links"
        )


def _in_archive(root: Path, path: str) -> Contents:
    classes: dict[str, ClassLocation] = {}
    flat: list[_Row] = []
    seen, passed_over = _sifted(_rows(tar_members(root / path), *SPLITS, _stem(root / path)), root / path)
    for parts, size, offset in seen:
        name = os.fsdecode(b"/".join(parts))
        if len(parts) > 1:
            raise InputError(
                f"{root / path} holds folders ({name}), expected pictures or the classes' tars; unpack it into a folder"
            )
        if name.endswith(TAR):
            classes[name[: -len(TAR)]] = ClassLocation(path, offset, size)
        elif is_picture(name):
            flat.append((parts, size, offset))
    return Contents(
        classes=dict(sorted(classes.items())), flat=tuple(_last_of_each_name(flat)), passed_over=passed_over
    )


def _stem(path: Path) -> str:
    return path.name.partition(TAR)[0]


def _rows(members: Iterable[Member], *wrappers: str) -> Iterator[_Row]:
    return ((_without_wrapper(member.name, *wrappers), member.bytes, member.offset) for member in members)


def _without_wrapper(name: bytes, *wrappers: str) -> list[bytes]:
    """A member's path without "./", and without the folder that the archive wraps everything in."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    return parts[1:] if len(parts) > 1 and os.fsdecode(parts[0]) in wrappers else parts


def _sifted(rows: Iterable[_Row], where: Path) -> tuple[list[_Row], tuple[PassedOver, ...]]:
    """The members of a tar that are seen, and what is passed over in it: the same as in a folder."""
    seen: list[_Row] = []
    passed_over: set[PassedOver] = set()
    for row in rows:
        names = [os.fsdecode(part) for part in row[0]]
        place = next((place for place, name in enumerate(names) if is_passed_over(name)), None)
        if place is not None:
            what = passed_over_as(names[place], is_folder=place < len(names) - 1)
            passed_over |= {PassedOver(what, str(where.joinpath(*names[: place + 1])))} if what else set()
        elif names:
            seen.append(row)
    return seen, tuple(sorted(passed_over))


def _last_of_each_name(rows: Iterable[_Row]) -> list[File]:
    """Of several members with one name the last, which is the one that unpacking would leave."""
    files = (File(b"/".join(parts), size, offset) for parts, size, offset in rows)
    return list({file.name: file for file in files}.values())


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
