"""The first-layer filters of a checkpoint as a picture (the paper's figure 3)."""

import io
from pathlib import Path
from typing import Final

from PIL import Image
from torch import Tensor

from model.filters import filters_picture
from pipeline.command import InputError
from service.run.checkpoint import read_weights

# Of the towers, of torchvision's network, and of those for CIFAR-10.
KERNELS: Final = ("towers.0.conv1.weight", "towers.1.conv1.weight", "features.0.weight", "conv1.weight")


def read_kernels(checkpoint: Path) -> list[Tensor]:
    """conv1's kernels, (48, 3, 11, 11) of each tower, of a checkpoint's folder; the other layouts are one tower."""
    found = read_weights(checkpoint, KERNELS.__contains__)
    if not found:
        raise InputError(
            f"{checkpoint} holds none of {', '.join(KERNELS)}, expected conv1's; choose another checkpoint"
        )
    return [found[name] for name in KERNELS if name in found]


def filters_png(checkpoint: Path) -> bytes:
    """conv1's kernels of each tower, of a checkpoint's folder, as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(filters_picture(read_kernels(checkpoint))).save(stream, "PNG")
    return stream.getvalue()
