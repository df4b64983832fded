"""Small picture trees for tests: plain functions, the same pictures for the same seed."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """An RGB picture as smooth as a photograph, so that JPEG changes it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """The picture's bytes in a file format."""
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """The pixels of a picture file, (height, width, 3) uint8 for RGB."""
    return np.asarray(Image.open(io.BytesIO(data)))


def write_tree(root: Path, splits: dict[str, dict[str, int]], width: int = 48, height: int = 40) -> Path:
    """Write `root/<split>/<class>/NN.JPEG` with that many pictures a class, all different; `root`."""
    seed = 0
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:02d}.JPEG").write_bytes(encoded(photo(seed, width, height), quality=95))
                seed += 1
    return root


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Every file below `root`, by relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
