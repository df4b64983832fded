"""Each writer recorded, and what a start makes of the states that a crash may leave of it.

And of those that a second crash may leave, during that start.
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import checkpoint_writer
import shard_writer
from checkpoint_writer import RECOVERS
from crash_states import RANDOM_STATES, Call, State, Tree, calls_of, read_tree, states, undisturbed
from paths import ROOT
from pictures import tree_bytes
from recorded_calls import library, record

OUT: Final = "out"  # what a writer writes, in the folder that is recorded
MEMORY: Final = Path("/dev/shm")  # where a flush takes no time


class Writer(NamedTuple):
    """A program, `PROGRAM OUT MODE`, and what is wrong with what a crash has left of its OUT.

    mode: empty, RECOVERS, or what a broken writer leaves out. prepare: makes SOURCE, what it reads.
    faults: given OUT, SOURCE, what an undisturbed run leaves, and the marks that were made before the crash.
    """

    program: Path
    broken: Iterable[str]
    prepare: Callable[[Path], object]
    faults: Callable[[Path, Path, dict[str, bytes], Sequence[str]], Iterator[str]]


def writer_of(module: object) -> Writer:
    """Of a module of this folder."""
    found = vars(module)
    return Writer(Path(found["__file__"]), found["BROKEN"], found["prepare"], found["faults_after_a_crash"])


WRITERS: Final = {"checkpoints and log": writer_of(checkpoint_writer), "sharding": writer_of(shard_writer)}


@dataclass(frozen=True, kw_only=True)
class Explored:
    """What came of a writer's states."""

    calls: int
    states: int  # that there are; 0 where they were not counted
    tried: int
    faults: tuple[str, ...]  # the state, and what was wrong
    crashes: int = 0  # of `tried`, those after which a second crash was tried
    second: int = 0  # of `tried`, the states that a second crash left


@contextmanager
def place() -> Iterator[Path]:
    """A folder in memory, where there is room."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Explorer:
    """A writer, and a folder to try it in."""

    writer: Writer
    folder: Path

    @property
    def source(self) -> Path:
        """What the writer reads."""
        return self.folder / "source"

    def recorded(self, mode: str, before: Tree) -> tuple[Tree, list[Call], dict[str, bytes]]:
        """Run the writer on what is there before; that with its numbers, its calls, and what it leaves of OUT."""
        below = self.folder / "recorded"
        before.write_to(below)
        tree, numbers = read_tree(below)
        paths = ":".join(map(str, (ROOT, ROOT / "tests/helpers", ROOT / "tests/faults")))
        lines = record(
            [sys.executable, str(self.writer.program), str(below / OUT), mode],
            below,
            self.folder / "calls",
            library(self.folder),
            PYTHONPATH=paths,
            SOURCE=str(self.source),
        )
        calls = calls_of(lines, below, tree, numbers)
        assert undisturbed(tree, calls).digest() == read_tree(below)[0].digest(), "a call was not recorded"
        left = tree_bytes(below / OUT)
        shutil.rmtree(below)
        (self.folder / "calls").unlink()
        return tree, calls, left

    def faults(self, state: State, expected: dict[str, bytes], promises: Sequence[str]) -> list[str]:
        """What a start finds wrong with a state, in words."""
        left = self.folder / "left"
        state.tree.write_to(left)
        wrong = list(self.writer.faults(left / OUT, self.source, expected, promises))
        shutil.rmtree(left)
        return [f"{state.why}: {'; '.join(wrong)}".replace(str(left), "")] if wrong else []


def explore(
    name: str,
    broken: str = "",
    *,
    most: int | None = None,
    seed: int = 0,
    randomly: int = RANDOM_STATES,
    enough: int | None = None,
    crashes: int = 0,
) -> Explored:
    """Record a writer, and try the states that it may leave.

    broken: what it leaves out. most: of the states, drawn by `seed`; None: all. randomly: states by chance at each
    point in time. enough: faults after which no more is tried. crashes: so many of the states, drawn by `seed`, are
    recovered from and crash again, and each state that this leaves is tried too.
    """
    with place() as folder:
        explorer = Explorer(WRITERS[name], folder)
        explorer.writer.prepare(explorer.source)
        tree, calls, expected = explorer.recorded(broken, Tree())
        draws, tried, faults = random.Random(seed), 0, list[str]()
        if enough is None:
            found = list(states(tree, calls, seed, randomly))
            chosen, count = found if most is None else draws.sample(found, min(most, len(found))), len(found)
        else:  # the latest first, as they come: a broken writer has very many
            found, chosen, count = [], states(tree, calls, seed, randomly, range(len(calls), -1, -1)), 0
        for state in chosen:
            faults += explorer.faults(state, expected, state.promises)
            tried += 1
            if enough is not None and len(faults) >= enough:
                break
        second = 0
        for state in draws.sample(found, min(crashes, len(found))):
            again, recovery, _ = explorer.recorded(RECOVERS, state.tree)
            for left in states(again, recovery, seed, 0):
                wrong = explorer.faults(left, expected, (*state.promises, *left.promises))
                faults += [f"{state.why}; then {fault}" for fault in wrong]
                second += 1
        return Explored(
            calls=len(calls),
            states=count,
            tried=tried + second,
            faults=tuple(faults),
            crashes=min(crashes, len(found)),
            second=second,
        )
