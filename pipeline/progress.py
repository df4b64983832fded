"""How far a long command is: a bar on a terminal, and a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS: Final = 10.0

Advance = Callable[[int, str], None]  # (how many more are done, a remark to show beside)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Advance]:
    """Show on stderr how many of `total` units are done, how fast it goes and how long it still takes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(total, unit)
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(unit, total=total)
        start = time.monotonic()

        def advance(count: int, remark: str) -> None:
            bar.advance(task, count)
            rate = bar.tasks[task].completed / max(time.monotonic() - start, 1e-9)
            bar.update(task, description=f"{unit}, {rate:,.0f} a second{remark and ', ' + remark}")

        yield advance


def _lines(total: int, unit: str) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(count: int, remark: str) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < LINE_SECONDS:
            return
        last = now
        rate = done / (now - start)
        left = f"{(total - done) / max(rate, 1e-9):,.0f} s left"
        line = f"{done:,} of {total:,} {unit}, {rate:,.0f} a second, {left}{remark and ', ' + remark}\n"
        sys.stderr.write(line)
        sys.stderr.flush()

    return advance
