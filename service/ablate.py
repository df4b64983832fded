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
from pipeline.files import make_folders, write_output
from pipeline.load.batch_loader import choose_device
from pipeline.manifest import Dataset, load_dataset
from pipeline.progress import progress
from pipeline.reading.place import open_place
from service.ablation.experiments import EXPERIMENTS, IMAGENETTE, Base, Experiment
from service.ablation.measures import best_rates, variants_of
from service.ablation.plan import PlannedRun, plan, trials
from service.ablation.report import LEFT, as_json, document, headings, picture, remarks, rows_of
from service.ablation.timing import speed_here
from service.ablation.training import DIVERGED, Work, has_diverged, train
from service.ablation.training_error import is_done, measure_training_errors, remove_measured
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
    """Folder of pictures, train/<class>/* and val/<class>/*, of the data set that the experiments are on; sharded once,
    into --out."""
    shards: str | Path | None = None
    """The same sharded already, by pipeline.shard --size 128 or, for CIFAR-10, 32: a folder, or a URL."""
    out: Path = Path("ablations")
    """Folder for runs, tables and pictures."""
    seeds: int = 3
    """Runs of each variant; an interval takes at least 2."""
    epochs: int | None = None
    """Of each run; the rate drops at 65, 85 and 95% of them. As many as each experiment has where it is not said."""
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
        on = {EXPERIMENTS[name].base.data: name for name in self.experiments}
        if len(on) > 1 and not self.report_only:
            each = " and ".join(f"{name} is on {data}" for data, name in on.items())
            raise InputError(f"{each}, expected experiments on one data set; call it for each of them")
        if self.data and self.shards:
            raise InputError("--data and --shards are both given, expected one of them; give pictures or their shards")
        if self.report_only and self.list:
            raise InputError("--report-only and --list are both given, expected one of them; leave one out")
        for name in ("seeds", "epochs", "jobs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}, expected at least 1; set --{name}")


def main() -> int:
    """List, or train and report, as the command line says."""
    options = tyro.cli(AblateOptions, prog="python -m service.ablate")
    end_on_signals()
    if options.list:
        print_list(options)
        return EXIT_DONE
    experiments = [EXPERIMENTS[name] for name in options.experiments]
    faults = [] if options.report_only else train_all(experiments, options)
    for experiment in experiments:
        report(experiment, options)
    for fault in faults:
        say(f"error: {fault}")
    return EXIT_FAULTS if faults else EXIT_DONE


def epochs_of(experiment: Experiment, options: AblateOptions) -> int:
    """Of its runs."""
    return options.epochs or experiment.base.epochs


def trials_of(experiment: Experiment, options: AblateOptions) -> list[PlannedRun]:
    """Its runs that try learning rates; none where it tries none."""
    return trials(experiment, out=options.out, epochs=epochs_of(experiment, options))


def rates_of(experiment: Experiment, options: AblateOptions) -> dict[str, float]:
    """The learning rates found for its variants so far."""
    return best_rates(trials_of(experiment, options))


def plan_of(experiment: Experiment, options: AblateOptions) -> list[PlannedRun]:
    """Its runs."""
    epochs, rates = epochs_of(experiment, options), rates_of(experiment, options)
    return plan(experiment, out=options.out, seeds=range(options.seeds), epochs=epochs, rates=rates)


def train_all(experiments: Sequence[Experiment], options: AblateOptions) -> list[str]:
    """Train what is not finished, each run once; returns the faults of runs."""
    base = experiments[0].base
    shards = shards_of(base, options)
    if not shards:
        raise InputError(f"there are no pictures, expected {base.what}; give --data FOLDER or --shards FOLDER")
    work, device = work_on(base, shards, options), choose_device(options.device)

    def is_enough(run: PlannedRun) -> bool:
        if not run.every_epoch:
            return False
        errors = measure_training_errors(run, shards, device)
        return is_done(errors, run.until) or (run.is_trial and has_diverged(run))

    def train_each(runs: Sequence[PlannedRun]) -> list[str]:
        with progress(sum(run.steps(work.samples) for run in runs), "steps") as advance:
            return train(runs, work, advance, is_enough)

    for experiment in experiments:
        if tried := trials_of(experiment, options):
            say(f"{experiment.name}: {len(tried)} runs of {tried[0].until} epochs try learning rates")
            if faults := [fault for fault in train_each(tried) if DIVERGED not in fault]:
                return faults  # the best rate may be among those that failed
            found = ", ".join(f"{rate:g} for {variant}" for variant, rate in rates_of(experiment, options).items())
            say(f"{experiment.name}: the best rate is {found}")
    runs = list({run.folder: run for experiment in experiments for run in plan_of(experiment, options)}.values())
    faults = train_each(runs)
    for run in [*runs, *(run for experiment in experiments for run in trials_of(experiment, options))]:
        if run.every_epoch and run.folder.is_dir():
            remove_measured(run)
    return faults


def shards_of(base: Base, options: AblateOptions) -> str | Path | None:
    """The shards, made of --data where they are not there yet; None where neither is given."""
    if not options.data:
        return options.shards
    made = options.out / f"shards-{base.size}"
    make_folders(made.parent)
    # It ends at once where the shards are there.
    command = [sys.executable, "-m", "pipeline.shard", str(options.data), "--out", str(made)]
    if subprocess.run([*command, "--size", str(base.size), *base.stored]).returncode:
        raise InputError(f"{options.data} cannot be sharded, as said above, expected train/ and val/ with classes")
    return made


def work_on(base: Base, shards: str | Path, options: AblateOptions) -> Work:
    """How runs are trained on the shards; InputError where an experiment cannot be done with them."""
    samples = dataset_of(base, shards).splits["train"].samples
    device = ("--device", options.device)
    return Work(
        shards=shards,
        samples=samples,
        jobs=options.jobs,
        options=device if options.compile else (*device, "--no-compile"),
    )


def dataset_of(base: Base, shards: str | Path) -> Dataset:
    """The data set; InputError where it has not both splits, or its pictures are too small, or large."""
    dataset = load_dataset(open_place(shards))
    if missing := {"train", "val"} - dataset.splits.keys():
        raise InputError(f"{shards} has no split {min(missing)}, expected train and val; shard pictures that have both")
    # Of larger ones a crop would see too little.
    if dataset.size and not base.crop <= dataset.size <= 2 * base.size:
        expected = f"expected {base.crop} to {2 * base.size} for {base.data}; shard with --size {base.size}"
        raise InputError(f"{shards} has pictures of {dataset.size} pixels, {expected}")
    return dataset


def report(experiment: Experiment, options: AblateOptions) -> None:
    """Print the table, and write it with its picture and its figures."""
    epochs, runs = epochs_of(experiment, options), plan_of(experiment, options)
    variants = variants_of(runs, experiment.measure, rates_of(experiment, options), experiment.base_called)
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
    """A row for each experiment, or for those named; with times for those on the data set of the first."""
    listed = [EXPERIMENTS[name] for name in options.experiments] or list(EXPERIMENTS.values())
    base = listed[0].base if options.experiments else IMAGENETTE
    shards = shards_of(base, options)
    rows = [row_of(each, options, shards if each.base.data == base.data else None) for each in listed]
    print_table(("experiment", "section", "asks", "the paper", "data", "runs", "epochs", "take"), rows, 5)


def row_of(experiment: Experiment, options: AblateOptions, shards: str | Path | None) -> tuple[str, ...]:
    """What an experiment is, and how long it takes on the shards; at most, where runs may end early."""
    base, tried, trained = experiment.base, trials_of(experiment, options), plan_of(experiment, options)
    most = "at most " if experiment.measure == "training" else ""
    took = "no pictures: --data or --shards"
    if shards:
        dataset, work = dataset_of(base, shards), work_on(base, shards, options)
        speed = speed_here(base, work, options.out)
        took = f"{most}{sum(speed.seconds(dataset, run.until) for run in [*tried, *trained]) / 3600:.1f} h"
    runs = f"{len(trained)} and {len(tried)} trials" if tried else f"{len(trained)}"
    epochs = f"{most}{epochs_of(experiment, options)}"
    return experiment.name, experiment.section, experiment.question, experiment.paper, base.data, runs, epochs, took


if __name__ == "__main__":
    run_command(main, results=True)
