"""Rounds of faults: a run is disturbed at a moment by chance, started again until it is done, and compared."""

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crashes import place
from disturbances import DISTURBANCES
from failing_calls import Failing, library
from processes import small_shards
from trial import Layout, Lost, Trial, Undisturbed, undisturbed

ROUNDS: Final = 200
CORES: Final = 2


@dataclass(frozen=True)
class Round:
    """What came of one."""

    kind: str
    number: int
    starts: int
    seconds: float
    fault: str  # what was lost; empty: nothing
    named: bool = False  # ended with other numbers, having named the damaged pictures


@dataclass(frozen=True)
class Grounds:
    """What all rounds share: shards, the library that makes calls fail, and what they must come to."""

    folder: Path
    shards: Path
    library: Path
    expected: dict[Layout, Undisturbed]


def prepared(folder: Path, layouts: Sequence[Layout] = ("one process", "two ranks")) -> Grounds:
    """Shards in a folder, and a run of each layout that nothing is done to."""
    shards, made = small_shards(folder), library(folder)
    expected = {}
    for layout in layouts:
        (place := folder / layout.replace(" ", "-")).mkdir()
        trial = Trial(folder=place, shards=str(shards), layout=layout, library=made, random=random.Random(0))
        expected[layout] = undisturbed(trial)
    return Grounds(folder, shards, made, expected)


def played(grounds: Grounds, kind: str, number: int, seed: int) -> Round:
    """One round; what is drawn in it follows from kind, number and seed."""
    disturbance = DISTURBANCES[kind]
    folder = grounds.folder / f"round-{number}"
    shutil.copytree(grounds.shards, folder / "shards")
    trial = Trial(
        folder=folder,
        shards=str(folder / "shards"),
        layout=disturbance.layout,
        library=grounds.library,
        options=disturbance.options,
        always=(Failing("mmap", "ENODEV", folder / "shards"),) if disturbance.unmapped else (),
        random=random.Random(f"{seed} {kind} {number}"),
    )
    start, named = time.monotonic(), False
    try:
        trial.start()
        trial.reach_some_step()
        disturbance.disturb(trial)
        trial.finish()
        named = disturbance.damages and trial.named_damage()
        fault = "; ".join(trial.faults(grounds.expected[disturbance.layout], named))
    except (Lost, AssertionError) as error:
        fault = str(error) or repr(error)
    finally:
        trial.kill()
    if not fault:
        shutil.rmtree(folder)
    return Round(kind, number, len(trial.ends), time.monotonic() - start, fault, named)


def rounds(
    count: int, seed: int, kinds: tuple[str, ...] = tuple(DISTURBANCES), cores: Executor | None = None
) -> Iterator[Round]:
    """So many rounds, the kinds in turn; each as it ends. cores: what runs them, if not CORES of their own."""
    with place() as folder, nullcontext(cores) if cores else ThreadPoolExecutor(CORES) as pool:
        grounds = prepared(folder, sorted({DISTURBANCES[kind].layout for kind in kinds}))
        yield from pool.map(lambda number: played(grounds, kinds[number % len(kinds)], number, seed), range(count))
