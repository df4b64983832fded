"""The final figures of several runs, side by side."""

from collections.abc import Sequence
from typing import Final

import numpy as np

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
    "images/s",
)


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
        f"{np.median(speeds):,.0f}" if len(speeds) else MISSING,
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table; numbers to the right, a bar in a name escaped."""
    lines = [HEADINGS, ["---"] * 2 + ["---:"] * (len(HEADINGS) - 2), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
