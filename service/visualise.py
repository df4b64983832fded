"""COMMAND python -m service.visualise: the first-layer filters of both towers as a PNG (figure 3), its claim tested."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from pipeline.command import EXIT_DONE, end_on_signals, run_command, say
from pipeline.files import check_outputs, write_output
from service.network.read import load
from service.results.filter_indexes import HEADINGS, as_json, figure_png, measure, notes, table_rows
from service.results.table import print_table
from service.run.checkpoint import Checkpoint, find_checkpoint
from service.run.filters import KERNELS, read_kernels


@dataclass(frozen=True, kw_only=True)
class VisualiseOptions:
    """Draw the 96 kernels of conv1, tower 0 above tower 1, and test whether the towers differ as the paper says.

    Each kernel has an orientation index (0: none, 1: a grating) and a colour index (0: luminance only, 1: colour only).
    Their means in the two towers are compared by a permutation test; a difference is claimed at p < 0.05.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run (its newest sound checkpoint), a checkpoint, or a file that service.load takes."""
    out: Path = Path("filters.png")
    """The PNG to write."""
    json: Path | None = None
    """File for every filter's indexes and the summary, as JSON."""

    def __post_init__(self) -> None:
        check_outputs({"--out": self.out, "--json": self.json})


def main() -> int:
    """Draw and compare as the command line says."""
    options = tyro.cli(VisualiseOptions, prog="python -m service.visualise")
    end_on_signals()
    filters = read_filters(options.checkpoint)
    indexes = measure(filters.towers)
    write_output(options.out, figure_png(filters.towers, indexes, filters.caption), "--out")
    if options.json:
        record = {"checkpoint": str(filters.path), "step": filters.step, **as_json(indexes)}
        write_output(options.json, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(), "--json")
    print_table(HEADINGS, table_rows(indexes), left=2)
    sys.stdout.write("".join(f"{line}\n" for line in (*(index.claim for index in indexes), *notes(indexes))))
    say(f"{options.out}: conv1 filters of {filters.path}{', ' if filters.caption else ''}{filters.caption}")
    return EXIT_DONE


@dataclass(frozen=True)
class Filters:
    """conv1's kernels, and where they are from."""

    path: Path
    towers: list[Tensor]  # (n, 3, 11, 11) of each
    step: int | None
    caption: str


def read_filters(path: Path) -> Filters:
    """The filters of a run, a checkpoint or a file; InputError where there are none."""
    if path.is_file():
        network = load(path, "cpu")
        kernels = {name: weight for name, weight in network.model.named_parameters() if name in KERNELS}
        caption = "" if network.step is None else f"step {network.step:,}"
        return Filters(path, [kernels[name] for name in KERNELS if name in kernels], network.step, caption)
    checkpoint = find_checkpoint(path)
    caption = f"step {checkpoint.state.step:,}, {_error(checkpoint)}"
    return Filters(checkpoint.path, read_kernels(checkpoint.path), checkpoint.state.step, caption)


def _error(checkpoint: Checkpoint) -> str:
    """How good the network is, as far as it was measured."""
    if not checkpoint.state.history:
        return "not validated"
    last = checkpoint.state.history[-1]
    return f"validation top-1 error {last.top1:.2%}, top-5 error {last.top5:.2%} after epoch {last.epoch}"


if __name__ == "__main__":
    run_command(main, results=True)
