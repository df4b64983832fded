"""The EXIF orientation of a JPEG, and pixels turned upright by it.

Pillow reads it too, but warns about metadata that does not matter here and takes several times as long.
"""

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.picture.segments import APP1, Segment, header

_EXIF: Final = b"Exif\0\0"
BYTE_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}  # TIFF 6.0, section 2
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3
_LONG: Final = 4


def orientation(jpeg: bytes) -> int:
    """The EXIF orientation of a JPEG file, 1 to 8; 1, upright, where it has none that can be read."""
    exifs = (jpeg[each.body] for each in header(jpeg) if is_exif(jpeg, each))
    kind, value = next(_orientations(next(exifs, b"")), (_SHORT, 1))
    return value if kind in (_SHORT, _LONG) and 1 <= value <= 8 else 1


def is_exif(jpeg: bytes, each: Segment) -> bool:
    """Whether a segment holds an EXIF; there should be one at most."""
    return each.marker == APP1 and jpeg.startswith(_EXIF, each.body.start)


def may_turn(exif: bytes) -> bool:
    """Whether some reader may turn a picture by this body of a segment: not all of them heed the type."""
    return any(kind != _SHORT or 2 <= value <= 8 for kind, value in _orientations(exif))


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """An upright view of pixels that are stored in an EXIF orientation, 1 to 8."""
    turned = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    return turned[::-1] if orientation in (3, 4, 7, 8) else turned


def _orientations(exif: bytes) -> Iterator[tuple[int, int]]:
    """Type and value of each orientation in the first directory."""
    tiff = exif[len(_EXIF) :]
    order = BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return
    try:
        (directory,) = struct.unpack_from(order + "L", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for start in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHLH", tiff, start)
            if tag == _ORIENTATION and kind == _LONG:
                (value,) = struct.unpack_from(order + "L", tiff, start + 8)
            if tag == _ORIENTATION:
                yield kind, value
    except struct.error:  # it points outside
        return
