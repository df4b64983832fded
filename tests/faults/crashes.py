"""Each writer recorded, and what a start makes of the states that a crash may leave of it."""

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import checkpoint_writer
import shard_writer
from crash_states import RANDOM_STATES, calls_of, read_tree, states, undisturbed
from paths import ROOT
from pictures import tree_bytes, write_tree
from recorded_calls import library, record

OUT: Final = "out"  # what a writer writes, in the folder that is recorded
MEMORY: Final = Path("/dev/shm")  # where a flush takes no time
WRITERS: Final = {"checkpoints and log": checkpoint_writer.BROKEN, "sharding": shard_writer.BROKEN}


@dataclass(frozen=True, kw_only=True)
class Explored:
    """What came of a writer's states."""

    calls: int
    states: int  # that there are; 0 where they were not counted
    tried: int
    faults: tuple[str, ...]  # the state, and what was wrong


@contextmanager
def place() -> Iterator[Path]:
    """A folder in memory, where there is room."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def explore(
    name: str,
    broken: str = "",
    *,
    most: int | None = None,
    seed: int = 0,
    randomly: int = RANDOM_STATES,
    enough: int | None = None,
) -> Explored:
    """Record a writer, and try the states that it may leave.

    broken: what it leaves out. most: of the states, drawn by `seed`; None: all. randomly: states by chance at each
    point in time. enough: faults after which no more is tried.
    """
    with place() as folder:
        source = folder / "source"
        if name == "sharding":
            write_tree(source, {"train": {"a": 6, "b": 6}})
        program = checkpoint_writer if name == "checkpoints and log" else shard_writer
        below = folder / "recorded"
        below.mkdir()
        tree, numbers = read_tree(below)
        paths = ":".join(map(str, (ROOT, ROOT / "tests/helpers", ROOT / "tests/faults")))
        lines = record(
            [sys.executable, str(program.__file__), str(below / OUT), broken],
            below,
            folder / "calls",
            library(folder),
            PYTHONPATH=paths,
            SOURCE=str(source),
        )
        calls = calls_of(lines, below, tree, numbers)
        assert undisturbed(tree, calls).digest() == read_tree(below)[0].digest(), "a call was not recorded"
        draws, tried, faults = random.Random(seed), 0, list[str]()
        if enough is None:
            found = list(states(tree, calls, seed, randomly))
            chosen, count = found if most is None else draws.sample(found, min(most, len(found))), len(found)
        else:  # the latest first, as they come: a broken writer has very many
            chosen, count = states(tree, calls, seed, randomly, range(len(calls), -1, -1)), 0
        check = partial(_faults, name, source, tree_bytes(below / OUT))
        for state in chosen:
            left = folder / "left"
            state.tree.write_to(left)
            wrong = check(left / OUT, state.promises)
            shutil.rmtree(left)
            tried += 1
            if wrong:
                faults.append(f"{state.why}: {'; '.join(wrong)}".replace(str(left), ""))
            if enough is not None and len(faults) >= enough:
                break
        return Explored(calls=len(calls), states=count, tried=tried, faults=tuple(faults))


def _faults(name: str, source: Path, expected: dict[str, bytes], out: Path, promises: tuple[str, ...]) -> list[str]:
    if name == "sharding":
        return list(shard_writer.faults_after_a_crash(out, source, expected, bool(promises)))
    return list(checkpoint_writer.faults_after_a_crash(out, max(map(int, promises), default=0)))
