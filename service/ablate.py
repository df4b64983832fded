"""COMMAND python -m service.ablate: the paper's experiments, each by one command."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, run_command, say
from pipeline.files import write_output
from pipeline.manifest import load_dataset
from pipeline.progress import progress
from pipeline.reading.place import open_place
from service.ablation.experiments import EXPERIMENTS, IMAGENETTE, Experiment
from service.ablation.measures import variants_of
from service.ablation.plan import PlannedRun, plan
from service.ablation.report import HEADINGS, LEFT, as_json, document, picture, rows_of
from service.ablation.timing import expected_seconds
from service.ablation.training import train
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
    shards: Path | None = None
    """The same sharded already, by pipeline.shard --size 128."""
    out: Path = Path("ablations")
    """Folder for runs, tables and pictures."""
    seeds: int = 3
    """Runs of each variant, at least 2 for an interval."""
    epochs: int = IMAGENETTE.epochs
    """Of each run; the rate drops at 65, 85 and 95% of them."""
    jobs: int = 1
    """Runs at a time; they share the cores."""
    report_only: bool = False
    """Train nothing; report what is there."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.experiments if name not in EXPERIMENTS]:
            raise InputError(f"there is no experiment {unknown[0]!r}, expected one of: {', '.join(EXPERIMENTS)}")
        if not self.experiments and not self.list:
            raise InputError("no experiment is named, expected at least one; --list says which there are")
        if self.data and self.shards:
            raise InputError("--data and --shards are both given, expected one of them; give pictures or their shards")
        for name in ("seeds", "epochs", "jobs"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} is {value}, expected at least 1; set --{name}")


def main() -> int:
    """List, or train and report, as the command line says."""
    options = tyro.cli(AblateOptions, prog="python -m service.ablate")
    end_on_signals()
    shards = shards_of(options)
    if options.list:
        print_list(options, shards)
        return EXIT_DONE
    planned = {name: plan_of(EXPERIMENTS[name], options, shards) for name in options.experiments}
    faults: Sequence[str] = []
    if not options.report_only:
        if not shards:
            raise InputError("there are no pictures, expected --data FOLDER or --shards FOLDER; docs/experiments.md")
        runs = list({run.folder: run for runs in planned.values() for run in runs}.values())
        with progress(len(runs) * options.epochs, "epochs") as advance:
            faults = train(runs, jobs=options.jobs, epochs=options.epochs, advance=advance)
    for name, runs in planned.items():
        report(name, options, runs)
    for fault in faults:
        say(f"error: {fault}")
    return EXIT_FAULTS if faults else EXIT_DONE


def shards_of(options: AblateOptions) -> Path | None:
    """The shards, made of --data where they are not there yet; None where neither is given."""
    if not options.data:
        return options.shards
    made = options.out / f"shards-{IMAGENETTE.size}"
    # It ends at once where the shards are there.
    command = [sys.executable, "-m", "pipeline.shard", str(options.data), "--out", str(made)]
    if subprocess.run([*command, "--size", str(IMAGENETTE.size)]).returncode:
        raise InputError(f"{options.data} cannot be sharded, as said above, expected train/ and val/ with classes")
    return made


def plan_of(experiment: Experiment, options: AblateOptions, shards: Path | None) -> list[PlannedRun]:
    """Its runs."""
    return plan(
        experiment,
        IMAGENETTE,
        shards=str(shards),
        out=options.out,
        seeds=range(options.seeds),
        epochs=options.epochs,
    )


def report(name: str, options: AblateOptions, runs: Sequence[PlannedRun]) -> None:
    """Print the table, and write it with its picture and its figures."""
    experiment, epochs = EXPERIMENTS[name], options.epochs
    variants = variants_of(runs, epochs, views=experiment.views)
    known = name, experiment, IMAGENETTE, epochs, variants
    files = {suffix: options.out / f"{name}-{epochs}-epochs{suffix}" for suffix in (".md", ".json", ".png")}
    write_output(files[".md"], document(*known).encode(), "--out")
    write_output(files[".json"], (json.dumps(as_json(*known), indent=1) + "\n").encode(), "--out")
    write_output(files[".png"], picture(name, experiment, runs, variants), "--out")
    print_table(HEADINGS, rows_of(variants), LEFT)
    say(f"{name}: {experiment.question} The paper: {experiment.paper}. {files['.md']}, {files['.png']}")


def print_list(options: AblateOptions, shards: Path | None) -> None:
    """A row for each experiment."""
    seconds = expected_seconds(IMAGENETTE, shards, options.out, options.epochs) if shards else None
    if shards:
        say(f"{shards}: {load_dataset(open_place(shards)).splits['train'].samples:,} training pictures")
    rows = []
    for name, experiment in EXPERIMENTS.items():
        runs = len(plan_of(experiment, options, shards))
        took = f"{runs * seconds / 3600:.1f} h" if seconds else "needs pictures"
        rows.append((name, experiment.section, experiment.question, experiment.paper, f"{runs}", took))
    headings = ("experiment", "section", "asks", "the paper", "runs", f"takes, {options.epochs} epochs")
    print_table(headings, rows, 4)


if __name__ == "__main__":
    run_command(main, results=True)
