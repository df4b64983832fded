"""Cost as the work grows, ours and peers': threads, batch sizes, and samples of a data set.

    python benchmarks/peers/growth.py [--inputs build/peers/inputs] [--sides ours DALI] [--rounds 5] [--seconds 4]

It goes on from what run.py made: its inputs and its environments. images/s are of uint8 crops, in windows that take
turns: the median, and the range. A large data set is made of a small one: its tars are linked under new names, and the
table of samples has a row for each, so that all but the pictures is as many as it says, and no room is taken.
`permutation` is the first call of an epoch's order in a process of its own, which only ours has.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import tyro

from entrants import ENTRANTS, OURS, prepared, work_for
from environments import ENVIRONMENTS
from pipeline.command import InputError, end_on_signals, run_command
from pipeline.files import sha256_of
from pipeline.manifest import (
    DATASET_FILE,
    SAMPLES_FILE,
    Dataset,
    encode_dataset,
    index_name,
    load_dataset,
    load_samples,
)
from report import MIB, machine, span
from run import MEAN, STD
from side_process import Side
from sides.serving import Work

READS_SHARDS: Final = (OURS, "DALI", "DALI, image_crop", "webdataset")  # which a larger data set can be made for

PERMUTATION: Final = """
import sys, time
from pipeline.load.order import epoch_order
start = time.perf_counter()
epoch_order(0, 0, int(sys.argv[1]))
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    inputs: Path = ENVIRONMENTS / "inputs"
    """Folder that run.py made."""
    environments: Path = ENVIRONMENTS
    """Folder of the peers' environments."""
    sides: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = (OURS, "DALI", "FFCV", "torchvision, PIL")
    """run.py's names."""
    threads: tuple[int, ...] = (1, 2)
    """Threads or worker processes, at batches of 128."""
    batch_sizes: tuple[int, ...] = (32, 128, 512, 1024)
    """With as many threads as the last of --threads."""
    samples: tuple[int, ...] = (10_240, 102_400, 1_280_000)
    """Pictures of a data set, for the sides that read shards; rounded to whole repeats of the inputs."""
    crop: int = 224
    """Pixels."""
    rounds: int = 5
    seconds: float = 4.0
    """Length of a window."""
    json: Path | None = None
    """File for all that was measured."""

    def __post_init__(self) -> None:
        if unknown := set(self.sides) - ENTRANTS.keys():
            raise InputError(f"there is no side {min(unknown)!r}, expected some of: {'; '.join(ENTRANTS)}")


@dataclass(kw_only=True)
class Case:
    """One side with one amount of work, and what was measured of it."""

    side: str
    amount: int
    work: Work
    start_seconds: float = 0.0
    memory: int = 0  # bytes, without pages of files
    rates: list[float] = field(default_factory=list)


def main() -> int:
    end_on_signals()  # stopped sides would stay
    options = tyro.cli(Options, description=__doc__)
    if not (options.inputs / "shards" / DATASET_FILE).is_file():
        raise InputError(
            f"{options.inputs} has no shards, expected what run.py made there; run it first, or set --inputs"
        )
    print(", ".join(f"{name} {value}" for name, value in machine().items()), f"n = {options.rounds}", sep="; ")
    tables: dict[str, list[dict[str, Any]]] = {}
    for what, amounts, change in (
        ("threads", options.threads, lambda work, amount: replace(work, threads=amount)),
        ("batch", options.batch_sizes, lambda work, amount: replace(work, batch_size=amount)),
    ):
        tables[what] = show(what, turns(cases(options, amounts, change), options))
    tables["samples"] = show("samples", list(sizes(options)))
    for row in tables["samples"]:
        if row["side"] == OURS:
            row["permutation_seconds"] = permutation_seconds(row["amount"])
            print(f"permutation of {row['amount']:,}: {row['permutation_seconds']:.3f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1) + "\n")
    return 0


def base_work(options: Options, shards: Path) -> Work:
    """A side's work before anything grows."""
    inputs = options.inputs.absolute()
    return Work(
        files=str(inputs / "files"),
        shards=str(shards.absolute()),
        raw_shards=str(inputs / "raw-shards"),
        own="",
        way="",
        output="uint8",
        threads=options.threads[-1],
        batch_size=128,
        crop=options.crop,
        mean=MEAN,
        std=STD,
    )


def cases(options: Options, amounts: tuple[int, ...], change: Callable[[Work, int], Work]) -> list[Case]:
    """Each side with each amount."""
    work = base_work(options, options.inputs / "shards")
    return [
        Case(
            side=side,
            amount=amount,
            work=work_for(ENTRANTS[side], change(work, amount), options.inputs.absolute()),
            rates=[],
        )
        for side in options.sides
        for amount in amounts
    ]


def turns(all_cases: list[Case], options: Options) -> list[Case]:
    """The cases with their rates: all are started, then each has a window a round, while the others are stopped."""
    with ExitStack() as stack:
        sides = [started(case, options, stack) for case in all_cases]
        pairs = list(zip(all_cases, sides, strict=True))
        for number in range(options.rounds):
            for case, side in pairs if number % 2 == 0 else reversed(pairs):
                side.thaw()
                found = side.ask("run", options.seconds)
                side.freeze()
                case.rates.append(found["images"] / found["seconds"])
                case.memory = max(case.memory, side.memory().own)
    return all_cases


def started(case: Case, options: Options, stack: ExitStack) -> Side:
    """A case's process after its first batch, stopped."""
    entrant = ENTRANTS[case.side]
    side = Side(prepared(entrant, case.work, options.environments), options.inputs / "growth.log")
    stack.callback(side.end)
    case.start_seconds = side.first()["start_seconds"]
    case.memory = side.memory().own
    side.freeze()
    return side


def sizes(options: Options) -> Iterator[Case]:
    """Each side that reads shards, with each size of data set; one process at a time."""
    original = options.inputs / "shards"
    count = load_dataset(original).splits["train"].samples
    for samples in options.samples:
        times = max(1, samples // count)
        shards = grown(original, options.inputs / f"shards-{times}-times", times)
        for side in options.sides:
            if side in READS_SHARDS:
                work = work_for(ENTRANTS[side], base_work(options, shards), options.inputs.absolute())
                yield from turns([Case(side=side, amount=times * count, work=work)], options)


def grown(shards: Path, out: Path, times: int) -> Path:
    """A data set `times` as large, of links to the tars; made once."""
    if (out / DATASET_FILE).is_file():
        return out
    dataset = load_dataset(shards)
    train = dataset.splits["train"]
    (out / "train").mkdir(parents=True, exist_ok=True)
    larger = []
    for number in range(times * len(train.shards)):
        shard = train.shards[number % len(train.shards)]
        larger.append(replace(shard, name=f"{number:06d}.tar"))
        for name, new in ((shard.name, larger[-1].name), (index_name(shard.name), index_name(larger[-1].name))):
            link(shards / "train" / name, out / "train" / new)
    table = np.tile(load_samples(shards, dataset, "train"), times)
    table["shard"] += np.repeat(np.arange(times, dtype=np.uint32), train.samples) * np.uint32(len(train.shards))
    np.save(out / "train" / SAMPLES_FILE, table, allow_pickle=False)
    files = {name: digest for name, digest in dataset.files.items() if "/" not in name}
    for name in files:
        link(shards / name, out / name)
    files[f"train/{SAMPLES_FILE}"] = sha256_of(out / "train" / SAMPLES_FILE)
    split = replace(train, samples=len(table), shards=tuple(larger))
    made: Dataset = replace(dataset, splits={"train": split}, files=files)
    (out / DATASET_FILE).write_bytes(encode_dataset(made))
    return out


def link(target: Path, place: Path) -> None:
    """A link to a file, unless it is there."""
    if not os.path.lexists(place):
        place.symlink_to(target.resolve())


def permutation_seconds(samples: int) -> float:
    """How long a process takes for its first epoch's order."""
    done = subprocess.run([sys.executable, "-c", PERMUTATION, str(samples)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def show(what: str, rows: list[Case]) -> list[dict[str, Any]]:
    """Print a table; its rows for JSON."""
    print(f"{'':28}{what:>10}{'images/s':>10}{'range':>16}{'start, s':>10}{'own MiB':>9}")
    for row in rows:
        rate = f"{statistics.median(row.rates):10,.0f}{span(row.rates, ',.0f'):>16}"
        print(f"{row.side:28}{row.amount:10,}{rate}{row.start_seconds:10.1f}{row.memory / MIB:9,.0f}", flush=True)
    return [{name: value for name, value in vars(row).items() if name != "work"} for row in rows]


if __name__ == "__main__":
    run_command(main)
