"""Tables as text and Markdown; the final figures of several runs, side by side."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from rich.table import Table

from pipeline.progress import console
from service.results.history import RunHistory

LAST_STEPS: Final = 100  # whose mean is a run's final training loss
MISSING: Final = "-"
HEADINGS: Final = (
    "run",
    "recipe",
    "steps",
    "epochs",
    "loss",
    "top-1",
    "top-5",
    "best top-1",
    "at epoch",
    "ten views",
    "images/s",
)
LEFT: Final = 2  # of them are words


def table_rows(histories: Sequence[RunHistory]) -> list[tuple[str, ...]]:
    """A row for each run, a text for each of HEADINGS; MISSING where a run has no such figure."""
    return [_row(history) for history in histories]


def _row(history: RunHistory) -> tuple[str, ...]:
    last = history.validations[-1] if history.validations else None
    speeds = history.images_per_second[history.images_per_second > 0]
    return (
        history.name,
        history.recipe,
        f"{history.step:,}",
        f"{history.epoch:.2f}",
        f"{history.losses[-LAST_STEPS:].mean():.4f}",
        f"{last.top1:.2%}" if last else MISSING,
        f"{last.top5:.2%}" if last else MISSING,
        f"{history.best.top1:.2%}" if history.best else MISSING,
        f"{history.best.epoch}" if history.best else MISSING,
        f"{history.final_error:.2%}" if history.final_error is not None else MISSING,
        f"{np.median(speeds):,.0f}" if len(speeds) else MISSING,
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """The rows as a Markdown table; after the first `left` columns are numbers, to the right; a bar is escaped."""
    lines = [headings, ["---"] * left + ["---:"] * (len(headings) - left), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """The same on stdout, in aligned columns."""
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    screen = console(markup=False, highlight=False)
    screen.width = screen.width if screen.is_terminal else 200
    screen.print(table)
