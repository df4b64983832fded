"""COMMAND python -m service.compare: curves and final errors of several runs, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.command import EXIT_DONE, InputError, end_on_signals, run_command, say
from pipeline.files import check_outputs, write_output
from service.results.curves import curves_png
from service.results.history import read_histories
from service.results.table import HEADINGS, LEFT, markdown, print_table, table_rows


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Draw training losses, validation errors and learning rates of runs over epochs, and print their final figures.

    The runs may still be training. The loss is the mean of the last 100 steps, images/s the median of all.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="(at least one)")
    ]
    """Folders of runs, --out of service.train."""
    out: Path = Path("compare.png")
    """The PNG to write."""
    table: Path | None = None
    """File for the table as Markdown."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("no run is named, expected at least one folder; give --out of a service.train")
        check_outputs({"--out": self.out, "--table": self.table})


def main() -> int:
    """Compare as the command line says."""
    options = tyro.cli(CompareOptions, prog="python -m service.compare")
    end_on_signals()
    histories = read_histories(options.runs)
    rows = table_rows(histories)
    write_output(options.out, curves_png(histories), "--out")
    if options.table:
        write_output(options.table, markdown(HEADINGS, rows, LEFT).encode(), "--table")
    print_table(HEADINGS, rows, LEFT)
    say(f"{options.out}: losses, errors and learning rates of {len(rows)} runs")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main, results=True)
