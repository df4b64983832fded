"""Find the pictures and classes of ImageNet, in all the forms in which people have it.

Classes are numbered in the order of their sorted ids, as ILSVRC's own lists, torchvision and Keras do. The same
pictures give the same Source whatever the form, but for where each lies.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.command import InputError, printable
from pipeline.manifest import PictureClass
from pipeline.source.contents import Contents, class_files, list_contents
from pipeline.source.devkit import MAPPING_FILE, WORDS_FILE, DevelopmentKit, read_ground_truths, read_kits, read_words
from pipeline.source.folders import Identity, PassedOver, identity_of, what_was_passed_over
from pipeline.source.labels import label_flat_folder
from pipeline.source.layout import EXPECTED, Layout, detect_layout
from pipeline.source.listing import Listing, concatenate, make_listing
from pipeline.source.names import differ_in_capitals, first_few, is_picture, look_the_same

_LABELS: Final = "LOC_val_solution.csv, ILSVRC2012_devkit_t12.tar.gz or ILSVRC2010_devkit-1.0.tar.gz"


@dataclass(frozen=True, kw_only=True)
class Source:
    """All pictures of a source, each split sorted by (label, name)."""

    root: Path
    descriptions: dict[str, str]  # split -> what was found, for people
    classes: tuple[PictureClass, ...]
    splits: dict[str, Listing]  # "train", "val", "test" in this order, those there are
    notices: tuple[str, ...] = ()  # lines for people: what was passed over, or might have been meant otherwise

    def sha256(self) -> str:
        """Of the classes' ids and words and of every picture's split, class, name and bytes; not of where it lies."""
        counts = {split: [len(listing), len(listing.names)] for split, listing in self.splits.items()}
        digest = hashlib.sha256(json.dumps([[(each.id, each.words) for each in self.classes], counts]).encode())
        for listing in self.splits.values():
            for column in (listing.labels, listing.bytes, listing.lengths()):
                digest.update(column.astype("<i8").tobytes())
            digest.update(listing.names)
        return digest.hexdigest()


class _Listed(NamedTuple):
    """One split."""

    listing: Listing
    description: str  # what was found
    passed_over: Sequence[PassedOver]


def find_pictures(root: Path) -> Source:
    """List the classes and pictures of a folder or of ImageNet's archives.

    InputError, in one line, when it is in no known form, or incomplete, ambiguous, damaged or unreadable.
    """
    try:
        return _find_pictures(detect_layout(root))
    except OSError as error:
        where, why = error.filename or root, error.strerror or error
        raise InputError(f"{where} cannot be read ({why}), expected ImageNet; mend it or its rights") from error


def _find_pictures(layout: Layout) -> Source:
    root = layout.root
    held = {
        split: list_contents(root, path, excluding=() if path else layout.no_classes)
        for split, path in layout.splits.items()
    }
    ids = list(held["train"].classes)
    _require_distinct(root / layout.splits["train"], ids)
    for split, each in held.items():
        _require_classes(root / layout.splits[split], split, each, ids)
    words = read_words(layout.label_folders, MAPPING_FILE)
    needs_kits = any(each.flat for each in held.values()) or not words.keys() >= set(ids)
    kits = read_kits(layout.label_folders) if needs_kits else ()
    words = read_words(layout.label_folders, WORDS_FILE) | _kit_words(kits) | words
    holders = _holders(layout, held.values())
    listed = {split: _listing(layout, split, each, ids, kits, holders) for split, each in held.items()}
    passed_over = chain(
        layout.passed_over,
        *(each.passed_over for each in held.values()),
        *(each.passed_over for each in listed.values()),
    )
    notices = [*layout.notices, *_case_notices(ids), *what_was_passed_over(root, passed_over)]
    return Source(
        root=root,
        descriptions={split: each.description for split, each in listed.items()},
        classes=tuple(PictureClass(index=index, id=id, words=words.get(id, id)) for index, id in enumerate(ids)),
        splits={split: each.listing for split, each in listed.items()},
        notices=tuple(map(printable, notices)),
    )


def _holders(layout: Layout, held: Iterable[Contents]) -> frozenset[Identity]:
    """The folders of all splits and classes."""
    splits = [path for path in layout.splits.values() if (layout.root / path).is_dir()]
    classes = [holder.identity for each in held for holder in each.classes.values() if holder.identity]
    return frozenset([*classes, *(identity_of(layout.root / path) for path in splits)])


def _case_notices(ids: list[str]) -> list[str]:
    groups = differ_in_capitals(ids)
    return [f"{len(groups):,} groups of classes differ only in capitals: {first_few(groups[0])}"] if groups else []


def _kit_words(kits: tuple[DevelopmentKit, ...]) -> dict[str, str]:
    return {id: words for kit in kits for id, words in kit.words.items() if words}


def _listing(
    layout: Layout,
    split: str,
    held: Contents,
    ids: list[str],
    kits: tuple[DevelopmentKit, ...],
    holders: frozenset[Identity],
) -> _Listed:
    path = layout.splits[split]
    if not held.flat:
        return _by_class(layout.root, split, path, held, holders)
    where = layout.root / path
    names = [file.name for file in held.flat]
    answers, origins = label_flat_folder(str(where), names, read_ground_truths(split, layout.label_folders, kits))
    if not answers and split == "val":
        raise InputError(
            f"{where} holds {len(names):,} pictures without classes, and nothing that labels them is beside it, "
            f"expected {_LABELS}; put one into {layout.root}"
        )
    _require_same(str(where), ids, sorted(set(ids) | set(answers)), split)
    index = {id: label for label, id in enumerate(ids)}
    labels = [index[answer] for answer in answers] or [-1] * len(names)
    by = f"labels from {' and '.join(Path(origin).name for origin in origins)}" if answers else "no labels"
    return _Listed(make_listing(path, held.flat, labels), f"{_describe(layout.root, path, held)}, {by}", ())


def _by_class(root: Path, split: str, path: str, held: Contents, holders: frozenset[Identity]) -> _Listed:
    parts: list[Listing] = []
    empty: list[str] = []
    passed_over: list[PassedOver] = []
    for label, (id, holder) in enumerate(held.classes.items()):
        files, unseen = class_files(root, holder, id, holders)
        passed_over += unseen
        parts.append(make_listing(holder.path, files, [label] * len(files)))
        # Without train/ (path is empty) a folder is a class only if it holds pictures; in train/ any file will do.
        if not any(is_picture(os.fsdecode(file.name)) for file in files) if not path else not files:
            empty.append(id)
    if split == "train" and empty:
        raise InputError(
            f"{root / path} has {len(empty):,} classes without pictures, expected some in each; "
            f"fill or remove them in every split: {first_few(empty)}"
        )
    if len(empty) == len(parts):
        raise InputError(f"{root / path} holds no pictures, expected {split}/<class>/<pictures>; fill or remove it")
    return _Listed(concatenate(parts), _describe(root, path, held), passed_over)


def _describe(root: Path, path: str, held: Contents) -> str:
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


def _require_distinct(where: Path, ids: list[str]) -> None:
    if same := look_the_same(ids):
        raise InputError(
            f"{where} has classes whose names look the same and differ in Unicode normalisation ({same}), expected one "
            "of them; merge their pictures, or rename one"
        )


def _require_same(where: str, train: list[str], other: list[str], split: str) -> None:
    if train == other:
        return
    only = {"train": sorted(set(train) - set(other)), split: sorted(set(other) - set(train))}
    differences = "; ".join(f"only in {name}: {first_few(ids)}" for name, ids in only.items() if ids)
    same = look_the_same(chain(*only.values()))
    hint = f"; some differ only in Unicode normalisation, rename them: {same}" if same else ""
    raise InputError(
        f"{where} has unlike classes in train and {split}, expected the same; move or remove some: {differences}{hint}"
    )
