"""What service.doctor looks at in a data set: its files at a glance, and how fast it is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.check.metadata import expected_names
from pipeline.command import InputError
from pipeline.folder import folder_at
from pipeline.manifest import load_dataset
from pipeline.reading.place import open_place
from service.diagnostics.finding import Finding, size
from service.diagnostics.probes import READ_SECONDS, Outcome

FULL_SIDE: Final = 256  # pixels: what pictures of original size are resized to, as in pipeline.load.graph
LEAST_SIDE: Final = 63  # of a crop, as model.alexnet has it


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """A data set on disk."""

    shards: str
    trouble: str = ""  # why it is not a data set, with what to do
    faults: tuple[str, ...] = field(default=())  # files that are missing or of another size
    pictures: int = 0  # to train on
    classes: int = 0
    bytes: int = 0
    side: int = 0  # of its pictures, pixels


def find_data(shards: str | Path) -> DataFiles:
    """Look at names and sizes of files alone."""
    try:
        dataset = load_dataset(open_place(shards))
        there = folder_at(shards).sizes()
    except InputError as error:
        return DataFiles(shards=str(shards), trouble=str(error))
    except OSError as error:
        trouble = (
            f"{shards} cannot be read ({error.strerror or error}), expected a data set; mend the disk or its rights"
        )
        return DataFiles(shards=str(shards), trouble=trouble)
    sizes = {f"{name}/{shard.name}": shard.bytes for name, split in dataset.splits.items() for shard in split.shards}
    faults = [f"{name} is missing" for name in sorted(expected_names(dataset) - there.keys())]
    faults += [
        f"{name} has {there[name]:,} bytes, not {expected:,}"
        for name, expected in sorted(sizes.items())
        if there.get(name, expected) != expected
    ]
    if "train" not in dataset.splits:
        faults.append("there is no split train")
    return DataFiles(
        shards=str(shards),
        faults=tuple(faults),
        pictures=dataset.splits["train"].samples if "train" in dataset.splits else 0,
        classes=len(dataset.classes),
        bytes=sum(there.values()),
        side=dataset.size or FULL_SIDE,
    )


def judge_data(files: DataFiles) -> Finding:
    """Whether its files look right, by names and sizes."""
    if files.trouble:
        found, _, remedy = files.trouble.rpartition("; ")
        return Finding("failed", "data set", found, "there is nothing to train on", remedy)
    found = f"{files.shards}: {files.pictures:,} pictures of {files.classes:,} classes, {size(files.bytes)}"
    if files.faults:
        first = files.faults[0]
        more = f", and {len(files.faults) - 1} more" if len(files.faults) > 1 else ""
        remedy = f"python -m pipeline.verify {files.shards} names every fault; copy or shard it again"
        return Finding("failed", "data set", found, f"{first}{more}", remedy)
    if files.side < LEAST_SIDE:
        follows = (
            f"its pictures are {files.side} pixels wide, and three poolings leave nothing of fewer than {LEAST_SIDE}"
        )
        return Finding("failed", "data set", found, follows, "shard them again with a larger --size (128, 256)")
    return Finding("ok", "data set", f"{found}; sizes are right (pipeline.verify reads every byte)")


def judge_reading(outcome: Outcome, shards: str) -> Finding:
    """outcome: of probes.read_batches."""
    if outcome.why:
        return Finding(
            "failed",
            "reading",
            f"no batch is read ({outcome.why})",
            "training fails at its first batch",
            f"python -m pipeline.verify --decode {shards} names every fault",
        )
    rate, decoder = outcome.value["images_per_second"], outcome.value["decoder"]
    made = "stored as pixels" if outcome.value["store"] == "raw" else f"decoded by the {decoder.upper()}"
    found = f"{rate:,.0f} images/s, {made}, in {READ_SECONDS:g} s"
    if outcome.value["damaged"]:
        follows = f"{len(outcome.value['damaged'])} of them are damaged, and others stand in"
        return Finding("warning", "reading", found, follows, f"python -m pipeline.verify {shards} names every fault")
    return Finding("ok", "reading", found)
