"""Which form a source has: where its splits lie, and where labels and words may."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.command import InputError
from pipeline.manifest import SPLITS
from pipeline.source.contents import is_class_archive, kind_of_archive
from pipeline.source.devkit import KIT_NAMES
from pipeline.source.folders import Entry, PassedOver, has_pictures, leads_above, look, visible_names
from pipeline.source.names import TAR, first_few, is_packed, is_picture

_ARCHIVES: Final = {
    split: re.compile(rf"ILSVRC(2012_img|2010_images)_{split}{tail}\.tar")
    for split, tail in {"train": "", "val": "", "test": "(_v.*)?"}.items()
}
_KAGGLE: Final = ("Data", "CLS-LOC")
_BASES: Final = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where splits may lie, from the source's folder
_DEPTH: Final = 3  # at which pictures are looked for, to tell a folder of some from any other

# Folders that come with ImageNet. In a folder of classes the name of a class may be the same, but not of a kit.
_IMAGENETS: Final = frozenset({*SPLITS, "ILSVRC", "Data", "CLS-LOC", "Annotations", "ImageSets"})
_SPLIT: Final = "(?:train|training|val|valid|validation|test|testing)"
_BEGINS_AS_SPLIT: Final = re.compile(rf"{_SPLIT}(?![a-z])", re.IGNORECASE)  # test1, train_masks; not trainer
_IS_A_SPLIT: Final = re.compile(rf"(?:(.*)[_ -])?{_SPLIT}\d*", re.IGNORECASE)  # Train, imagenet21k_val, val2017

EXPECTED: Final = (
    "expected train/<class>/<pictures>, Kaggle's ILSVRC/Data/CLS-LOC/train, the archive ILSVRC2012_img_train.tar, "
    "<class>/<pictures>, <class>.tar, or a tar of these"
)
BESIDE: Final = "files and folders beside the splits that may hold pictures"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a source's splits lie, and where its labels may lie."""

    root: Path
    splits: dict[str, str]  # "train", "val", "test", those there are -> folder or archive, relative; "" is root itself
    label_folders: tuple[Path, ...]  # folders that may hold labels and words
    no_classes: frozenset[str] = frozenset()  # folders in root that are none, where root itself is a split
    passed_over: tuple[PassedOver, ...] = ()
    notices: tuple[str, ...] = ()  # what has been decided that might have been meant otherwise


def detect_layout(source: Path) -> Layout:
    """Look at a folder, or at the folder of an archive; InputError when it has no form known, or more than one."""
    if source.is_file() and not any(pattern.fullmatch(source.name) for pattern in _ARCHIVES.values()):
        return _tar_of_tars(source)
    root = _root(source)
    forms = {base: found for base in _BASES if (root / base).is_dir() and (found := _splits(root, base))}
    if len(forms) > 1:
        both = " and ".join(f"{base or '.'}/ ({', '.join(found)})" for base, found in forms.items())
        raise InputError(f"{root} has pictures in {both}, expected one; give one of these folders, or move one away")
    base, splits = next(iter(forms.items()), ("", {}))
    if not splits or _train_is_a_class(root, splits):
        return _plain(root)
    _require_nothing_beside(root / base, splits)
    if "train" not in splits:
        held = ", ".join(splits.values())
        raise InputError(f"{root / base} has no train/ beside {held}, {EXPECTED}; give the folder that holds train/")
    return Layout(
        root=root, splits=splits, label_folders=_label_folders(root, base), passed_over=_beside(root, base, splits)
    )


def _root(source: Path) -> Path:
    if source.is_dir():
        return source
    if source.is_file():
        return source.parent
    what = "is no file or folder" if source.exists() else "is not there"
    raise InputError(f"{source} {what}, {EXPECTED}; give the folder that holds one of these")


def _tar_of_tars(source: Path) -> Layout:
    """A tar of the classes' tars, as ImageNet's `fall11_whole.tar`; the archives of other years and people too."""
    is_archive = source.name.endswith(TAR) or is_packed(source.name)
    if not is_archive or kind_of_archive(source) != "tars":
        raise InputError(
            f"{source} is a file that is none of ImageNet's archives, {EXPECTED}; unpack it if it is an archive, and "
            "give the folder"
        )
    return Layout(root=source.parent, splits={"train": source.name}, label_folders=_label_folders(source.parent, ""))


def _splits(root: Path, base: str) -> dict[str, str]:
    """Each split's folder or archive in `base`, relative to root; InputError when a split is there twice."""
    folders, files = visible_names(root / base)
    found = {
        split: [f"{name}/" for name in folders if name == split]
        + [name for name in files if _ARCHIVES[split].fullmatch(name)]
        for split in SPLITS
    }
    for split, names in found.items():
        if len(names) > 1:
            raise InputError(
                f"{root / base} has {split} {len(names)} times ({', '.join(names)}), expected once; "
                "move all but one of them away"
            )
    return {split: os.path.join(base, names[0].rstrip("/")) for split, names in found.items() if names}


def _train_is_a_class(root: Path, splits: dict[str, str]) -> bool:
    """Whether train/ is the class of the vehicles: it holds pictures and no classes, as folders beside it do.

    Not where another split is there, or a folder that might be one, as in {train, test1}.
    """
    if splits != {"train": "train"} or not _is_flat(root / "train"):
        return False
    beside = _folders_beside(root, splits)
    return bool(beside) and not any(map(_BEGINS_AS_SPLIT.match, beside))


def _is_flat(folder: Path) -> bool:
    """Whether pictures lie in a folder, but no classes."""
    folders, files = visible_names(folder)
    has_classes = any(map(is_class_archive, files)) or any(has_pictures(folder / name, _DEPTH) for name in folders)
    return has_pictures(folder) and not has_classes


def _plain(root: Path) -> Layout:
    """Folders or tars of classes without train/, as torchvision's ImageFolder takes them; or one tar of such tars."""
    folders, files = visible_names(root)
    kinds = {name: kind_of_archive(root / name) for name in files if is_class_archive(name)}
    whole = [name for name, kind in kinds.items() if kind == "tars"]
    holders = [f"{each}/" for each in folders if _may_be_class(each) and has_pictures(root / each, _DEPTH)]
    holders += [name for name, kind in kinds.items() if kind == "pictures"]
    if whole and (len(whole) > 1 or holders):
        raise InputError(
            f"{root} holds tars of tars ({first_few(whole)})"
            + f" and, beside, classes ({first_few(holders)})" * bool(holders)
            + ", expected one of these; give one tar of tars as the source itself, or move all but one away"
        )
    label_folders = _label_folders(root, "")
    if whole:
        splits = {"train": whole[0]}
        return Layout(root=root, splits=splits, label_folders=label_folders, passed_over=_beside(root, "", splits))
    if not holders:
        held = first_few([f"{name}/" for name in folders] + files) or "nothing"
        unpack = "unpack its archives, or " if any(map(is_packed, files)) or kinds else ""
        raise InputError(f"{root} holds {held}, {EXPECTED}; {unpack}give the folder that holds one of these")
    classes = _classes_of_imagenets_names(root, folders)
    _require_no_splits(root, holders)
    return Layout(
        root=root,
        splits={"train": ""},
        label_folders=label_folders,
        no_classes=_IMAGENETS.union(KIT_NAMES) - set(classes),
        passed_over=tuple(PassedOver(BESIDE, str(root / name)) for name in KIT_NAMES if has_pictures(root / name)),
        notices=(f"taken as a class, like {first_few(holders)}: {first_few(classes)}",) if classes else (),
    )


def _may_be_class(name: str) -> bool:
    return name not in _IMAGENETS and name not in KIT_NAMES


def _classes_of_imagenets_names(root: Path, folders: Sequence[str]) -> list[str]:
    """Those of a plain folder's folders that have a name of ImageNet's tree, but hold pictures as classes do."""
    named = [name for name in folders if name in _IMAGENETS and has_pictures(root / name, _DEPTH)]
    if deep := [name for name in named if not has_pictures(root / name)]:
        raise InputError(
            f"{root} holds classes and, beside, pictures deep in {first_few(deep)}, a name of ImageNet's own tree, "
            f"expected one or the other; give {root / deep[0]}, move it away, or put all classes into a folder train/"
        )
    return named


def _require_no_splits(root: Path, holders: Sequence[str]) -> None:
    """InputError when classes are named like splits ({Train, Test}), which would be trained on as classes."""
    prefixes: dict[str, list[str]] = {}
    for name in holders:
        if match := _IS_A_SPLIT.fullmatch(name.rstrip("/").removesuffix(TAR)):
            prefixes.setdefault((match[1] or "").lower(), []).append(name)
    for names in prefixes.values():
        if len(names) > 1 or len(names) == len(holders):
            raise InputError(
                f"{root} holds {first_few(names)}, named like splits, expected classes; rename (or unpack) them to "
                "train/, val/ and test/ if they are splits, or put all into a folder train/ if they are classes"
            )


def _require_nothing_beside(folder: Path, splits: dict[str, str]) -> None:
    if beside := _folders_beside(folder, splits):
        raise InputError(
            f"{folder} has {', '.join(splits.values())} and, beside, folders of pictures ({first_few(beside)}), "
            "expected all classes within train; move these into it, or away; a class that is called train, val or test "
            "goes into it too"
        )


def _folders_beside(folder: Path, splits: dict[str, str]) -> list[str]:
    folders, _ = visible_names(folder)
    return [name for name in folders if name not in splits and _may_be_class(name) and has_pictures(folder / name)]


def _beside(root: Path, base: str, splits: dict[str, str]) -> tuple[PassedOver, ...]:
    """What is passed over beside the splits, and beside the folders on the way to them."""
    way = Path(base).parts
    passed_over: list[PassedOver] = []
    for depth in range(len(way) + 1):
        place = root.joinpath(*way[:depth])
        entries, unseen = look(place)
        passed_over += unseen
        taken = way[depth : depth + 1] or [os.path.basename(path) for path in splits.values()]
        beside = [each for each in entries if each.name not in taken and not leads_above(each, place)]
        passed_over += [PassedOver(BESIDE, each.path) for each in beside if _may_hold_pictures(each)]
    return tuple(passed_over)


def _may_hold_pictures(entry: Entry) -> bool:
    """Whether an entry is a picture, or may hold some."""
    if entry.is_folder:
        return has_pictures(Path(entry.path), depth=2)
    is_archive = entry.name.endswith(TAR) or is_packed(entry.name)
    return is_picture(entry.name) or (is_archive and not entry.name.startswith(KIT_NAMES))


def _label_folders(root: Path, base: str) -> tuple[Path, ...]:
    """The source's folder and that of the splits; in Kaggle's tree also ILSVRC/ and the folder that holds it."""
    folder = Path(os.path.abspath(root / base))
    above = folder.parents[1:3] if folder.parts[-2:] == _KAGGLE else []
    return tuple({os.path.abspath(place): place for place in (root, root / base, *above)}.values())
