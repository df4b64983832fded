"""The segments of a JPEG (ITU-T T.81, annex B), found as libjpeg finds them."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL: Final = frozenset({0xC0, 0xC1, 0xC9})
HUFFMAN: Final = frozenset({0xC0, 0xC1, 0xC2})  # coded, of those that libjpeg decodes from their DCT
DHT: Final = 0xC4
EOI: Final = 0xD9
SOS: Final = 0xDA
DRI: Final = 0xDD
APP0: Final = 0xE0
APP1: Final = 0xE1
APP2: Final = 0xE2
APP14: Final = 0xEE
BARE: Final = frozenset({0x01, *range(0xD0, 0xDA)})  # markers that nothing belongs to
METADATA: Final = frozenset({0x01, *range(0xD0, 0xD8), 0xDC, *range(0xE0, 0xF0), 0xFE})  # what libjpeg passes over

# Any number of 0xFF may fill the space before a marker, and 0xFF 0x00 is none.
_AFTER_SEGMENT: Final = re.compile(rb"(?:[^\xff]++|\xff++\x00)*+\xff++(.)", re.DOTALL)
_AFTER_SOS: Final = re.compile(rb"(?:[^\xff]++|\xff++[\x00\xd0-\xd7])*+\xff++(.)", re.DOTALL)


class Segment(NamedTuple):
    """A marker and what belongs to it, by offsets in the file."""

    marker: int
    before: int  # where the segment before it ended; up to `start` lie fill and stray bytes, or after SOS the scan
    start: int  # of the marker
    end: int

    @property
    def body(self) -> slice:
        """What follows its length."""
        return slice(self.start + 4, self.end)


class Frame(NamedTuple):
    """What a JPEG's SOF says of the picture."""

    marker: int
    height: int
    width: int
    components: dict[int, tuple[int, int]]  # horizontal and vertical sampling factor, by identifier


class Scan(NamedTuple):
    """What an SOS says of the scan that follows it."""

    components: list[tuple[int, int, int]]  # identifier, DC table, AC table, as HuffmanTable names them
    first: int  # of the coefficients that it holds, 0 to 63
    last: int
    high: int  # how many bits of each were left out by the scan before, 0 if there was none
    low: int  # how many are left out by this one

    @property
    def tables(self) -> set[int]:
        """The Huffman tables that it needs."""
        dc, ac = self.first == 0 and not self.high, self.last > 0
        return {name for _, *names in self.components for name, used in zip(names, (dc, ac), strict=True) if used}


class HuffmanTable(NamedTuple):
    """One of those that a DHT defines."""

    name: int  # 0x00 to 0x03 of DC, 0x10 to 0x13 of AC coefficients
    counts: bytes  # of codes of 1 to 16 bits
    symbols: bytes


def segments(jpeg: bytes) -> Iterator[Segment]:
    """The segments after SOI, up to EOI or as far as they are whole."""
    size, at, marker = len(jpeg), 2, 0
    while at + 1 < size and marker != EOI:
        before = at
        # Nearly always the next marker follows at once, and a pattern takes several times as long to see that.
        if marker != SOS and jpeg[at] == 0xFF and jpeg[at + 1] not in (0x00, 0xFF):
            marker, at = jpeg[at + 1], at + 2
        elif found := (_AFTER_SOS if marker == SOS else _AFTER_SEGMENT).match(jpeg, at):
            marker, at = found[1][0], found.end()
        else:
            return
        start = at - 2
        if marker not in BARE:
            at += max(2, int.from_bytes(jpeg[at : at + 2], "big"))
        if at > size:
            return
        yield Segment(marker, before, start, at)


def header(jpeg: bytes) -> list[Segment]:
    """The segments before the first scan; no more of the file is looked at."""
    found = []
    for each in segments(jpeg):
        if each.marker == SOS:
            break
        found.append(each)
    return found


def stray_bytes(jpeg: bytes, each: Segment) -> bytes:
    """What lies before a segment of the header: nothing, in most files, or fill, which is left out here."""
    return jpeg[each.before : each.start].rstrip(b"\xff")


def frame(jpeg: bytes) -> Frame | None:
    """The frame of a JPEG, None where it has none that is whole."""
    sof = next((each for each in header(jpeg) if each.marker in SOF), None)
    body = jpeg[sof.body] if sof else b""
    if sof is None or len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    factors = {body[at]: divmod(body[at + 1], 16) for at in range(6, 6 + 3 * body[5], 3)}
    return Frame(sof.marker, int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), factors)


def huffman_tables(body: bytes) -> Iterator[HuffmanTable]:
    """The tables that a DHT of this body defines."""
    at = 0
    while at < len(body):
        end = at + 17 + sum(body[at + 1 : at + 17])
        yield HuffmanTable(body[at], body[at + 1 : at + 17], body[at + 17 : end])
        at = end


def scan(body: bytes, shape: Frame) -> Scan:
    """The scan after an SOS of this body; of no component where it is not whole."""
    if not body or len(body) != 4 + 2 * body[0]:
        return Scan([], 0, 0, 0, 0)
    components = [
        (one, tables >> 4, 0x10 | tables & 15) for one, tables in zip(body[1:-3:2], body[2:-3:2], strict=True)
    ]
    if shape.marker in SEQUENTIAL:
        return Scan(components, 0, 63, 0, 0)  # whatever its parameters say, as in libjpeg
    return Scan(components, body[-3], body[-2], *divmod(body[-1], 16))
