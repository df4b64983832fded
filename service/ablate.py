"""COMMAND python -m service.ablate: the paper's experiments, each by one command."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, run_command, say
from pipeline.files import write_output
from pipeline.load.batch_loader import choose_device
from pipeline.manifest import Dataset, load_dataset
from pipeline.progress import progress, spinner
from pipeline.reading.place import open_place
from service.ablation.experiments import EXPERIMENTS, IMAGENETTE, Experiment
from service.ablation.measures import history_of, is_finished, variants_of
from service.ablation.plan import PlannedRun, plan
from service.ablation.report import LEFT, as_json, document, headings, picture, remarks, rows_of
from service.ablation.timing import file_of, speed_here
from service.ablation.training import Work, train
from service.ablation.training_error import measure_training_errors, read_training_errors
from service.results.table import print_table


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Train the variants of an experiment of the paper, and compare them with the base, seed by seed.

    All runs of an experiment differ in exactly the fields that it names; those of one seed see the same crops. A run
    that is finished is not repeated, one that was interrupted goes on. Differences are means of pairs, with 95%
    intervals by Student's t; one whose interval holds 0 is within noise.
    """

    experiments: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT...")] = ()
    """Names, as --list has them; experiments share the runs that they have in common."""
    list: bool = False
    """Say what each experiment tests, what it trains, and how long that takes on this machine, from a few steps of it
    where there are pictures."""
    data: Path | None = None
    """Folder of pictures, train/<class>/* and val/<class>/*; sharded once, into --out."""
    shards: str | Path | None = None
    """The same sharded already, by pipeline.shard --size 128: a folder, or a URL."""
    out: Path = Path("ablations")
    """Folder for runs, tables and pictures."""
    seeds: int = 3
    """Runs of each variant; an interval takes at least 2."""
    epochs: int = IMAGENETTE.epochs
    """Of each run; the rate drops at 65, 85 and 95% of them."""
    jobs: int = 1
    """Runs at a time; they share the cores."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU where there is one."""
    compile: bool = True
    """Compile the step of each run; without, one starts sooner and each step is slower."""
    report_only: bool = False
    """Train nothing; report what is there."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.experiments if name not in EXPERIMENTS]:
            raise InputError(f"there is no experiment {unknown[0]!r}, expected one of: {', '.join(EXPERIMENTS)}")
        if not self.experiments and not self.list:
            raise InputError(f"no experiment is named, expected one of: {', '.join(EXPERIMENTS)}; --list has more")
        if self.data and self.shards:
            raise InputError("--data and --shards are both given, expected one of them; give pictures or their shards")
        if self.report_only and self.list:
            raise InputError("--report-only and --list are both given, expected one of them; leave one out")
        for name in ("seeds", "epochs", "jobs"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} is {value}, expected at least 1; set --{name}")


def main() -> int:
    """List, or train and report, as the command line says."""
    options = tyro.cli(AblateOptions, prog="python -m service.ablate")
    end_on_signals()
    if options.list:
        print_list(options)
        return EXIT_DONE
    planned = {name: plan_of(EXPERIMENTS[name], options) for name in options.experiments}
    faults = [] if options.report_only else train_all(planned, options)
    for name, runs in planned.items():
        report(EXPERIMENTS[name], options, runs)
    for fault in faults:
        say(f"error: {fault}")
    return EXIT_FAULTS if faults else EXIT_DONE


def plan_of(experiment: Experiment, options: AblateOptions) -> list[PlannedRun]:
    """Its runs."""
    return plan(experiment, out=options.out, seeds=range(options.seeds), epochs=options.epochs)


def train_all(planned: dict[str, list[PlannedRun]], options: AblateOptions) -> list[str]:
    """Train what is not finished, each run once; returns the faults of runs."""
    shards = shards_of(options)
    if not shards:
        raise InputError(f"there are no pictures, expected {IMAGENETTE.what}; give --data FOLDER or --shards FOLDER")
    work = work_on(shards, options)
    runs = list({run.folder: run for runs in planned.values() for run in runs}.values())
    with progress(sum(run.steps(work.samples) for run in runs), "steps") as advance:
        faults = train(runs, work, advance)
    for run in runs:
        if run.every_epoch and is_finished(history_of(run), run.epochs) and not read_training_errors(run):
            with spinner(f"training error of {run.name}, epoch by epoch"):
                measure_training_errors(run, shards, choose_device(options.device))
    return faults


def shards_of(options: AblateOptions) -> str | Path | None:
    """The shards, made of --data where they are not there yet; None where neither is given."""
    if not options.data:
        return options.shards
    made = options.out / "shards"
    made.parent.mkdir(parents=True, exist_ok=True)
    # It ends at once where the shards are there.
    command = [sys.executable, "-m", "pipeline.shard", str(options.data), "--out", str(made)]
    if subprocess.run([*command, "--size", str(IMAGENETTE.size)]).returncode:
        raise InputError(f"{options.data} cannot be sharded, as said above, expected train/ and val/ with classes")
    return made


def work_on(shards: str | Path, options: AblateOptions) -> Work:
    """How runs are trained on the shards; InputError where an experiment cannot be done with them."""
    samples = dataset_of(shards).splits["train"].samples
    device = ("--device", options.device)
    return Work(
        shards=shards,
        samples=samples,
        jobs=options.jobs,
        options=device if options.compile else (*device, "--no-compile"),
    )


def dataset_of(shards: str | Path) -> Dataset:
    """The data set; InputError where it has not both splits, or its pictures are too small."""
    dataset = load_dataset(open_place(shards))
    if missing := {"train", "val"} - dataset.splits.keys():
        raise InputError(f"{shards} has no split {min(missing)}, expected train and val; shard pictures that have both")
    crop = IMAGENETTE.changes["data.crop"]
    if 0 < dataset.size < crop:
        remedy = f"shard with --size {IMAGENETTE.size}"
        raise InputError(f"{shards} has pictures of {dataset.size} pixels, expected at least {crop}; {remedy}")
    return dataset


def report(experiment: Experiment, options: AblateOptions, runs: Sequence[PlannedRun]) -> None:
    """Print the table, and write it with its picture and its figures."""
    epochs, variants = options.epochs, variants_of(runs, experiment.measure)
    known = experiment, epochs, variants
    if not options.out.is_dir():
        raise InputError(f"{options.out} is not there, expected runs to report; train first, or give another --out")
    stem = f"{experiment.name}-{epochs}-epochs"
    files = {suffix: options.out / f"{stem}{suffix}" for suffix in (".md", ".json", ".png")}
    write_output(files[".md"], document(*known).encode(), "--out")
    write_output(files[".json"], (json.dumps(as_json(*known), indent=1) + "\n").encode(), "--out")
    write_output(files[".png"], picture(experiment, runs, variants), "--out")
    print_table(headings(experiment.measure), rows_of(variants), LEFT)
    for line in remarks(*known):
        sys.stdout.write(f"{line}\n")
    say(f"{experiment.name}: {experiment.question} The paper: {experiment.paper}. {files['.md']}, {files['.png']}")


def print_list(options: AblateOptions) -> None:
    """A row for each experiment."""
    shards, seconds = shards_of(options), None
    if shards:
        dataset = dataset_of(shards)
        seconds = speed_here(IMAGENETTE, work_on(shards, options), options.out).seconds(dataset, options.epochs)
        say(
            f"{shards}: {dataset.splits['train'].samples:,} training pictures; a run takes {seconds / 60:.0f} min alone"
        )
        say(f"measured: {file_of(IMAGENETTE, options.out)}; remove it to measure again")
    rows = []
    for name, experiment in EXPERIMENTS.items():
        runs = len(plan_of(experiment, options))
        took = f"{runs * seconds / 3600:.1f} h" if seconds else "no pictures: --data or --shards"
        rows.append(
            (name, experiment.section, experiment.question, experiment.paper, experiment.base.name, f"{runs}", took)
        )
    print_table(
        ("experiment", "section", "asks", "the paper", "data", "runs", f"{options.epochs} epochs take"), rows, 5
    )


if __name__ == "__main__":
    run_command(main, results=True)
