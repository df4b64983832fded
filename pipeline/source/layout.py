"""Which form a source has: where its splits lie, and where labels and words may."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.command import InputError
from pipeline.manifest import SPLITS
from pipeline.source.contents import first_few, is_picture, visible_names
from pipeline.source.devkit import KIT_NAMES

_ARCHIVES: Final = {
    split: re.compile(rf"ILSVRC(2012_img|2010_images)_{split}{tail}\.tar")
    for split, tail in {"train": "", "val": "", "test": "(_v.*)?"}.items()
}
_KAGGLE: Final = ("Data", "CLS-LOC")
_BASES: Final = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where splits may lie, from the source's folder

# Folders that come with ImageNet, or with a file system, and are no classes.
NOT_CLASSES: Final = frozenset(
    {*SPLITS, *KIT_NAMES, "ILSVRC", "Data", "CLS-LOC", "Annotations", "ImageSets", "lost+found"}
)

EXPECTED: Final = (
    "expected train/<class>/<pictures>, Kaggle's ILSVRC/Data/CLS-LOC/train, the archive ILSVRC2012_img_train.tar, or "
    "<class>/<pictures>"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a source's splits lie, and where its labels may lie."""

    root: Path
    splits: dict[str, str]  # "train", "val", "test", those there are -> folder or archive, relative; "" is root itself
    label_folders: tuple[Path, ...]  # folders that may hold labels and words


def detect_layout(source: Path) -> Layout:
    """Look at a folder, or at the folder of an archive; InputError when it has no form known, or more than one."""
    root = _root(source)
    forms = {base: found for base in _BASES if (root / base).is_dir() and (found := _splits(root, base))}
    if len(forms) > 1:
        both = " and ".join(f"{base or '.'}/ ({', '.join(found)})" for base, found in forms.items())
        raise InputError(f"{root} has pictures in {both}, expected one; give one of these folders, or move one away")
    if not forms:
        return _plain(root)
    base, splits = next(iter(forms.items()))
    if "train" not in splits:
        held = ", ".join(splits.values())
        raise InputError(f"{root / base} has no train/ beside {held}, {EXPECTED}; give the folder that holds train/")
    _require_nothing_beside(root / base, splits)
    return Layout(root=root, splits=splits, label_folders=_label_folders(root, base))


def _root(source: Path) -> Path:
    if source.is_file() and any(pattern.fullmatch(source.name) for pattern in _ARCHIVES.values()):
        return source.parent
    if source.is_dir():
        return source
    what = "is a file that is none of ImageNet's archives" if source.exists() else "is not there"
    raise InputError(f"{source} {what}, {EXPECTED}; give the folder that holds one of these")


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


def _plain(root: Path) -> Layout:
    """Class folders without train/, as torchvision's ImageFolder takes them."""
    folders, files = visible_names(root)
    classes = [name for name in folders if name not in NOT_CLASSES]
    if not any(_has_pictures(root / name, depth=3) for name in classes):
        held = first_few([f"{name}/" for name in folders] + files) or "nothing"
        raise InputError(f"{root} holds {held}, {EXPECTED}; give the folder that holds one of these")
    return Layout(root=root, splits={"train": ""}, label_folders=_label_folders(root, ""))


def _require_nothing_beside(folder: Path, splits: dict[str, str]) -> None:
    folders, _ = visible_names(folder)
    if beside := [name for name in folders if name not in NOT_CLASSES and _has_pictures(folder / name)]:
        raise InputError(
            f"{folder} has {', '.join(splits.values())} and, beside, folders of pictures ({first_few(beside)}), "
            "expected all classes within train; move these into it, or away"
        )


def _has_pictures(folder: Path, depth: int = 1) -> bool:
    try:
        folders, files = visible_names(folder)
    except OSError:
        return False
    return any(map(is_picture, files)) or (
        depth > 1 and any(_has_pictures(folder / name, depth - 1) for name in folders)
    )


def _label_folders(root: Path, base: str) -> tuple[Path, ...]:
    """The source's folder and that of the splits; in Kaggle's tree also ILSVRC/ and the folder that holds it."""
    folder = Path(os.path.abspath(root / base))
    above = folder.parents[1:3] if folder.parts[-2:] == _KAGGLE else []
    return tuple({os.path.abspath(place): place for place in (root, root / base, *above)}.values())
