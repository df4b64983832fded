"""Find the pictures and classes of ImageNet in every form that people have it in, and draw parts of them.

Classes are numbered in the order of their sorted ids, as ILSVRC's own lists, torchvision and Keras do. The same
pictures give the same Source whatever the form, but for where each lies.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.contents import Contents, class_files, contents, few, is_picture
from pipeline.devkit import MAPPING_FILE, WORDS_FILE, Kit, read_kits, read_truths, read_words
from pipeline.labels import label_flat
from pipeline.layout import EXPECTED, NOT_CLASSES, SPLITS, Layout, recognise
from pipeline.listing import Listing, concatenate, pack, shown
from pipeline.manifest import PictureClass
from pipeline.order import HOLD_OUT, SUBSET, permutation

_T = TypeVar("_T")
_LABELS: Final = "LOC_val_solution.csv, ILSVRC2012_devkit_t12.tar.gz or ILSVRC2010_devkit-1.0.tar.gz"


@dataclass(frozen=True, kw_only=True)
class Source:
    """All pictures of a source, each split sorted by (label, name)."""

    root: Path
    found: dict[str, str]  # split -> what was found, for people
    classes: tuple[PictureClass, ...]
    splits: dict[str, Listing]  # "train", "val", "test" in this order, those there are

    def sha256(self) -> str:
        """Of the classes' ids and words and of every picture's split, class, name and bytes; not of where it lies."""
        counts = {split: [len(listing), len(listing.names)] for split, listing in self.splits.items()}
        digest = hashlib.sha256(json.dumps([[(each.id, each.words) for each in self.classes], counts]).encode())
        for listing in self.splits.values():
            for column in (listing.labels, listing.bytes, listing.lengths()):
                digest.update(column.astype("<i8").tobytes())
            digest.update(listing.names)
        return digest.hexdigest()


class _Group(NamedTuple):
    """The pictures of one class in one split, first .. stop - 1 of its listing."""

    label: int
    first: int
    stop: int


def find_pictures(root: Path) -> Source:
    """List the classes and pictures of a folder or of ImageNet's archives.

    InputError, in one line, when it is in no known form, or incomplete, ambiguous, damaged or unreadable.
    """
    try:
        return _find(recognise(root))
    except OSError as error:
        where, why = error.filename or root, error.strerror or error
        raise InputError(shown(f"{where} cannot be read ({why}), expected ImageNet; mend it or its rights")) from error
    except InputError as error:
        raise InputError(shown(str(error))) from error


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """Move a seeded share of each class from train to a new val: the nearest whole number, and never a whole class."""
    train = source.splits["train"]
    held = np.zeros(len(train), np.bool_)
    for label, first, stop in _groups(train):
        count = min(round(fraction * (stop - first)), stop - first - 1)
        held[first + permutation(seed, HOLD_OUT, stop - first, stream=label)[:count]] = True
    if not held.any():
        raise InputError(f"a share of {fraction} holds out no picture of classes this small; expected a larger share")
    parts = {"train": train.take(np.flatnonzero(~held)), "val": train.take(np.flatnonzero(held))}
    found = {"val": f"{fraction} of each class of train, held out"}
    return replace(source, splits=_in_order(source.splits | parts), found=_in_order(source.found | found))


def subset(source: Source, classes: int, limit: int, seed: int) -> Source:
    """The first `classes` classes (0: all), and at most `limit` pictures of each in each split (0: all), drawn by seed.

    A larger subset contains a smaller one of the same seed. Of pictures without a label at most `limit` times the
    number of classes stay. InputError when there are fewer classes, or no picture of these in a split.
    """
    if not 0 <= classes <= len(source.classes):
        raise InputError(
            f"the source has {len(source.classes):,} classes, expected {classes:,}; ask for fewer or for 0"
        )
    if not classes and not limit:
        return source
    kept = source.classes[:classes] if classes else source.classes
    splits = {name: _drawn(source, name, len(kept), limit, seed) for name in source.splits}
    if empty := [name for name, listing in splits.items() if not len(listing)]:
        raise InputError(f"the first {len(kept):,} classes have no pictures in {few(empty)}; expected more classes")
    return replace(source, classes=kept, splits=splits)


def _drawn(source: Source, split: str, classes: int, limit: int, seed: int) -> Listing:
    listing = source.splits[split]
    chosen: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for label, first, stop in _groups(listing):
        if label < classes:
            stream = (SPLITS.index(split) << 32) + label + 1  # each class of each split draws for itself
            most = (limit or stop - first) * (1 if label >= 0 or not limit else classes)
            chosen.append(first + np.sort(permutation(seed, SUBSET, stop - first, stream=stream)[:most]))
    return listing.take(np.concatenate(chosen))


def _groups(listing: Listing) -> Iterator[_Group]:
    labels, firsts = np.unique(listing.labels, return_index=True)
    stops = [*firsts.tolist(), len(listing)][1:]
    return map(_Group, labels.tolist(), firsts.tolist(), stops)


def _in_order(by_split: dict[str, _T]) -> dict[str, _T]:
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _find(layout: Layout) -> Source:
    root = layout.root
    held = {split: contents(root, path, but=() if path else NOT_CLASSES) for split, path in layout.splits.items()}
    ids = list(held["train"].classes)
    for split, each in held.items():
        _require_classes(root / layout.splits[split], split, each, ids)
    words = read_words(layout.places, MAPPING_FILE)
    needs_kits = any(each.flat for each in held.values()) or not words.keys() >= set(ids)
    kits = read_kits(layout.places) if needs_kits else ()
    words = read_words(layout.places, WORDS_FILE) | _kit_words(kits) | words
    listed = {split: _listing(layout, split, each, ids, kits) for split, each in held.items()}
    return Source(
        root=root,
        found={split: found for split, (_, found) in listed.items()},
        classes=tuple(PictureClass(index=index, id=id, words=words.get(id, id)) for index, id in enumerate(ids)),
        splits={split: listing for split, (listing, _) in listed.items()},
    )


def _kit_words(kits: tuple[Kit, ...]) -> dict[str, str]:
    return {id: words for kit in kits for id, words in kit.words.items() if words}


def _listing(layout: Layout, split: str, held: Contents, ids: list[str], kits: tuple[Kit, ...]) -> tuple[Listing, str]:
    """The pictures of one split, and what was found."""
    path = layout.splits[split]
    if not held.flat:
        return _by_class(layout.root, split, path, held), _form(layout.root, path, held)
    where = layout.root / path
    names = [file.name for file in held.flat]
    answers, origins = label_flat(str(where), names, read_truths(split, layout.places, kits))
    if not answers and split == "val":
        raise InputError(
            f"{where} holds {len(names):,} pictures without classes, and nothing that labels them is beside it, "
            f"expected {_LABELS}; put one into {layout.root}"
        )
    _require_same(str(where), ids, sorted(set(ids) | set(answers)), split)
    index = {id: label for label, id in enumerate(ids)}
    labels = [index[answer] for answer in answers] or [-1] * len(names)
    by = f"labels from {' and '.join(Path(origin).name for origin in origins)}" if answers else "no labels"
    return pack(path, held.flat, labels), f"{_form(layout.root, path, held)}, {by}"


def _by_class(root: Path, split: str, path: str, held: Contents) -> Listing:
    parts: list[Listing] = []
    empty: list[str] = []
    for label, (id, holder) in enumerate(held.classes.items()):
        files = class_files(root, holder, id)
        parts.append(pack(holder.path, files, [label] * len(files)))
        # Where no train/ says that the folders are classes, pictures have to.
        if not any(is_picture(os.fsdecode(file.name)) for file in files) if not path else not files:
            empty.append(id)
    if split == "train" and empty:
        raise InputError(
            f"{root / path} has {len(empty):,} classes without pictures, expected some in each; "
            f"fill or remove them in every split: {few(empty)}"
        )
    if len(empty) == len(parts):
        raise InputError(f"{root / path} holds no pictures, expected {split}/<class>/<pictures>; fill or remove it")
    return concatenate(parts)


def _form(root: Path, path: str, held: Contents) -> str:
    """How a split lies there, for people."""
    if not (root / path).is_dir():
        return f"archive {path}"
    if held.flat:
        return f"flat folder {path}/"
    packed = sum(holder.start >= 0 for holder in held.classes.values())
    forms = {"class folders": len(held.classes) - packed, "class archives": packed}
    return " and ".join(f"{count:,} {form}" for form, count in forms.items() if count) + f" in {path or '.'}/"


def _require_classes(where: Path, split: str, held: Contents, ids: list[str]) -> None:
    if split == "train" and not ids:
        loose = f", but {len(held.flat):,} pictures without classes" if held.flat else ""
        raise InputError(f"{where} holds no classes{loose}; {EXPECTED}; is it unpacked?")
    if not held.flat and not held.classes:
        raise InputError(f"{where} holds no pictures, expected {split}/<class>/<pictures>; fill it or move it away")
    if held.classes:
        _require_same(str(where), ids, list(held.classes), split)


def _require_same(where: str, train: list[str], other: list[str], split: str) -> None:
    if train == other:
        return
    only = {"train": sorted(set(train) - set(other)), split: sorted(set(other) - set(train))}
    differences = "; ".join(f"only in {name}: {few(ids)}" for name, ids in only.items() if ids)
    raise InputError(
        f"{where} has unlike classes in train and {split}, expected the same; move or remove some: {differences}"
    )
