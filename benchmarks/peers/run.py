"""Images/s of our loader and of its peers on the same work, taking turns in one run, each in an environment of its own.

    python benchmarks/peers/run.py PICTURES [--rounds 5] [--seconds 4] [--outputs uint8 float32] [--json FILE]

The work: JPEG squares of 256 pixels (RAW: their pixels), all in random order in each epoch, a random crop of 224, half
of them mirrored, batches of 128 as torch tensors on the host, by two threads or worker processes. uint8 is pixels;
float32 is what the network takes, less a mean and divided by a deviation (ours: the compiled step's first operation on
its uint8 batches, counted). All sides read the same JPEG bytes, from the page cache. Each is checked first: the mean
and the deviation of an epoch's pixels are those of the pictures' crops, computed apart.

A side is a process, stopped (SIGSTOP) while others run; order alternates from round to round, and each window begins
with batches that are not counted. Ratios are of windows of the same round. `cores` is the processor time of all its
processes in a second; `MiB` the most memory that they held, and `own` that without pages of files.

PICTURES is a folder with train/<class>/<JPEG files>; environments and inputs are made first, and kept.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from entrants import ENTRANTS, OURS, OURS_RAW, prepared, work_for
from environments import ENVIRONMENTS, NEEDED
from inputs import Expected, expected, make_inputs
from pipeline.command import InputError, end_on_signals, run_command
from report import Result, compare, judge, machine, table
from side_process import Side
from sides.serving import Work

MEAN: Final = (123.675, 116.28, 103.53)  # torchvision's for ImageNet, on 0..255
STD: Final = (58.395, 57.12, 57.375)
# Of mean and deviation, on 0..255. The fast DCT alone takes 1.1 off red and 1.2 off blue; the wrong crop of a picture,
# a square of another size or swapped channels are further off in photographs.
TOLERANCE: Final = 1.6
IDLE: Final = 0.02  # the most of a core that a stopped side may use

Output = Literal["uint8", "float32"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    pictures: tyro.conf.Positional[Path]
    """Folder with train/<class>/<JPEG files>, of any size."""
    sides: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = tuple(ENTRANTS)
    """Which take part; ratios are to `ours` and, among those that read pixels, to `ours, RAW`."""
    outputs: tuple[Output, ...] = ("uint8", "float32")
    """One interleaved run for each."""
    rounds: int = 5
    seconds: float = 4.0
    """Length of a window."""
    threads: int = 2
    """Threads or worker processes of each side."""
    batch_size: int = 128
    crop: int = 224
    """Pixels."""
    samples: int = 10_240
    """Pictures of an epoch, whole batches: every so many-th of PICTURES, or all of them over and over."""
    environments: Path = ENVIRONMENTS
    """Folder of the peers' environments."""
    inputs: Path = ENVIRONMENTS / "inputs"
    """Folder of what the sides read: 25 kB a picture for each of five, and 200 kB for each of two that read pixels."""
    json: Path | None = None
    """File for all that was measured."""
    prepare: bool = False
    """Make environments and inputs, and end."""

    def __post_init__(self) -> None:
        if unknown := set(self.sides) - ENTRANTS.keys():
            raise InputError(f"there is no side {min(unknown)!r}, expected some of: {'; '.join(ENTRANTS)}")
        if self.batch_size < 1 or self.samples < 1 or self.samples % self.batch_size:
            raise InputError(f"{self.samples} samples are no whole batches of {self.batch_size}; set --samples")


def main() -> int:
    end_on_signals()  # stopped sides would stay
    options = tyro.cli(Options, description=__doc__)
    chosen = {name: ENTRANTS[name] for name in options.sides}
    make_inputs(options.pictures, options.inputs, options.samples, raw=any(each.raw for each in chosen.values()))
    for result in (Result(name=name, output=output) for name in chosen for output in options.outputs):
        command_of(result, options)
    if options.prepare:
        return 0
    reference = expected(options.inputs / "files", options.crop)
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="; ")
    print(f"{options.threads} threads, batch {options.batch_size}, {options.samples} pictures, n = {options.rounds}")
    results: list[Result] = []
    for output in options.outputs:
        results += measure(output, options, reference)
        print(table(output, [result for result in results if result.output == output]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report(options, results, reference), indent=1) + "\n")
    return int(any(result.fault for result in results))


def report(options: Options, results: list[Result], reference: Expected) -> dict[str, Any]:
    """All that is known of a run."""
    return {
        "machine": machine(),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "packages": {name: [*need.packages, need.compiled] for name, need in NEEDED.items()},
        "expected": reference._asdict(),
        "results": [asdict(result) for result in results],
    }


def measure(output: Output, options: Options, reference: Expected) -> list[Result]:
    """Every side's result for an output."""
    results = [Result(name=name, output=output) for name in options.sides]
    with started(results, options) as sides:
        for result in results:
            if result.name in sides:
                check(result, sides[result.name], options, reference)
        fit = [result for result in results if not result.fault]
        for number in range(options.rounds):
            for result in fit if number % 2 == 0 else reversed(fit):
                turn(result, fit, sides, options.seconds)
    compare(results, OURS, OURS_RAW, {name for name in options.sides if ENTRANTS[name].raw})
    return results


@contextmanager
def started(results: list[Result], options: Options) -> Iterator[dict[str, Side]]:
    """The sides' processes, each stopped after its first batch; one that fails has its words in its result."""
    sides: dict[str, Side] = {}
    try:
        for result in results:
            say(f"{result.name}, {result.output}: starts")
            entrant = ENTRANTS[result.name]
            side = Side(
                command_of(result, options), options.inputs / f"{entrant.script}-{entrant.way}-{result.output}.log"
            )
            sides[result.name] = side
            try:
                first = side.first()
                result.start_seconds, result.shape = first["start_seconds"], first["shape"]
                note_memory(result, side)
                side.freeze()
            except RuntimeError as error:
                result.fault = last_line(error)
                sides.pop(result.name).end()
        yield sides
    finally:
        for side in sides.values():
            side.end()


def command_of(result: Result, options: Options) -> list[str]:
    """What serves a side; its environment and input are made where they are not there."""
    return prepared(ENTRANTS[result.name], work_of(result, options), options.environments)


def work_of(result: Result, options: Options) -> Work:
    """What a side is asked for."""
    inputs = options.inputs.absolute()
    work = Work(
        files=str(inputs / "files"),
        shards=str(inputs / "shards"),
        raw_shards=str(inputs / "raw-shards"),
        own="",
        way="",
        output=result.output,
        threads=options.threads,
        batch_size=options.batch_size,
        crop=options.crop,
        mean=MEAN,
        std=STD,
    )
    return work_for(ENTRANTS[result.name], work, inputs)


def check(result: Result, side: Side, options: Options, reference: Expected) -> None:
    """Look at an epoch of a side's pictures; one that only decodes has no crops to look at."""
    if ENTRANTS[result.name].bound:
        return
    say(f"{result.name}, {result.output}: an epoch is checked")
    side.thaw()
    try:
        found = side.ask("check", options.samples // options.batch_size)
    except RuntimeError as error:
        result.fault = last_line(error)
        return
    side.freeze()
    result.mean, result.std, result.images = found["mean"], found["std"], found["images"]
    result.each_once = dict(found["labels"]) == reference.labels
    judge(result, reference, TOLERANCE)


def turn(result: Result, all_of_them: list[Result], sides: dict[str, Side], seconds: float) -> None:
    """One window of one side, while all others are stopped."""
    others = {each.name: sides[each.name].processor_seconds() for each in all_of_them if each is not result}
    side = sides[result.name]
    side.thaw()
    found = side.ask("run", seconds)
    side.freeze()
    note_memory(result, side)
    result.rates.append(found["images"] / found["seconds"])
    result.cores.append(found["processor"] / found["seconds"])
    for each in all_of_them:
        if each is not result:
            used = (sides[each.name].processor_seconds() - others[each.name]) / found["seconds"]
            each.idle = max(each.idle, used)
            if used > IDLE:
                raise RuntimeError(f"{each.name} used {used:.0%} of a core while {result.name} ran")


def note_memory(result: Result, side: Side) -> None:
    """Keep the most that a side has held."""
    now = side.memory()
    result.memory, result.own_memory = max(result.memory, now.all), max(result.own_memory, now.own)


def last_line(error: Exception) -> str:
    """What a traceback ends with, or the last of its lines that names an error."""
    lines = str(error).strip().splitlines()
    return next((line for line in reversed(lines) if "Error" in line), lines[-1])


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
