"""In what another data set differs from the one that a run began with, in words: a hash says only that it does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.command import InputError, printable
from pipeline.manifest import SPLITS, Dataset, load_dataset, pictures_sha256
from pipeline.reading.place import open_place
from pipeline.source.names import first_few
from service.run.checkpoint import Checkpoint
from service.run.config import DATASET
from service.run.preprocessing import DATASET_OPTIONS, dataset_facts, read_dataset_facts


def change_since(checkpoint: Checkpoint, dataset: Dataset) -> str:
    """In what `dataset` differs from a verified checkpoint's, another one; empty where nothing is known of that."""
    return describe_change(known_facts(checkpoint), dataset_facts(dataset))


def known_facts(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What is known of a checkpoint's data set; an earlier version's has all of it only while its shards are there."""
    saved = read_dataset_facts(checkpoint.path)
    if "pictures" in saved:
        return saved
    try:
        dataset = load_dataset(open_place(checkpoint.run["data"]["shards"]))
        if pictures_sha256(dataset) == checkpoint.run.get(DATASET):
            return dataset_facts(dataset)
    except InputError:  # moved, or damaged since
        pass
    return saved


def describe_change(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two data sets differ, as far as both are known; empty where nothing is. Arguments: of dataset_facts."""
    known = [name for name in there if name in here]
    options = (name for name in DATASET_OPTIONS if name in known and there[name] != here[name])
    found = [f"{name} {there[name]} there, {here[name]} here" for name in options]
    contents = [*_pictures(there["pictures"], here["pictures"])] if "pictures" in known else []
    contents += _classes(there["classes"], here["classes"]) if "classes" in known else []
    if not contents and "source_sha256" in known and there["source_sha256"] != here["source_sha256"]:
        contents = ["as many source pictures, but others"]
    same = f"of the same {', '.join(known)}" if known else ""
    return ", ".join([*found, *contents]) or same


def _pictures(there: Mapping[str, int], here: Mapping[str, int]) -> Iterator[str]:
    for split in SPLITS:
        if there.get(split) != here.get(split):
            yield f"{split} {there.get(split, 0):,} pictures there, {here.get(split, 0):,} here"


def _classes(there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    theirs, ours = ({each["id"]: each["words"] for each in classes} for classes in (there, here))
    if len(theirs) != len(ours):
        yield f"{len(theirs):,} classes there, {len(ours):,} here"
    for some, others, where in ((theirs, ours, "there"), (ours, theirs, "here")):
        if alone := [each for each in some if each not in others]:
            yield f"{_names(alone)} {where} alone"
    if renamed := [each for each in theirs if each in ours and theirs[each] != ours[each]]:
        yield f"other words for {_names(renamed)}"


def _names(classes: Sequence[str]) -> str:
    """Class a; classes a, b and c."""
    return f"class{'es' if len(classes) > 1 else ''} {printable(first_few(classes))}"
