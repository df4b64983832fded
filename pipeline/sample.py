"""COMMAND python -m pipeline.sample: write a small tree of generated pictures, laid out as ILSVRC is.

It is the data set for a first trial on a fresh machine.

A picture is a pure function of (seed, split, class, index): the number of workers does not matter, and a larger tree
contains the pictures of a smaller one.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import tyro
from PIL import Image

from pipeline.command import EXIT_DONE, InputError, end_on_signals, run_command
from pipeline.executors.ordered import results_in_order
from pipeline.executors.pool import LocalPool
from pipeline.host.cpus import usable_cores
from pipeline.host.memory import keep_freed_memory
from pipeline.progress import progress
from pipeline.synthetic.scene import GENERATOR, picture
from pipeline.synthetic.textures import TEXTURES

SPLITS: Final = ("train", "val")
MIN_SIDE: Final = 64  # pixels; below, the finest textures fall under five pixels a period
MAX_SIDE: Final = 2048  # pixels
JPEG_QUALITY: Final = 90
METADATA_FILE: Final = "sample.json"
SYNSETS: Final = "LOC_synset_mapping.txt"  # the name that ILSVRC's Kaggle edition gives it

_PICTURES_A_TASK = 25


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Write generated pictures in ten classes, laid out as ImageNet's are.

    DIR/train/CLASS/*.JPEG, DIR/val/CLASS/*.JPEG, and DIR/LOC_synset_mapping.txt with each class's words.
    """

    dir: tyro.conf.Positional[Path]
    """Folder to make. One made before with the same options is left as it is."""
    train_pictures: int = 400
    """Training pictures a class."""
    val_pictures: int = 50
    """Validation pictures a class."""
    seed: int = 0
    """Every picture follows from it."""
    side: tuple[int, int] = (140, 260)
    """Least and greatest length of a picture's sides, pixels."""
    workers: int = field(default_factory=lambda: min(usable_cores(), 16))
    """Processes that draw; the pictures do not depend on it."""

    def __post_init__(self) -> None:
        if self.train_pictures < 1 or self.val_pictures < 0:
            counts = f"--train-pictures {self.train_pictures} --val-pictures {self.val_pictures}"
            raise InputError(f"{counts}: expected at least 1 and at least 0")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"--seed {self.seed}: expected 0 to 2^64 - 1")
        least, greatest = self.side
        if not MIN_SIDE <= least <= greatest <= MAX_SIDE:
            raise InputError(f"--side {least} {greatest}: expected {MIN_SIDE} <= least <= greatest <= {MAX_SIDE}")
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: expected at least 1")

    @property
    def wanted(self) -> tuple[int, ...]:
        """Pictures a class in each of the splits."""
        return self.train_pictures, self.val_pictures

    @property
    def pictures(self) -> int:
        """Pictures in the whole tree."""
        return len(TEXTURES) * sum(self.wanted)


class Task(NamedTuple):
    """A run of pictures of one class."""

    split: int
    label: int
    indices: range


def tasks(config: SampleConfig) -> list[Task]:
    """All pictures of the tree, in runs small enough for a smooth progress bar."""
    return [
        Task(split, label, range(first, min(first + _PICTURES_A_TASK, pictures)))
        for split, pictures in enumerate(config.wanted)
        for label in range(len(TEXTURES))
        for first in range(0, pictures, _PICTURES_A_TASK)
    ]


def picture_path(split: int, label: int, index: int) -> Path:
    """Where a picture lies in the tree; file names are unique throughout it."""
    wnid = TEXTURES[label].wnid
    return Path(SPLITS[split], wnid, f"{wnid}_{SPLITS[split]}_{index:05}.JPEG")


def write_pictures(task: Task, root: Path, seed: int, side: tuple[int, int]) -> int:
    """Draw and write a task's pictures below root, whose class folders exist; returns how many."""
    keep_freed_memory()
    for index in task.indices:
        pixels = picture(seed, task.split, task.label, index, side)
        Image.fromarray(pixels).save(root / picture_path(task.split, task.label, index), "JPEG", quality=JPEG_QUALITY)
    return len(task.indices)


def write_tree(root: Path, config: SampleConfig) -> None:
    """Write the tree into the empty folder root; its record comes last."""
    for task in tasks(config):
        (root / picture_path(task.split, task.label, 0)).parent.mkdir(parents=True, exist_ok=True)
    (root / SYNSETS).write_text("".join(f"{texture.wnid} {texture.words}\n" for texture in TEXTURES), encoding="utf-8")
    write = partial(write_pictures, root=root, seed=config.seed, side=config.side)
    with (
        progress(config.pictures, "pictures") as advance,
        results_in_order(write, tasks(config), LocalPool(config.workers)) as counts,
    ):
        for _, count in counts:
            advance(count)
    (root / METADATA_FILE).write_text(json.dumps(sample_metadata(config), indent=2) + "\n", encoding="utf-8")


def sample_metadata(config: SampleConfig) -> dict[str, object]:
    """What determines the pictures, as METADATA_FILE holds it."""
    return {
        "generator": GENERATOR,
        "seed": config.seed,
        "side": list(config.side),
        "train_pictures": config.train_pictures,
        "val_pictures": config.val_pictures,
    }


def already_made(config: SampleConfig) -> bool:
    """Whether the folder holds this very tree, all of it; raises InputError where it holds something else."""
    if not config.dir.exists() or (config.dir.is_dir() and not any(config.dir.iterdir())):
        return False
    remedy = "name a new folder or remove this one"
    try:
        found = json.loads((config.dir / METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{config.dir} exists and is not a sample tree: {remedy}") from None
    if found != sample_metadata(config):
        raise InputError(f"{config.dir} was made with other options, {json.dumps(found)}: {remedy}")
    count = sum(1 for _ in config.dir.glob("*/*/*.JPEG"))
    if count != config.pictures:
        raise InputError(f"{config.dir} holds {count} pictures, expected {config.pictures}: {remedy}")
    return True


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside target; renamed to target on success, removed on any exception."""
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(target)  # replaces an empty folder, fails on a full one
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # the exception matters more
        raise


def make(config: SampleConfig) -> None:
    """Make the tree of config, complete or not at all; InputError when it cannot be written."""
    try:
        with atomic_folder(config.dir.resolve()) as temporary:
            write_tree(temporary, config)
    except OSError as error:
        raise InputError(f"{config.dir} cannot be written: {error}") from error


def main() -> int:
    config = tyro.cli(SampleConfig, prog="python -m pipeline.sample")
    end_on_signals()
    if already_made(config):
        sys.stdout.write(f"{config.dir}: already there\n")
        return EXIT_DONE
    make(config)
    sys.stdout.write(f"{config.dir}: {config.pictures} pictures in {len(TEXTURES)} classes\n")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
