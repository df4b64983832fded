"""The first-layer filters of a checkpoint as a picture (the paper's figure 3)."""

import io
from pathlib import Path

from PIL import Image
from safetensors import safe_open

from model.filters import filters_picture
from service.run.checkpoint import tower_file


def filters_png(checkpoint: Path) -> bytes:
    """conv1's kernels of both towers, of a checkpoint's folder, as a PNG file."""
    kernels = []
    for tower in (0, 1):
        with safe_open(checkpoint / tower_file(tower), "pt") as file:
            kernels.append(file.get_tensor(f"towers.{tower}.conv1.weight"))
    stream = io.BytesIO()
    Image.fromarray(filters_picture(kernels)).save(stream, "PNG")
    return stream.getvalue()
