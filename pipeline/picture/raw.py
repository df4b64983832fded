"""Pixels of a square <-> the bytes of an .npy file (format 1.0), which numpy, webdataset and DALI read.

The header is written here, so that it has the same bytes whatever numpy is installed; the pixels follow at byte 128, so
that in a tar they begin where a cache line does.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES: Final = 128
_MAGIC: Final = b"\x93NUMPY\x01\x00"


def npy_bytes(side: int) -> int:
    """The length of the file of a square of `side` pixels."""
    return HEADER_BYTES + 3 * side * side


@cache
def npy_header(side: int) -> bytes:
    """What comes before the pixels of a square of `side` pixels: HEADER_BYTES, the bytes that np.save writes."""
    described = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({side}, {side}, 3), }}".encode("ascii")
    length = HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + length.to_bytes(2, "little") + described.ljust(length - 1) + b"\n"


def to_npy(square: NDArray[np.uint8]) -> bytes:
    """The file of a square, (side, side, 3) RGB."""
    return npy_header(len(square)) + square.tobytes()


def npy_square(data: bytes | NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The pixels of a file, (side, side, 3) RGB: a view of it; ValueError unless it is that of such a square."""
    view = np.frombuffer(data, np.uint8)
    if len(view) != npy_bytes(side):
        raise ValueError(f"{len(view):,} bytes, expected {npy_bytes(side):,} of {side} x {side} pixels")
    if (header := view[:HEADER_BYTES].tobytes()) != npy_header(side):
        raise ValueError(f"header {header[:80]!r}, expected that of {side} x {side} pixels")
    return view[HEADER_BYTES:].reshape(side, side, 3)
