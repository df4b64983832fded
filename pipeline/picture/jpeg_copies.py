"""What else to decode where a strict decoder does not take a JPEG: copies with less beside the pixels.

libjpeg warns of odd metadata as it does of damage, and tells only of what it met first: they must be gone before it can
tell whether the picture is whole.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from pipeline.picture.segments import (
    APP0,
    APP14,
    DHT,
    HUFFMAN,
    METADATA,
    SEQUENTIAL,
    SOS,
    Frame,
    Segment,
    frame,
    huffman_tables,
    scan,
    segments,
    stray_bytes,
)

_RESTART: Final = re.compile(rb"(\xff++[\xd0-\xd7])")
_JFIF: Final = b"JFIF\0"
_PLAIN_JFIF: Final = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE: Final = b"Adobe"
_ADOBE_TRANSFORMS: Final = {3: b"\0\1", 4: b"\0\2"}  # by components; for another one libjpeg takes the last
_ALL_COEFFICIENTS: Final = b"\0\x3f\0"  # the parameters of a sequential scan


def readings(jpeg: bytes) -> Iterator[bytes]:
    """A JPEG, and then each copy that differs: without metadata, and without padding too."""
    yield jpeg
    plain = without_metadata(jpeg)
    if plain != jpeg:
        yield plain
    unpadded = _without_padding(plain)
    if unpadded != plain:
        yield unpadded


def without_metadata(jpeg: bytes) -> bytes:
    """A copy with the same scans, after a header of nothing but what their pixels follow from.

    The header's metadata and stray bytes are left out. The revision of JFIF, an unknown colour transform of Adobe's and
    the parameters of sequential scans become the usual ones, which libjpeg takes for them. The file as it is where the
    stray bytes may be damage.
    """
    shape, found = frame(jpeg), list(segments(jpeg))
    first_scan = next((place for place, each in enumerate(found) if each.marker == SOS), None)
    if shape is None or first_scan is None or _may_be_damage(jpeg, found[: first_scan + 1], shape):
        return jpeg
    head = [_plain(jpeg, each, shape) for each in found[: first_scan + 1]]
    rest = [jpeg[each.before : each.start] + _plain_sos(jpeg, each, shape) for each in found[first_scan + 1 :]]
    return b"".join([jpeg[:2], *head, *rest])


def _plain(jpeg: bytes, each: Segment, shape: Frame) -> bytes:
    body = jpeg[each.body]
    if each.marker == APP0 and body.startswith(_JFIF) and len(body) >= 14:
        return _PLAIN_JFIF
    if each.marker == APP14 and body.startswith(_ADOBE) and len(body) >= 12:
        known = _ADOBE_TRANSFORMS.get(len(shape.components), body[11:12])
        transform = body[11:12] if body[11:12] in known else known[-1:]
        return jpeg[each.start : each.body.start] + body[:11] + transform + body[12:]
    return b"" if each.marker in METADATA else _plain_sos(jpeg, each, shape)


def _plain_sos(jpeg: bytes, each: Segment, shape: Frame) -> bytes:
    if each.marker == SOS and shape.marker in SEQUENTIAL:
        return jpeg[each.start : each.end - 3] + _ALL_COEFFICIENTS
    return jpeg[each.start : each.end]


def _may_be_damage(jpeg: bytes, head: Sequence[Segment], shape: Frame) -> bool:
    """Whether stray bytes up to the first SOS may be a segment whose marker is damaged, or the end of a damaged one.

    They are as long as they say, or a table that the scan needs is missing, where libjpeg would take a common one, or
    a table has a symbol twice.
    """
    stray = [between for each in head if (between := stray_bytes(jpeg, each))]
    tables = [table for each in head if each.marker == DHT for table in huffman_tables(jpeg[each.body])]
    needed = scan(jpeg[head[-1].body], shape).tables if shape.marker in HUFFMAN else set()
    return bool(stray) and (
        any(len(each) >= 4 and int.from_bytes(each[2:4], "big") == len(each) - 2 for each in stray)
        or not needed <= {table.name for table in tables}
        or any(len(set(table.symbols)) < len(table.symbols) for table in tables)
    )


def _without_padding(jpeg: bytes) -> bytes:
    """A copy without the zeros before restart markers with which some cameras align them; only of a sequential scan.

    Each of its blocks has a code, so that none can be lost with the zeros unnoticed.
    """
    shape = frame(jpeg)
    if shape is None or shape.marker not in SEQUENTIAL & HUFFMAN:
        return jpeg
    *parts, last = _RESTART.split(jpeg)
    return b"".join(map(_without_zeros, parts)) + last


def _without_zeros(data: bytes) -> bytes:
    stripped = data.rstrip(b"\0")
    return data[: len(stripped) + stripped.endswith(b"\xff")]  # 0xFF 0x00 is a byte of the scan
