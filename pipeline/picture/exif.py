"""The EXIF orientation of a JPEG.

Pillow reads it too, but warns about metadata that does not matter here and takes several times as long.
"""

import struct
from typing import Final

_START_OF_SCAN: Final = 0xDA
_APP1: Final = 0xE1
_EXIF: Final = b"Exif\0\0"
_BYTE_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}  # TIFF 6.0, section 2
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3


def orientation(jpeg: bytes) -> int:
    """The EXIF orientation of a JPEG file, 1 to 8; 1, upright, where it has none that can be read."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and len(jpeg) >= at + 4:
        marker = jpeg[at + 1]
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            break
        if marker == _APP1 and jpeg[at + 4 : at + 10] == _EXIF:
            return _in_tiff(jpeg[at + 10 : end])
        at = at + 1 if marker == 0xFF else end  # any number of 0xFF may fill the space before a marker
    return 1


def _in_tiff(tiff: bytes) -> int:
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "L", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for start in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHLH", tiff, start)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # it points outside
        pass
    return 1
