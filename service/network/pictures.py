"""Picture files, folders and standard input -> pixels as training had them."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.command import InputError
from pipeline.load.graph import decode_squares
from pipeline.picture.by_pillow import upright_rgb
from pipeline.picture.jpeg import to_jpeg, to_square
from pipeline.picture.unusable import UnusablePicture
from pipeline.source.names import is_passed_over, is_picture
from service.run.preprocessing import Preprocessing

STANDARD_INPUT: Final = Path("-")
MOST_BYTES: Final = 2**28  # of a picture's file

PictureSource = str | PathLike[str] | bytes | NDArray[np.uint8] | Image.Image  # a file, its bytes, or pixels


def listed_files(paths: Sequence[Path]) -> list[Path]:
    """The files that paths name: a folder's pictures, sorted, those in its folders too; "-" is standard input.

    InputError where one does not exist, or a folder holds no picture.
    """
    return [file for path in paths for file in _files(path)]


def _files(path: Path) -> list[Path]:
    if path == STANDARD_INPUT or path.is_file() or path.is_fifo():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} is not there, expected a picture or a folder of pictures; give another path")
    below = (each for each in sorted(path.rglob("*")) if not any(map(is_passed_over, each.relative_to(path).parts)))
    found = [each for each in below if is_picture(each.name) and each.is_file()]
    if not found:
        raise InputError(f"{path} holds no picture, expected some in it or in its folders; give another path")
    return found


def file_name(path: Path) -> str:
    """What to call a file."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def open_picture(picture: PictureSource, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(side, side, 3) RGB: a picture as the network's training set would hold it; UnusablePicture where it is none.

    The same steps as in sharding and loading: decoded upright, cropped to its central square, resized, encoded as JPEG
    and decoded by the loader's graph. picture: a file's path, a file's bytes, or pixels: (height, width, 3) uint8 RGB
    or a picture of Pillow's.
    """
    return square_pixels(_bytes(picture), preprocessing)


def square_pixels(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(side, side, 3) RGB, from a picture file's bytes."""
    if not preprocessing.quality:  # a network of torchvision's, whose pictures are not stored in between
        return to_square(data, preprocessing.side)
    jpeg, square = to_jpeg(data, preprocessing.size, preprocessing.quality)
    # A picture of its own size is resized by the graph, the others are what it decodes to already.
    return square if preprocessing.size else next(decode_squares([jpeg], 0))


def _bytes(picture: PictureSource) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        picture = upright_rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UnusablePicture(f"its array is {picture.shape} {picture.dtype}, expected (height, width, 3) uint8")
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PPM")  # which need not be compressed
        return stream.getvalue()
    path = Path(picture)
    try:
        with nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnusablePicture(f"it cannot be read ({error.strerror})") from error
    if len(data) > MOST_BYTES:
        raise UnusablePicture(f"it has more than {MOST_BYTES:,} bytes")
    return data


def class_of(path: Path, preprocessing: Preprocessing) -> int | None:
    """The index of a picture's class, where a folder that it lies in is called as one; else None."""
    indices = {each.id: each.index for each in preprocessing.classes if each.id}
    return next((indices[part] for part in reversed(path.parent.parts) if part in indices), None)


def usable_pictures(
    paths: Sequence[Path], preprocessing: Preprocessing, unusable: list[tuple[Path, str]]
) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Each file with its pixels; files that are no pictures go into `unusable`, each with the reason."""
    for path in paths:
        try:
            square = open_picture(path, preprocessing)
        except UnusablePicture as error:
            unusable.append((path, str(error)))
            continue
        yield path, square
