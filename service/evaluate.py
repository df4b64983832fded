"""COMMAND python -m service.evaluate: the errors of trained networks, alone and as an ensemble, on a split."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from model.views import Views
from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, run_command, say
from pipeline.files import check_outputs, write_output
from pipeline.load.batch_loader import BatchLoader, choose_device
from pipeline.load.storage import SampleStore
from pipeline.manifest import REJECTS_FILE, Dataset, load_samples, shard_order
from pipeline.progress import no_progress, progress
from pipeline.source.devkit import read_kits
from service.evaluation.evaluate import Evaluated, Evaluator, Weighting, check_fits, check_split, open_pictures
from service.evaluation.mixture import equal_weights
from service.evaluation.report import HEADINGS, LEFT, json_values, remarks, submission, table_rows
from service.network.read import load
from service.network.trained import TrainedNetwork
from service.results.table import markdown, print_table
from service.run.checkpoint import find_checkpoint
from service.run.log import read_records
from service.training.ranks import Ranks, RanksLost, join_ranks

PATIENCE_SECONDS = 3600.0  # that a rank waits for the others, which may read from slower disks


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure top-1 and top-5 error of trained networks on a split of shards, every picture counted once.

    Several checkpoints are an ensemble, whose softmax outputs are averaged. The numbers do not depend on the batch, on
    the cores, nor on the ranks (under torchrun the pictures are shared among them). Networks compute in float32.
    """

    checkpoints: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CHECKPOINT...", help_behavior_hint="(at least one)"),
    ]
    """Runs (the newest sound checkpoint of each), checkpoints, or files that service.load takes."""
    shards: str | Path = "shards"
    """Folder that python -m pipeline.shard made, or its URL (s3://bucket/prefix)."""
    split: str = "val"
    """train, val or test."""
    views: Views = 1
    """1: the centre crop; 10: the paper's, corners, centre and their mirrors, softmax averaged."""
    weights: Weighting = "equal"
    """Of an ensemble's members. fit: to the first half of the pictures; everything is then measured on the second."""
    batch_size: int = 128
    """Pictures read and decoded at a time."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU where there is one."""
    json: Path | None = None
    """File for all figures as JSON: errors on 0..1, each class, confusions, calibration."""
    table: Path | None = None
    """File for the table as Markdown."""
    reliability: Path | None = None
    """PNG to draw confidence against accuracy on."""
    predictions: Path | None = None
    """File for the five likeliest classes of every picture, a line each, in ILSVRC's submission form."""
    devkit: Path | None = None
    """Folder with ILSVRC's development kit, whose class numbers --predictions then has; else 1 is the first class."""

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise InputError("no checkpoint is named, expected at least one; give a run or a checkpoint")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected at least 1; set --batch-size")
        if self.weights == "fit" and len(self.checkpoints) < 2:
            raise InputError(
                "one network has no weights to fit, expected an ensemble; name more or use --weights equal"
            )
        if self.weights == "fit" and self.predictions:
            raise InputError(
                "--predictions takes pictures that fitted weights have seen, expected equal ones; use --weights equal"
            )
        if self.devkit and not self.predictions:
            raise InputError("--devkit is for class numbers of --predictions, expected both; give --predictions FILE")
        check_outputs({"--json": self.json, "--table": self.table, "--reliability": self.reliability,
                       "--predictions": self.predictions})  # fmt: skip


def main() -> int:
    """Evaluate as the command line says."""
    options = tyro.cli(EvaluateOptions, prog="python -m service.evaluate")
    end_on_signals()
    device = choose_device(options.device)
    try:
        with join_ranks(device, PATIENCE_SECONDS) as ranks:
            return evaluate(options, ranks)
    except RanksLost as error:
        say(f"error: {error}")
        return EXIT_FAULTS


def evaluate(options: EvaluateOptions, ranks: Ranks) -> int:
    """Measure on all ranks together; rank 0 reports."""
    paths = options.checkpoints
    if ranks.world_size > 1:  # rank 0 says which is a run's newest checkpoint, which may be another a moment later
        found_here = ranks.on_all_ranks(lambda: [network_path(path) for path in paths if ranks.is_leader])
        paths = ranks.broadcast(found_here)
    loader, networks, numbers = ranks.on_all_ranks(lambda: open_all(options, paths, ranks))
    samples = loader.dataset.splits[options.split].samples
    with progress(-(-samples // ranks.world_size), "pictures") if ranks.is_leader else no_progress() as advance:
        evaluator = Evaluator(
            networks,
            loader,
            options.split,
            views=options.views,
            batch_size=options.batch_size,
            ranks=ranks,
            advance=advance,
        )
        if has_labels(loader, options.split):
            found = evaluator.evaluate(options.weights)
            likeliest, damaged = found.likeliest, list(found.damaged)
        else:
            outcomes, damaged = evaluator.outcomes(equal_weights(len(networks))[None])
            found, likeliest = None, outcomes.likeliest
    if not ranks.is_leader:
        return EXIT_DONE
    for place in damaged:
        say(f"damaged sample ({place}): another stood in; shard the data set again, then evaluate again")
    if found:
        report(options, found, networks, loader)
    if options.predictions:
        text, guessed = predictions(likeliest, loader, options.split, numbers)
        write_output(options.predictions, text.encode(), "--predictions")
        note = f", {guessed} of them guesses for pictures that sharding rejected" if guessed else ""
        say(f"{options.predictions}: classes of {samples + guessed:,} pictures in the source's order{note}")
    return EXIT_FAULTS if damaged else EXIT_DONE


def network_path(path: Path) -> Path:
    """The file, or the checkpoint's folder, that a path stands for."""
    return path if path.is_file() else find_checkpoint(path).path


def open_all(
    options: EvaluateOptions, paths: Sequence[Path], ranks: Ranks
) -> tuple[BatchLoader, list[TrainedNetwork], list[int]]:
    """The pictures, the networks, and the number of each class; InputError where they do not belong together."""
    device = choose_device(options.device)
    loader = open_pictures(options.shards, device, ranks.threads_per_rank)
    check_split(loader, options.split)
    needs_labels = options.weights == "fit" or options.json or options.table or options.reliability
    if not has_labels(loader, options.split) and (needs_labels or not options.predictions):
        raise InputError(
            f"{options.split} of {options.shards} has no labels, expected some to measure errors; "
            "give --predictions FILE alone"
        )
    networks = [load(path, options.device) for path in paths]
    for network in networks:
        check_fits(network, loader)
    return loader, networks, class_numbers(loader.dataset, options.devkit)


def has_labels(loader: BatchLoader, split: str) -> bool:
    """Whether the pictures of a split have labels."""
    return bool((load_samples(loader.root, loader.dataset, split)["label"] >= 0).all())


def class_numbers(dataset: Dataset, devkit: Path | None) -> list[int]:
    """The number of each class in a submission: its ILSVRC id by a development kit, else counted from 1."""
    if not devkit:
        return [each.index + 1 for each in dataset.classes]
    for kit in read_kits([devkit, devkit.parent]):
        numbers = {id: number for number, id in kit.synsets.items()}
        if all(each.id in numbers for each in dataset.classes):
            return [numbers[each.id] for each in dataset.classes]
    raise InputError(f"{devkit} holds no development kit with these classes, expected ILSVRC's; give another --devkit")


def report(options: EvaluateOptions, found: Evaluated, networks: Sequence[TrainedNetwork], loader: BatchLoader) -> None:
    """Print the table, and write the files that were asked for."""
    classes = loader.dataset.classes
    rows = table_rows(found, f"{Path(options.shards).name} {options.split}")
    print_table(HEADINGS, rows, LEFT)
    sys.stdout.write("".join(f"{line}\n" for line in ["", *remarks(found, classes)]))
    if options.json:
        members = [{"checkpoint": str(network.path), "sha256": network.sha256} for network in networks]
        values = {"shards": str(options.shards), **json_values(found, classes, members)}
        write_output(options.json, (json.dumps(values, indent=1) + "\n").encode(), "--json")
    if options.table:
        write_output(options.table, markdown(HEADINGS, rows, LEFT).encode(), "--table")
    if options.reliability:
        from service.evaluation.reliability import reliability_png  # here: matplotlib takes a second to import

        write_output(options.reliability, reliability_png(found.bins, found.result.name), "--reliability")


def predictions(
    likeliest: NDArray[np.int32], loader: BatchLoader, split: str, numbers: Sequence[int]
) -> tuple[str, int]:
    """The lines of a submission, and how many of them are guesses."""
    shards, dataset = loader.root, loader.dataset
    rejected = sum(record.get("split") == split for record in read_records(shards / REJECTS_FILE))
    pictures = dataset.splits[split].samples + rejected
    keys = SampleStore(shards, dataset, split).keys()
    if keys.max(initial=-1) >= pictures:
        raise InputError(f"{shards} has key {keys.max()} in {split}, expected below {pictures:,}; copy or shard again")
    places = shard_order(dataset.seed, split, pictures)[keys]
    return submission(likeliest, places, pictures, numbers)


if __name__ == "__main__":
    run_command(main, results=True)
