"""COMMAND python -m service.export: a trained network as a file for other programs, which computes what it does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.filesize import decimal

from pipeline.command import EXIT_DONE, InputError, end_on_signals, run_command, say
from pipeline.files import check_outputs
from pipeline.progress import spinner
from service.network.export import PICTURES, SUFFIXES, Format, check_exportable, check_packages, export, facts_file
from service.network.read import load


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained network as a file for other programs, once the file gives the logits that the network gives.

    safetensors: weights, mean picture, classes; service.load, predict and evaluate take it, with equal results.
    torchvision: the state dict of torchvision's AlexNet, for networks of layout torchvision; beside a .pth stands a
    .pth.json with what it has no room for. onnx, torch-export: a graph from RGB pixels on 0..255, (B, 3, crop, crop)
    float32, to logits, which subtracts the mean picture itself; it takes any B, and holds what else is known as JSON.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run (its newest sound checkpoint), a checkpoint, or a file that service.load takes."""
    format: Format
    """What to write; onnx needs pip install -e '.[onnx]'."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file: .safetensors; .pth or .safetensors for torchvision; .onnx; .pt2 for torch-export."""

    def __post_init__(self) -> None:
        suffixes = SUFFIXES[self.format]
        if self.out.suffix not in suffixes:
            raise InputError(
                f"--out is {self.out}, expected a name that ends in {' or '.join(suffixes)} for {self.format}; "
                "give another --out"
            )
        check_outputs({"--out": self.out})
        if self.out.suffix == ".pth":
            check_outputs({"--out": facts_file(self.out)})


def main() -> int:
    """Export as the command line says."""
    options = tyro.cli(ExportOptions, prog="python -m service.export")
    end_on_signals()
    check_packages(options.format)
    network = load(options.checkpoint, "cpu")
    check_exportable(network, options.format)
    with spinner(f"{options.format}: writing and comparing"):
        found = export(network, options.format, options.out)
    size = decimal(options.out.stat().st_size)
    differ = (
        f"differ by {found.largest:.1e} at most, {found.relative:.1e} of the largest" if found.largest else "are equal"
    )
    say(f"{options.out}: {size}, {options.format}; its logits of {PICTURES} made pictures {differ}")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
