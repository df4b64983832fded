"""The classes of pictures that lie in one flat folder or archive, from what lies beside them."""

import os
import re
from collections.abc import Sequence
from typing import Final

from pipeline.command import InputError
from pipeline.source.devkit import GroundTruth
from pipeline.source.names import first_few, look_the_same

_YEAR: Final = re.compile(r"ILSVRC([0-9]{4})_")


def label_flat_folder(where: str, names: Sequence[bytes], truths: Sequence[GroundTruth]) -> tuple[list[str], list[str]]:
    """The class id of each picture, and the sources that say so; both empty when none labels these pictures.

    InputError when a source does not fit the pictures, or two disagree.
    """
    stems = [os.fsdecode(name).rpartition(".")[0] for name in names]
    years = {match[1] for stem in stems if (match := _YEAR.match(stem))}
    speaking = [truth for truth in truths if not truth.year or not years or years == {truth.year}]
    answers = [_ids(where, stems, truth) for truth in speaking]
    for truth, ids in zip(speaking[1:], answers[1:], strict=True):
        _require_agreement(where, stems, (speaking[0], truth), (answers[0], ids))
    return (answers[0] if answers else []), [truth.source for truth in speaking]


def _ids(where: str, stems: list[str], truth: GroundTruth) -> list[str]:
    keys = [truth.key(stem) for stem in stems]
    without_label = [stem for stem, key in zip(stems, keys, strict=True) if key not in truth.ids]
    missing = truth.ids.keys() - set(keys)
    if without_label or missing or len(keys) != len(truth.ids):
        details = [f"no label for {first_few(without_label)}"] * bool(without_label)
        details += [f"no picture for {first_few(sorted(missing))}"] * bool(missing)
        same = look_the_same([*without_label, *missing])
        details += [f"some differ only in Unicode normalisation: {same}"] * bool(same)
        raise InputError(
            f"{where} holds {len(stems):,} pictures and {truth.source} labels {len(truth.ids):,}, expected the same "
            f"({'; '.join(details) or 'some pictures have one number'}); complete the pictures, or take the labels away"
        )
    return [truth.ids[key] for key in keys]


def _require_agreement(
    where: str, stems: list[str], truths: tuple[GroundTruth, GroundTruth], answers: tuple[list[str], list[str]]
) -> None:
    for stem, first, second in zip(stems, *answers, strict=True):
        if first != second:
            raise InputError(
                f"{where}: {stem} is {first} in {truths[0].source} and {second} in {truths[1].source}, "
                "expected them to agree; take the wrong one away"
            )
