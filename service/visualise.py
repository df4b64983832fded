"""COMMAND python -m service.visualise: the first-layer filters of both towers as a PNG (figure 3), its claim tested."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipeline.command import EXIT_DONE, end_on_sigterm, run_command, say
from pipeline.files import check_outputs, write_output
from service.results.filter_indexes import HEADINGS, as_json, figure_png, measure, notes, read_kernels, table_rows
from service.results.table import print_table
from service.run.checkpoint import Checkpoint, find_checkpoint


@dataclass(frozen=True, kw_only=True)
class VisualiseOptions:
    """Draw the 96 kernels of conv1, tower 0 above tower 1, and test whether the towers differ as the paper says.

    Each kernel has an orientation index (0: none, 1: a grating) and a colour index (0: luminance only, 1: colour only).
    Their means in the two towers are compared by a permutation test; a difference is claimed at p < 0.05.
    """

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint's folder, or a run's, of which the newest sound checkpoint is taken."""
    out: Path = Path("filters.png")
    """The PNG to write."""
    json: Path | None = None
    """File for every filter's indexes and the summary, as JSON."""

    def __post_init__(self) -> None:
        check_outputs({"--out": self.out, "--json": self.json})


def main() -> int:
    """Draw and compare as the command line says."""
    options = tyro.cli(VisualiseOptions, prog="python -m service.visualise")
    end_on_sigterm()
    checkpoint = find_checkpoint(options.checkpoint)
    towers = read_kernels(checkpoint.path)
    indexes = measure(towers)
    caption = f"step {checkpoint.state.step:,}, {_error(checkpoint)}"
    write_output(options.out, figure_png(towers, indexes, caption), "--out")
    if options.json:
        record = {"checkpoint": str(checkpoint.path), "step": checkpoint.state.step, **as_json(indexes)}
        write_output(options.json, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(), "--json")
    print_table(HEADINGS, table_rows(indexes), left=2)
    sys.stdout.write("".join(f"{line}\n" for line in (*(index.claim for index in indexes), *notes(indexes))))
    say(f"{options.out}: conv1 filters of {checkpoint.path}, {_error(checkpoint)}")
    return EXIT_DONE


def _error(checkpoint: Checkpoint) -> str:
    """How good the network is, as far as it was measured."""
    if not checkpoint.state.history:
        return "not validated"
    last = checkpoint.state.history[-1]
    return f"validation top-1 error {last.top1:.2%}, top-5 error {last.top5:.2%} after epoch {last.epoch}"


if __name__ == "__main__":
    run_command(main)
