"""Parts of a source, drawn by seed: some classes, some pictures of each, a share held out for validation."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.manifest import SPLITS
from pipeline.randomness import HOLD_OUT, SUBSET, permutation
from pipeline.source.ilsvrc import Source
from pipeline.source.listing import Listing
from pipeline.source.names import first_few

_T = TypeVar("_T")


class _Group(NamedTuple):
    """The pictures of one class in one split, first .. stop - 1 of its listing."""

    label: int
    first: int
    stop: int


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
    return replace(source, splits=_in_order(source.splits | parts), descriptions=_in_order(source.descriptions | found))


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
        raise InputError(
            f"the first {len(kept):,} classes have no pictures in {first_few(empty)}; expected more classes"
        )
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
