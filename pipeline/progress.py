"""How far a long command is: a bar on a terminal, and a line now and then anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_SECONDS: Final = 10.0


class Advance(Protocol):
    """Report progress."""

    def __call__(self, count: int, remark: str = "", *, size: int = 0, before: bool = False) -> None:
        """`count` more units are done, `size` bytes in all; `before`: an earlier run did them, so they do not count for
        the speed.
        """
        ...


@dataclass
class _Tally:
    total: int
    unit: str
    start: float
    done: int = 0
    timed: int = 0
    bytes: int = 0

    def add(self, count: int, size: int, before: bool) -> None:
        self.done += count
        if not before:
            self.timed += count
            self.bytes += size

    def speed(self, remark: str, now: float) -> str:
        seconds = max(now - self.start, 1e-9)
        rate = self.timed / seconds
        parts = [f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second"]
        parts += [f"{decimal(round(self.bytes / seconds))}/s"] if self.bytes else []
        parts += [f"{_duration((self.total - self.done) / rate)} left"] if rate else []
        return ", ".join([*parts, *([remark] if remark else [])])


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console of rich, a terminal where its stream is one: FORCE_COLOR asks for colours, not for bars in a log."""
    return Console(stderr=stderr, force_terminal=(sys.stderr if stderr else sys.stdout).isatty(), **options)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Advance]:
    """Show on stderr how many of `total` units are done, how fast it goes and how long it still takes."""
    screen = console(stderr=True)
    tally = _Tally(total, unit, time.monotonic())
    if not screen.is_terminal:
        yield _lines(tally)
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task(unit, total=total)

        def advance(count: int, remark: str = "", *, size: int = 0, before: bool = False) -> None:
            tally.add(count, size, before)
            bar.update(task, advance=count, description=f"{unit}, {tally.speed(remark, time.monotonic())}")

        yield advance


@contextmanager
def no_progress() -> Iterator[Advance]:
    """Show nothing, in place of `progress`."""

    def advance(count: int, remark: str = "", *, size: int = 0, before: bool = False) -> None:
        pass

    yield advance


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """Show a spinner on a terminal during work of unknown length."""
    screen = console(stderr=True)
    with screen.status(escape(what)) if screen.is_terminal else nullcontext():
        yield


def _lines(tally: _Tally) -> Advance:
    last = tally.start

    def advance(count: int, remark: str = "", *, size: int = 0, before: bool = False) -> None:
        nonlocal last
        tally.add(count, size, before)
        now = time.monotonic()
        if now - last < LINE_SECONDS:
            return
        last = now
        sys.stderr.write(f"{tally.done:,} of {tally.total:,} {tally.unit}, {tally.speed(remark, now)}\n")
        sys.stderr.flush()

    return advance


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
