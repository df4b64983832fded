"""COMMAND python -m service.visualise: the first-layer filters of both towers as a PNG (figure 3)."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from pipeline.command import EXIT_DONE, run_command, say
from pipeline.files import write_output
from service.run.checkpoint import Checkpoint, find_checkpoint
from service.run.filters import filters_png


@dataclass(frozen=True, kw_only=True)
class VisualiseOptions:
    """Draw the 96 kernels of conv1, tower 0 above tower 1, each stretched to its own range."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint's folder, or a run's, of which the newest sound checkpoint is taken."""
    out: Path = Path("filters.png")
    """The PNG to write."""


def _error(checkpoint: Checkpoint) -> str:
    """How good the network is, as far as it was measured."""
    if not checkpoint.state.history:
        return "not validated"
    last = checkpoint.state.history[-1]
    return f"validation top-1 error {last.top1:.2%}, top-5 error {last.top5:.2%} after epoch {last.epoch}"


def main() -> int:
    """Draw as the command line says."""
    options = tyro.cli(VisualiseOptions, prog="python -m service.visualise")
    checkpoint = find_checkpoint(options.checkpoint)
    write_output(options.out, filters_png(checkpoint.path), "--out")
    say(f"{options.out}: conv1 filters of {checkpoint.path}, {_error(checkpoint)}")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
