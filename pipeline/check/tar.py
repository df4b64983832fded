"""A strict reader of the tars that pipeline.write makes: one pass, every byte checked, memory independent of size.

`tarfile` is too lenient for this: it skips a damaged header, and does not look at padding. pipeline.write makes tars of
one form only (POSIX.1-1988 ustar, a block of 512 bytes a header), so each header is compared, byte for byte, with the
one that its own name and size should give.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final, NamedTuple

from isal.isal_zlib import crc32

from pipeline.check.faults import Faults
from pipeline.write.ustar import BLOCK, END_BLOCKS, RECORD, ustar_header

LABEL: Final = ".cls"

_MOST_LABEL_BYTES: Final = 20
_CHUNK: Final = 256 * 2**10  # stays in a core's cache between hash, CRC and comparison

_KEY: Final = r"([0-9]{8}|[1-9][0-9]{8,80})"
_SIZE: Final = re.compile(rb"[0-7]{11}")
# Where each field ends, by the format's definition; `checksum` is the sum of all bytes, its own counted as spaces.
_FIELDS: Final = {
    "name": 100,
    "mode": 108,
    "owner": 116,
    "group": 124,
    "size": 136,
    "time": 148,
    "checksum": 156,
    "type": 157,
    "link": 257,
    "magic": 263,
    "version": 265,
    "owner's name": 297,
    "group's name": 329,
    "device": 345,
    "prefix": 500,
    "padding": 512,
}


_Header = tuple[str | None, str, int]  # stem, None where it is lost; suffix; size


class ExpectedMember(NamedTuple):
    """The member that should lie at some offset of a tar: lets the reader go on after a damaged header."""

    suffix: str
    size: int


class FoundMember(NamedTuple):
    """A member as it is in the tar; `stem` is None where its header is damaged, `data` where it is not kept."""

    stem: str | None
    suffix: str
    offset: int  # of its first byte
    size: int
    crc32: int
    data: bytes | None

    def __str__(self) -> str:
        """How messages name it."""
        return f"{self.stem}{self.suffix}" if self.stem else f"the {self.suffix} at byte {self.offset - BLOCK:,}"


class HashingReader:
    """A stream read once from start to end; every byte is hashed, none is kept."""

    def __init__(self, stream: io.BufferedIOBase):
        self.position = 0  # of what was given out
        self._stream, self._sha256 = stream, hashlib.sha256()
        self._room = memoryview(bytearray(_CHUNK))
        self._chunk = self._room[:0]

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes, fewer at the end; a piece holds only until the next one is asked for."""
        while count > 0 and (self._chunk or self._load()):
            piece = self._chunk[:count]
            self._chunk = self._chunk[len(piece) :]
            self.position += len(piece)
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end; for small counts."""
        if count > len(self._chunk):
            return b"".join(map(bytes, self.pieces(count)))
        taken, self._chunk = self._chunk[:count], self._chunk[count:]  # nearly always: it lies in one chunk
        self.position += count
        return taken.tobytes()

    def rest(self) -> Iterator[memoryview]:
        """Everything that is left."""
        while self._chunk or self._load():
            yield from self.pieces(_CHUNK)

    def sha256(self) -> str:
        """Of the whole stream, whatever of it was looked at."""
        for _ in self.rest():
            pass
        return self._sha256.hexdigest()

    def _load(self) -> bool:
        filled = self._stream.readinto(self._room)
        self._chunk = self._room[:filled]
        self._sha256.update(self._chunk)
        return bool(filled)


def check_members(
    reader: HashingReader,
    picture: str,
    expected: Mapping[int, ExpectedMember],
    most: int,
    keep: int,
    faults: Faults,
) -> Iterator[FoundMember]:
    """The members of a tar of pictures with the suffix `picture`; what is wrong with its form goes into `faults`.

    `expected` holds the expected members by the offset of their data, so that a damaged header costs only its own
    member; without it reading ends there. Reading also ends after `most` members. The data of a picture of up to `keep`
    bytes is kept, and that of a label of up to 20.
    """
    for _ in range(most + 1):
        start = reader.position
        block = reader.take(BLOCK)
        header, expected_member = _parse(block, picture), expected.get(start + BLOCK)
        if header is None:
            if expected_member is None or len(block) < BLOCK:
                _check_end(reader, block, picture, bool(expected), faults)
                return
            _report_damaged_header(block, picture, expected_member, start, faults)
            header = None, expected_member.suffix, expected_member.size
        member = _member(reader, header, keep)
        yield member
        if not _ends_well(reader, member, faults):
            return
    faults.report("members", f"at most {most:,}", "more")


@cache
def _names(picture: str) -> re.Pattern[bytes]:
    """What members may be called: a key, and the suffix of a picture or of a label."""
    return re.compile(f"{_KEY}({re.escape(picture)}|{re.escape(LABEL)})".encode("ascii"))


def _parse(block: bytes, picture: str) -> _Header | None:
    """Stem, suffix and size of a header that is as written, else None."""
    name = block[:100].rstrip(b"\0")
    match, digits = _names(picture).fullmatch(name), block[124:135]
    if not match or not _SIZE.fullmatch(digits) or block != ustar_header(name, int(digits, 8)):
        return None
    return match[1].decode("ascii"), match[2].decode("ascii"), int(digits, 8)


def _member(reader: HashingReader, header: _Header, keep: int) -> FoundMember:
    stem, suffix, size = header
    offset, checksum = reader.position, 0
    kept: list[bytes] | None = [] if size <= (_MOST_LABEL_BYTES if suffix == LABEL else keep) else None
    for piece in reader.pieces(size):
        checksum = crc32(piece, checksum)
        if kept is not None:
            kept.append(bytes(piece))
    return FoundMember(stem, suffix, offset, size, checksum, None if kept is None else b"".join(kept))


def _ends_well(reader: HashingReader, member: FoundMember, faults: Faults) -> bool:
    """Whether the tar goes on after a member; only zeros may fill the last block of the member's data."""
    end = member.offset + member.size
    padding = reader.take(-end % BLOCK)
    if (other := _first_nonzero(padding)) is not None:
        faults.report(f"{member}, padding at byte {end + other:,}", "zeros", _shortened(padding))
    if reader.position == end + -end % BLOCK:
        return True
    faults.report(f"ends within {member}", f"{end + -end % BLOCK:,} bytes and more", f"{reader.position:,}")
    return False


def _check_end(reader: HashingReader, block: bytes, picture: str, is_expected: bool, faults: Faults) -> None:
    """What comes after the last member: zeros, up to a whole record that has room for the end's two blocks."""
    start = position = reader.position - len(block)
    other = _first_nonzero(block)
    if other is not None and (not is_expected or _names(picture).match(block)):
        faults.report(f"byte {start:,}", f"a header of KEY{picture} or KEY{LABEL}, or the end", _shortened(block))
        return
    for piece in (block, *([] if len(block) < BLOCK else reader.rest())):
        if other is None and (other := _first_nonzero(piece)) is not None:
            other += position - start
        position += len(piece)
    if other is not None:
        faults.report(f"end of archive at byte {start:,}", "zeros", f"another byte at {start + other:,}")
    expected = -(-(start + END_BLOCKS * BLOCK) // RECORD) * RECORD
    faults.require("bytes by its own form", f"{expected:,}", f"{position:,}")


def _report_damaged_header(
    block: bytes, picture: str, expected_member: ExpectedMember, start: int, faults: Faults
) -> None:
    suffix = expected_member.suffix.encode("ascii")
    match = _names(picture).fullmatch(block[:100].rstrip(b"\0"))
    name = match[0] if match and match[2] == suffix else b""
    expected = ustar_header(name or b"KEY" + suffix, expected_member.size)
    starts = (0, *_FIELDS.values())
    fields = [(field, slice(first, end)) for first, (field, end) in zip(starts, _FIELDS.items(), strict=False)]
    differing = [(field, where) for field, where in fields if block[where] != expected[where]]
    # The checksum follows from the other fields, so it is named only where it alone differs; then the name may have
    # changed into another valid name.
    field, where = next((each for each in differing if each[0] != "checksum"), ("name or checksum", slice(148, 156)))
    named = name.decode("ascii") if name else f"a {expected_member.suffix}"
    faults.report(
        f"header of {named} at byte {start:,}, {field}", _shortened(expected[where]), _shortened(block[where])
    )


def _first_nonzero(data: bytes | memoryview) -> int | None:
    """Where the first byte is that is not zero."""
    other = bytes(data).lstrip(b"\0")
    return len(data) - len(other) if other else None


def _shortened(data: bytes) -> str:
    return repr(data.rstrip(b"\0")[:24])
