"""COMMAND python -m pipeline.bench: how fast this machine prepares batches, beside its bound; the fastest options."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from pipeline.command import EXIT_DONE, InputError, end_on_signals, printable, run_command, say
from pipeline.files import check_outputs, write_output
from pipeline.host.cpus import usable_cores
from pipeline.host.machine import Machine, this_machine
from pipeline.load.batch_loader import BatchLoader, choose_device
from pipeline.load.config import DataConfig
from pipeline.manifest import TUNED_FILE
from pipeline.measure.chart import bench_png
from pipeline.measure.search import (
    TRIAL_HEADINGS,
    loader_measure,
    pixel_options,
    search,
    speed_options,
    trial_json,
    trial_row,
    window_seconds,
)
from pipeline.measure.sides import CONSUMED, COPYING, DECODING, LOADER, Pictures, Task, bound_side, stage_sides
from pipeline.measure.summary import Figures, as_json, print_figures, print_rows, summarise
from pipeline.measure.tuned import apply_tuned, check_writable, flags_of, save_tuned
from pipeline.measure.windows import Window, take_turns
from pipeline.progress import progress
from pipeline.reading.place import open_place

LIBRARIES = ("nvidia-dali-cuda120", "simplejpeg", "torch")  # which do the work


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure how fast batches of a data set are prepared: reading, decoding, the loader, the loader with a consumer.

    Beside them stands what bounds them: on a CPU libjpeg-turbo alone, decoding the same bytes with the same settings on
    as many threads; where pixels are stored, a copy of them; on a GPU, the copy to it. Windows of a few seconds take
    turns. Pictures that were read lately are in memory: that a disk is fast enough is not measured here.
    """

    dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder, or URL, that python -m pipeline.shard made."""
    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["train", "val", "test"] = "train"
    """train: as in training; the others: centre crops, in order."""
    batch_size: int = 128
    """Pictures a batch."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where batches go; auto: the GPU where there is one."""
    seconds: float = 3.0
    """Length of a window."""
    rounds: int = 5
    """Windows of each stage; figures are medians, and ranges, of the rounds."""
    hold_ms: float = 0.0
    """How long the consumer keeps each batch, leaving the cores to the loader; 0: as long as copying it takes."""
    tune: bool = False
    """Look for the fastest --data.threads, --data.prefetch and, where a GPU decodes, its decoder's options instead, and
    save them beside the data set for the worker, for machines of this type. Options that are given stay."""
    tune_seconds: float = 180.0
    """How long --tune may take, about."""
    allow_fast: bool = False
    """Let --tune save that fast decoding is faster, which changes pixels; the worker then names it, but takes it only
    by --data.decoding fast."""
    save: Path | None = None
    """Where --tune saves; DIR/tuned.json, where the worker looks, unless given."""
    json: Path | None = None
    """File for all figures as JSON: seconds, bytes, and shares on 0..1."""
    out: Path | None = None
    """PNG for a chart of the figures; not with --tune."""

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "rounds": 1, "hold_ms": 0}.items():
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} is {value}, expected at least {least}; set --{name.replace('_', '-')}")
        for name in ("seconds", "tune_seconds"):
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise InputError(f"{name} is {value}, expected a number above 0; set --{name.replace('_', '-')}")
        if self.data.shards not in (DataConfig().shards, self.dir):
            raise InputError(f"DIR is {self.dir} and --data.shards {self.data.shards}, expected one; give DIR alone")
        if self.tune and self.out:
            raise InputError("--out is for the figures, expected no --tune with it; measure again after tuning")
        if given := [flag for flag, is_given in (("--save", self.save), ("--allow-fast", self.allow_fast)) if is_given]:
            if not self.tune:
                raise InputError(f"{given[0]} is for --tune, expected both; give --tune")
        check_outputs({"--json": self.json, "--out": self.out, "--save": self.save})


def main() -> int:
    """Measure, or tune, as the command line says."""
    options = tyro.cli(BenchOptions, prog="python -m pipeline.bench")
    end_on_signals()
    device = choose_device(options.device)
    machine = this_machine(torch.cuda.get_device_name() if device == "gpu" else "")
    data = replace(options.data, shards=options.dir)
    beside = open_place(data.shards, data.cache, data.cache_bytes) / TUNED_FILE
    saved = options.save or beside
    if options.tune:
        check_writable(saved)
    else:
        data, taken = apply_tuned(data, beside, machine)
        if taken:
            say(taken)
    task = Task(
        data=data,
        split=options.split,
        batch_size=options.batch_size,
        device=device,
        hold_seconds=options.hold_ms / 1000,
    )
    loader = BatchLoader(data, device=device)
    pictures = Pictures(task, loader)
    about = describe(options, task, machine, loader, pictures)
    show(*heading(about))
    if (load := os.getloadavg()[0]) > 0.5 * usable_cores():
        say(f"notice: this machine is busy (load {load:.1f}); what is measured is what the others leave")
    if options.tune:
        tune(options, task, machine, loader, pictures, about, saved)
    else:
        bench(options, task, loader, pictures, about)
    for place in loader.damaged[:3]:
        say(printable(f"notice: {place} is damaged, another was in its place; run python -m pipeline.verify"))
    return EXIT_DONE


def bench(options: BenchOptions, task: Task, loader: BatchLoader, pictures: Pictures, about: Mapping[str, Any]) -> None:
    """Measure all stages and the bound; print, and write what is asked for."""
    bound = bound_side(task, loader, pictures)
    sides = [*stage_sides(task, loader, pictures), bound]
    with progress(len(sides) * options.rounds, "windows") as advance:
        windows = take_turns(sides, options.rounds, options.seconds, advance)
    bounded = (LOADER, CONSUMED) if task.device == "gpu" else (DECODING, COPYING, LOADER, CONSUMED)
    figures = summarise(windows, usable_cores(), bound.name, bounded)
    print_figures(figures)
    show(f"of bound: {bound.name}; MB: the process's own memory; medians and ranges of {options.rounds} rounds")
    for each in figures:
        if each.engine_use is not None:
            show(f"{each.name}: JPEG engines busy {each.engine_use:.0%}")
    write_results(options, {**about, "stages": as_json(figures)}, figures, windows)


def tune(
    options: BenchOptions,
    task: Task,
    machine: Machine,
    loader: BatchLoader,
    pictures: Pictures,
    about: Mapping[str, Any],
    saved: Path,
) -> None:
    """Find the fastest options, print what was tried, and save what was found."""
    fast = speed_options(task.data, usable_cores(), loader.decoder, loader.dataset.size)
    others = pixel_options(task.data, task.device, loader.dataset.store)
    seconds, windows = window_seconds(fast, others, options.tune_seconds)
    with progress(windows, "windows") as advance:
        found = search(
            loader_measure(task, pictures.mean_bytes, seconds, advance),
            fast,
            others,
            batch_size=task.batch_size,
            allow_fast=options.allow_fast,
            deadline=time.monotonic() + options.tune_seconds,
        )
    print_rows(TRIAL_HEADINGS, [trial_row(trial) for trial in found.trials], left=2)
    save_tuned(saved, machine, found.tuned)
    show(f"{saved}: {flags_of(found.tuned)}, for {machine}")
    show(f"{found.gain.median:.3f} times the defaults ({found.gain.lowest:.3f} to {found.gain.highest:.3f})")
    if not found.complete:
        say("notice: the time was too short for all options, expected more; set --tune-seconds")
    write_results(
        options, {**about, "tuned": asdict(found.tuned), "trials": [trial_json(trial) for trial in found.trials]}
    )


def show(*lines: str) -> None:
    """Lines on stdout, at once."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stdout.flush()


def describe(
    options: BenchOptions, task: Task, machine: Machine, loader: BatchLoader, pictures: Pictures
) -> dict[str, Any]:
    """What is measured, and on what."""
    data = {**asdict(task.data), "threads": task.threads, "prefetch": task.ahead}
    return {
        "machine": asdict(machine),
        "versions": {name: version(name) for name in LIBRARIES},
        "dir": str(options.dir),
        "split": task.split,
        "pictures": len(pictures.store),
        "stored": "raw" if pictures.raw else "jpeg",
        "size": pictures.size,
        "mean_bytes": round(pictures.mean_bytes, 1),
        "batch_size": task.batch_size,
        "device": task.device,
        "decoder": loader.decoder,
        "output": loader.output,
        "hold_seconds": task.hold_seconds,
        "data": json.loads(json.dumps(data, default=str)),
        "load": round(os.getloadavg()[0], 2),
    }


def heading(about: Mapping[str, Any]) -> tuple[str, str]:
    """The same in two lines."""
    machine, data = Machine(**about["machine"]), about["data"]
    libraries = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    side = f"{about['size']}-pixel" if about["size"] else "own-size"
    stored = {"raw": "raw pixels", "jpeg": "JPEG"}[about["stored"]]
    what = f"{about['dir']}, {about['split']}: {about['pictures']:,} pictures, {side} {stored}"
    how = f"batch {about['batch_size']}, crop {data['crop']}, {about['output']} on the {about['device'].upper()}"
    given = f"{data['decoding']} decoding, threads {data['threads']}, prefetch {data['prefetch']}"
    return f"{machine}; {libraries}", f"{what} of {about['mean_bytes'] / 1000:,.1f} kB; {how}, {given}"


def write_results(
    options: BenchOptions,
    results: Mapping[str, Any],
    figures: Sequence[Figures] = (),
    windows: Mapping[str, Sequence[Window]] | None = None,
) -> None:
    """The files that were asked for."""
    if options.json:
        write_output(options.json, (json.dumps(results, indent=1) + "\n").encode(), "--json")
    if options.out and windows:
        write_output(options.out, bench_png(figures, windows, "\n".join(heading(results))), "--out")


if __name__ == "__main__":
    run_command(main, results=True)
