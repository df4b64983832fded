"""Copies of PNG and TIFF files without metadata, for Pillow, which takes a file for no picture where these are odd."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from pipeline.picture.exif import BYTE_ORDERS

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS: Final = (b"PLTE", b"IDAT", b"tRNS")
# The tags that say how the pixels of a TIFF are stored: TIFF 6.0 and its supplements, as far as libtiff decodes them.
_TIFF_PIXELS: Final = frozenset(
    map(
        int,
        "254 256 257 258 259 262 266 273 274 277 278 279 284 292 293 317 320 322 323 324 325 332 338 339 347 "
        "512 513 514 515 517 518 519 520 521 529 530 531 532 50674".split(),
    )
)


def without_metadata(data: bytes) -> bytes:
    """A copy of a PNG or TIFF file that holds nothing but what its pixels follow from; any other file as it is."""
    if data.startswith(_PNG):
        return _PNG + b"".join(_png_chunks(data))
    if order := BYTE_ORDERS.get(data[:4]):
        return _plain_tiff(data, order)
    return data


def _png_chunks(png: bytes) -> Iterator[bytes]:
    """Those of pixels, and an EXIF that is sound, since it may tell a turn."""
    at = len(_PNG)
    while at < len(png):
        start, at = at, at + 12 + int.from_bytes(png[at : at + 4], "big")
        content, checksum = png[start + 4 : at - 4], png[at - 4 : at]
        exif = content.startswith(b"eXIf") and zlib.crc32(content).to_bytes(4, "big") == checksum
        if exif or _may_be_of_pixels(content[:4]):
            yield png[start:at]


def _may_be_of_pixels(name: bytes) -> bool:
    """Whether a chunk of this name, or a name with one letter damaged, says something of the pixels."""
    damaged = (sum(a != b for a, b in zip(name, other, strict=False)) for other in _PNG_PIXELS)
    return not name[:1].islower() or min(damaged) <= 1


def _plain_tiff(tiff: bytes, order: str) -> bytes:
    """With a directory that ends sooner, in its place: a longer file might hide that its end is missing."""
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        entries = [struct.unpack_from(order + "H10s", tiff, start + 2 + 12 * number) for number in range(count)]
    except struct.error:  # it points outside
        return tiff
    kept = [struct.pack(order + "H10s", *each) for each in entries if each[0] in _TIFF_PIXELS]
    directory = b"".join([struct.pack(order + "H", len(kept)), *kept, bytes(4)])  # no other follows
    return tiff[:start] + directory + tiff[start + len(directory) :]
