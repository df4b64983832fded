"""COMMAND  The first-layer filters of both towers as a PNG (figure 3)."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image
from safetensors import safe_open

from model.filters import towers_picture
from pipeline.command import DONE, InputError, run_command
from pipeline.manifest import write_atomic
from service.checkpoint import MANIFEST, Checkpoint, newest, read, tower_file


@dataclass(frozen=True, kw_only=True)
class VisualiseOptions:
    """Draw the 96 kernels of conv1, tower 0 above tower 1, each stretched to its own range."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint's folder, or a run's, of which the newest sound checkpoint is taken."""
    out: Path = Path("filters.png")
    """The PNG to write."""


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def find_checkpoint(path: Path) -> Checkpoint:
    """The verified checkpoint that `path` is, or the newest of the run that it is; InputError where there is none."""
    if (path / MANIFEST).exists():
        return read(path)
    checkpoint = newest(path, _say)
    if not checkpoint:
        raise InputError(f"{path} holds no sound checkpoint, expected one or a run with one; train first")
    return checkpoint


def filters_png(checkpoint: Path) -> bytes:
    """conv1's kernels of both towers, of a checkpoint's folder, as a PNG file."""
    kernels = []
    for tower in (0, 1):
        with safe_open(checkpoint / tower_file(tower), "pt") as file:
            kernels.append(file.get_tensor(f"towers.{tower}.conv1.weight"))
    stream = io.BytesIO()
    Image.fromarray(towers_picture(kernels)).save(stream, "PNG")
    return stream.getvalue()


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
    try:
        write_atomic(options.out, filters_png(checkpoint.path))
    except OSError as error:
        raise InputError(f"cannot write {options.out} ({error.strerror}); give another --out") from error
    _say(f"{options.out}: conv1 filters of {checkpoint.path}, {_error(checkpoint)}")
    return DONE


if __name__ == "__main__":
    run_command(main)
