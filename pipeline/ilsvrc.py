"""Find the pictures and classes of an ImageNet-like source.

One layout so far: `SOURCE/train/<class>/*` and, if there is one, `SOURCE/val/<class>/*`; classes are numbered in the
order of their sorted ids, as ILSVRC's own lists are.
"""

import os
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.command import InputError
from pipeline.manifest import PictureClass
from pipeline.order import HOLD_OUT, permutation

_LAYOUT: Final = "SOURCE/train/<class>/<pictures>"
_WORDS_FILE: Final = "LOC_synset_mapping.txt"  # in Kaggle's copy of ILSVRC; a line is "n01440764 tench, Tinca tinca"


class Picture(NamedTuple):
    """One source file; 1.3 million of these fit in memory."""

    path: str  # relative to the source
    label: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """All pictures of a source, per split sorted by path."""

    root: Path
    classes: tuple[PictureClass, ...]
    splits: dict[str, tuple[Picture, ...]]


def find_pictures(root: Path) -> Source:
    """List classes and pictures below `root`; InputError when it does not have the layout, naming what is missing."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, expected {_LAYOUT}; give the folder that contains train/")
    if not (root / "train").is_dir():
        raise InputError(f"{root} has no folder train/, expected {_LAYOUT}; give the folder that contains train/")
    names = ["train", "val"] if (root / "val").is_dir() else ["train"]
    ids = {name: _folders(root / name) for name in names}
    if not ids["train"]:
        raise InputError(f"{root}/train holds no class folders, expected {_LAYOUT}; is it unpacked?")
    if "val" in ids:
        _require_same(root, ids["train"], ids["val"])
    splits = {name: _pictures(root, name, ids["train"]) for name in names}
    _require_pictures(root, ids["train"], splits)
    return Source(root=root, classes=_classes(root, ids["train"]), splits=splits)


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """Move a seeded share of each class from train to a new val: the nearest whole number, and never a whole class."""
    splits: dict[str, list[Picture]] = {"train": [], "val": []}
    for label, group in groupby(source.splits["train"], key=lambda picture: picture.label):
        pictures = list(group)
        count = min(round(fraction * len(pictures)), len(pictures) - 1)
        held = set(permutation(seed, HOLD_OUT, len(pictures), stream=label)[:count].tolist())
        for position, picture in enumerate(pictures):
            splits["val" if position in held else "train"].append(picture)
    if not splits["val"]:
        raise InputError(f"a share of {fraction} holds out no picture of classes this small; expected a larger share")
    return replace(source, splits={name: tuple(pictures) for name, pictures in splits.items()})


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _pictures(root: Path, split: str, ids: list[str]) -> tuple[Picture, ...]:
    return tuple(picture for label, id in enumerate(ids) for picture in _class_pictures(root, f"{split}/{id}", label))


def _class_pictures(root: Path, folder: str, label: int) -> list[Picture]:
    with os.scandir(root / folder) as entries:
        return sorted(
            Picture(f"{folder}/{entry.name}", label, entry.stat().st_size)
            for entry in entries
            if entry.is_file() and not entry.name.startswith(".")
        )


def _require_same(root: Path, train: list[str], val: list[str]) -> None:
    if train == val:
        return
    only = {"train": sorted(set(train) - set(val)), "val": sorted(set(val) - set(train))}
    differences = "; ".join(f"only in {name}: {_few(ids)}" for name, ids in only.items() if ids)
    raise InputError(
        f"{root} has unlike classes in train and val, expected the same; move or remove some: {differences}"
    )


def _require_pictures(root: Path, ids: list[str], splits: dict[str, tuple[Picture, ...]]) -> None:
    filled = {picture.label for picture in splits["train"]}
    if empty := [id for label, id in enumerate(ids) if label not in filled]:
        raise InputError(
            f"{root}/train has {len(empty)} class folders without files, expected {_LAYOUT}; "
            f"fill or remove them in every split: {_few(empty)}"
        )
    if not all(splits.values()):
        raise InputError(f"{root}/val holds no pictures, expected val/<class>/<pictures>; fill it or remove val/")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _classes(root: Path, ids: list[str]) -> tuple[PictureClass, ...]:
    words = _words(root / _WORDS_FILE)
    return tuple(PictureClass(index=index, id=id, words=words.get(id, id)) for index, id in enumerate(ids))


def _words(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {id: words.strip() for id, _, words in (line.partition(" ") for line in lines) if words.strip()}
