"""Whether the scans of a JPEG are whole: for chroma layouts that TurboJPEG has no name for, and so does not decode.

Pillow decodes them, and makes something of damage too. So their codes are read here up to the last one, and only for
their lengths: a damaged scan is soon out of step, and ends too soon, too late, or in a code that is none (ITU-T T.81,
annexes F and G).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from pipeline.picture.segments import (
    DHT,
    DRI,
    EOI,
    HUFFMAN,
    SOS,
    Frame,
    HuffmanTable,
    Scan,
    frame,
    huffman_tables,
    scan,
    segments,
    stray_bytes,
)
from pipeline.picture.unusable import UnusablePicture

_RESTART: Final = re.compile(rb"\xff++([\xd0-\xd7])")
_STUFFED: Final = re.compile(rb"\xff++\x00")
_ZEROS: Final = 15  # the run of a symbol without a size that only counts zeros; shorter ones end a block

_Codes = list[tuple[int, int]]  # length and symbol of the code that some 16 bits begin with


class DamagedScan(ValueError):
    """A scan that holds other codes than those of all its blocks."""


class _Part:
    """A part of a scan, up to a restart marker or the end, read from front to back."""

    def __init__(self, data: bytes):
        whole = _STUFFED.sub(b"\xff", data)
        self._data = whole + bytes(3)  # the last bits too have 16 after them
        self._end = 8 * len(whole)
        self._at = 0
        self.empty_blocks = 0  # that a progressive scan said are to come

    @property
    def left(self) -> int:
        """Bits that are left; less than none where it ended too soon."""
        return self._end - self._at

    def skip(self, bits: int) -> None:
        self._at += bits

    def take(self, bits: int) -> int:
        """The value of the next bits, of 16 at most."""
        start, of_byte = divmod(self._at, 8)
        self._at += bits
        window = int.from_bytes(self._data[start : start + 3], "big")
        return window >> (24 - of_byte - bits) & ((1 << bits) - 1)

    def symbol(self, codes: _Codes) -> int:
        """What the next code stands for; IndexError where it is none."""
        length, symbol = codes[self.take(16)]
        self._at += length - 16
        return symbol


_ReadBlock = Callable[[_Part, int], None]  # the block of this number


def require_whole_scans(jpeg: bytes) -> None:
    """DamagedScan unless each scan holds the codes of its blocks and no more; UnusablePicture for arithmetic codes."""
    shape = frame(jpeg)
    if shape is None or shape.marker not in HUFFMAN:
        raise UnusablePicture("arithmetic codes in an unusual chroma layout, where damage could not be seen")
    codes: dict[int, _Codes] = {}
    nonzero = {one: [0] * _blocks(shape, *factors) for one, factors in shape.components.items()}
    bits_to_come = {one: [-1] * 64 for one in shape.components}
    restart_interval = 0
    found = list(segments(jpeg))
    if found[-1].marker != EOI:
        raise DamagedScan("premature end of the file")
    for each, following in pairwise(found):
        body = jpeg[each.body]
        if each.marker == SOS:
            this, data = scan(body, shape), jpeg[each.end : following.start]
            try:
                _require_order(this, bits_to_come)
                readers = list(_readers(this, shape, codes, nonzero))
                _read(data, readers, _units(this, shape), restart_interval)
            except (IndexError, KeyError) as error:
                raise DamagedScan("a Huffman code, a table or a component that is not defined") from error
        elif stray_bytes(jpeg, following):
            raise DamagedScan("stray bytes between scans")
        elif each.marker == DHT:
            codes |= {table.name: _codes(table) for table in huffman_tables(body)}
        elif each.marker == DRI:
            restart_interval = int.from_bytes(body, "big")
    if any(bits[0] < 0 for bits in bits_to_come.values()):
        raise DamagedScan("a component without a scan")


def _require_order(this: Scan, bits_to_come: dict[int, list[int]]) -> None:
    """Add a scan to those before it; DamagedScan unless it goes on where they ended."""
    for one, *_ in this.components:
        before, coefficients = bits_to_come[one], slice(this.first, this.last + 1)
        if (this.first and before[0] < 0) or any(max(bits, 0) != this.high for bits in before[coefficients]):
            raise DamagedScan("scans that do not follow one another")
        before[coefficients] = [this.low] * len(before[coefficients])


def _blocks(shape: Frame, across: int, down: int) -> int:
    """How many blocks of 8 x 8 a component with these sampling factors has."""
    most_across, most_down = (max(factors) for factors in zip(*shape.components.values(), strict=True))
    return -(-shape.width * across // (8 * most_across)) * -(-shape.height * down // (8 * most_down))


def _units(this: Scan, shape: Frame) -> int:
    """How many MCUs a scan has: of several components some blocks each, or single blocks of one component."""
    factors = shape.components[this.components[0][0]] if len(this.components) == 1 else (1, 1)
    return _blocks(shape, *factors)


def _readers(this: Scan, shape: Frame, codes: dict[int, _Codes], nonzero: dict[int, list[int]]) -> Iterator[_ReadBlock]:
    """What reads an MCU of a scan, block by block."""
    for one, dc, ac in this.components:
        across, down = shape.components[one] if len(this.components) > 1 else (1, 1)
        if this.first:
            read = _refined_ac if this.high else _first_ac
            reader = partial(read, codes[ac], this.first, this.last, nonzero[one])
        elif this.last:
            reader = partial(_sequential, codes[dc], codes[ac])
        else:
            reader = _refined_dc if this.high else partial(_first_dc, codes[dc])
        yield from [reader] * (across * down)


def _read(data: bytes, readers: Sequence[_ReadBlock], units: int, restart_interval: int) -> None:
    interval = restart_interval or units
    parts = _RESTART.split(data.rstrip(b"\xff"))
    restarts = [number[0] - 0xD0 for number in parts[1::2]]
    if restarts != [number % 8 for number in range(-(-units // interval) - 1)]:
        raise DamagedScan("restart markers are missing, or there are too many")
    for first, part in zip(range(0, units, interval), map(_Part, parts[::2]), strict=True):
        for number in range(first, min(first + interval, units)):
            for read in readers:
                read(part, number)
            if part.left < 0:
                raise DamagedScan("premature end of a scan")
        if part.left >= 8 or part.empty_blocks:
            raise DamagedScan("a scan with more in it than its blocks")


def _sequential(dc: _Codes, ac: _Codes, part: _Part, _: int) -> None:
    part.skip(part.symbol(dc))
    at = 1
    while at < 64:
        run, size = divmod(part.symbol(ac), 16)
        if not size and run < _ZEROS:
            return
        part.skip(size)
        at += run + 1
    _require_within(at, 64)


def _first_dc(dc: _Codes, part: _Part, _: int) -> None:
    part.skip(part.symbol(dc))


def _refined_dc(part: _Part, _: int) -> None:
    part.skip(1)


def _first_ac(ac: _Codes, first: int, last: int, nonzero: list[int], part: _Part, number: int) -> None:
    if part.empty_blocks:
        part.empty_blocks -= 1
        return
    at = first
    while at <= last:
        run, size = divmod(part.symbol(ac), 16)
        if not size and run < _ZEROS:
            part.empty_blocks = (1 << run) + part.take(run) - 1
            return
        part.skip(size)
        at += run
        nonzero[number] |= bool(size) << at
        at += 1
    _require_within(at, last + 1)


def _refined_ac(ac: _Codes, first: int, last: int, nonzero: list[int], part: _Part, number: int) -> None:
    before, at = nonzero[number], first
    while at <= last and not part.empty_blocks:
        run, size = divmod(part.symbol(ac), 16)
        if not size and run < _ZEROS:
            part.empty_blocks = (1 << run) + part.take(run)
            break
        part.skip(size)
        while at <= last and (run or before >> at & 1):  # over so many zeros, and a bit for each that is none
            if before >> at & 1:
                part.skip(1)
            else:
                run -= 1
            at += 1
        nonzero[number] |= bool(size) << at
        _require_within(at, last + (not size))
        at += 1
    if part.empty_blocks:
        part.skip((before >> at & (1 << (last + 1 - at)) - 1).bit_count())
        part.empty_blocks -= 1


def _require_within(at: int, last: int) -> None:
    if at > last:
        raise DamagedScan("a coefficient beyond the last")


def _codes(table: HuffmanTable) -> _Codes:
    """For each 16 bits, in order, the code that they begin with; the list ends with the last code."""
    lengths = [length for length, count in enumerate(table.counts, start=1) for _ in range(count)]
    codes = zip(lengths, table.symbols, strict=False)
    return [code for code in codes for _ in range(1 << (16 - code[0]))]
