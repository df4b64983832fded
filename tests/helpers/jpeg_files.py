"""JPEGs put together by hand: whole ones with odd headers, and chroma layouts that no encoder here writes."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from pictures import encoded, photo

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
PHOTO = photo(3, 96, 80)
PLAIN = encoded(PHOTO, quality=90)
RESTARTS = encoded(PHOTO, quality=90, restart_marker_rows=1)


def segment(marker: int, body: bytes) -> bytes:
    """A marker, its length and its body."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def places(jpeg: bytes) -> list[tuple[int, int, int]]:
    """Marker, first byte and end of each segment of a plain JPEG, up to the first SOS."""
    found, at = [], 2
    while not found or found[-1][0] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((jpeg[at + 1], at, end))
        at = end
    return found


def place(jpeg: bytes, marker: int) -> tuple[int, int]:
    """First byte and end of the first segment with this marker."""
    return next((start, end) for each, start, end in places(jpeg) if each == marker)


def put_before(marker: int, data: bytes, jpeg: bytes = PLAIN) -> bytes:
    """The JPEG with `data` before the first segment with this marker."""
    start, _ = place(jpeg, marker)
    return jpeg[:start] + data + jpeg[start:]


def overwritten(at: int, data: bytes, jpeg: bytes = PLAIN) -> bytes:
    """The JPEG with other bytes from a place on."""
    return jpeg[:at] + data + jpeg[at + len(data) :]


def scan_start(jpeg: bytes) -> int:
    """Where the first scan's data begins."""
    return place(jpeg, 0xDA)[1]


def scan_end(jpeg: bytes) -> int:
    """Where the first scan's data ends."""
    at = scan_start(jpeg)
    while jpeg[at] != 0xFF or jpeg[at + 1] == 0 or 0xD0 <= jpeg[at + 1] <= 0xD7:
        at += 1
    return at


def jfif(major: int, minor: int) -> bytes:
    """With another revision of JFIF."""
    return overwritten(11, bytes((major, minor)))


def scan_parameters(*parameters: int, jpeg: bytes = PLAIN) -> bytes:
    """With other last bytes of SOS: first and last coefficient, and bits."""
    return overwritten(scan_start(jpeg) - 3, bytes(parameters), jpeg)


def adobe(transform: int) -> bytes:
    """With Adobe's segment in the place of JFIF's."""
    _, end = place(PLAIN, 0xE0)
    return SOI + segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)) + PLAIN[end:]


def icc(*parts: tuple[int, int]) -> bytes:
    """Segments with the parts of a colour profile, each numbered so of so many."""
    return b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes(part) + bytes(50)) for part in parts)


def exif(kind: int, value: int, order: str = "<") -> bytes:
    """A segment with an EXIF whose orientation has this type: 3 is SHORT, as it should be, 4 is LONG."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LHHHL", 8, 1, 0x0112, kind, 1)
    number = struct.pack(order + "L", value) if kind == 4 else struct.pack(order + "HH", value, 0)
    return segment(0xE1, b"Exif\0\0" + start + number + bytes(4))


def padded(jpeg: bytes, zeros: int) -> bytes:
    """With zeros before each restart marker."""
    start = scan_start(jpeg)
    scan = jpeg[start:]
    for marker in (b"\xff" + bytes([number]) for number in range(0xD0, 0xD8)):
        scan = scan.replace(marker, bytes(zeros) + marker)
    return jpeg[:start] + scan


def between_all(data: bytes) -> bytes:
    """With `data` before each segment."""
    return SOI + b"".join(data + PLAIN[start:end] for _, start, end in places(PLAIN)) + PLAIN[scan_start(PLAIN) :]


# Whole JPEGs that libjpeg warns of, or that it reads and others do not; all have the pixels of PLAIN.
HARMLESS = {
    "JFIF 2.01": jfif(2, 1),
    "JFIF 0.00": jfif(0, 0),
    "JFIF 255.255": jfif(255, 255),
    "SOS as Samsung's": scan_parameters(0, 63, 0x11),
    "SOS of zeros": scan_parameters(0, 0, 0),
    "SOS beyond all": scan_parameters(255, 255, 255),
    "Adobe transform 2": adobe(2),
    "Adobe transform 99": adobe(99),
    "two bytes before DHT": put_before(0xC4, bytes(2)),
    "text before SOF": put_before(0xC0, b"hello, world"),
    "500 zeros before SOS": put_before(0xDA, bytes(500)),
    "0xFF00 before DQT": put_before(0xDB, b"\xff\0"),
    "a byte after SOI": put_before(0xE0, b"\0"),
    "bytes before all segments": between_all(b"\0\1\2"),
    "fill before all segments": between_all(b"\xff\xff"),
    "APP5 longer than it says": put_before(0xDB, segment(0xE5, b"ab") + b"cdefgh"),
    "APP5 of length 0": put_before(0xDB, b"\xff\xe5\0\0"),
    "comment of length 1": put_before(0xDB, b"\xff\xfe\0\1"),
    "APP7 of odd length": put_before(0xDB, segment(0xE7, b"odd")),
    "RST in the header": put_before(0xC4, b"\xff\xd3"),
    "TEM in the header": put_before(0xC4, b"\xff\x01"),
    "DNL in the header": put_before(0xC4, segment(0xDC, b"\0\1")),
    "ICC part 0 of 1": put_before(0xDB, icc((0, 1))),
    "ICC part 2 of 3 only": put_before(0xDB, icc((2, 3))),
    "ICC parts that differ": put_before(0xDB, icc((1, 2), (2, 3))),
    "ICC too short": put_before(0xDB, segment(0xE2, b"ICC_PROFILE\0")),
    "Adobe too short": put_before(0xDB, segment(0xEE, b"Adobe\0")),
    "JFIF too short": SOI + segment(0xE0, b"JFIF\0") + PLAIN[place(PLAIN, 0xE0)[1] :],
    "EXIF of bytes": put_before(0xDB, exif(1, 6)),
    "EXIF of ASCII": put_before(0xDB, exif(2, 6)),
    "second EXIF": put_before(0xDB, exif(3, 1) + exif(3, 6)),
    "EXIF of nothing": put_before(0xDB, segment(0xE1, b"")),
    "comment after the scan": PLAIN[:-2] + segment(0xFE, b"late") + EOI,
    "EXIF after the scan": PLAIN[:-2] + exif(3, 6) + EOI,
    "all at once": put_before(0xC4, bytes(3), put_before(0xDB, icc((0, 1)), scan_parameters(0, 0, 0, jpeg=jfif(3, 3)))),
}


# Horizontal and vertical sampling factors of Y, Cb and Cr: none that TurboJPEG has a name for.
Layout = tuple[tuple[int, int], ...]
UNNAMED_LAYOUTS: dict[str, Layout] = {
    "4:1:0": ((4, 2), (1, 1), (1, 1)),
    "3 x 1": ((3, 1), (1, 1), (1, 1)),
    "1 x 3": ((1, 3), (1, 1), (1, 1)),
    "more chroma": ((1, 1), (2, 2), (2, 2)),
    "two chromas": ((2, 2), (1, 2), (2, 1)),
}


def interleaved(layout: Layout, across: int = 5, down: int = 4, restart_interval: int = 0) -> bytes:
    """A sequential JPEG of so many MCUs, with random blocks and its components in one scan."""
    random = np.random.default_rng(0)
    width, height = (
        8 * mcus * max(factors) for mcus, factors in zip((across, down), zip(*layout, strict=True), strict=True)
    )
    dc, ac = (_codes(body) for body in _huffman_tables())
    parts: list[str] = []
    before: list[int] = []
    for mcu in range(across * down):
        if mcu % (restart_interval or across * down) == 0:
            parts.append("")
            before = [0] * len(layout)
        for component, (horizontal, vertical) in enumerate(layout):
            for _ in range(horizontal * vertical):
                level = int(random.integers(-40, 41))
                parts[-1] += _number(dc, 0, level - before[component]) + _coefficients(ac, random)
                before[component] = level
    scan = b"".join(_stuffed(part) + bytes((0xFF, 0xD0 + number % 8)) for number, part in enumerate(parts))[:-2]
    interval = segment(0xDD, struct.pack(">H", restart_interval)) if restart_interval else b""
    return SOI + _tables(layout, width, height, 0xC0) + interval + _sos((1, 2, 3), (0, 63, 0)) + scan + EOI


def apart(layout: Layout, **options: Any) -> bytes:
    """A JPEG with each component in scans of its own: those of a grey JPEG that Pillow writes with these options."""
    most = [max(factors) for factors in zip(*layout, strict=True)]
    width, height = 24 * most[0], 16 * most[1]
    planes = [photo(seed, 24 * across, 16 * down).convert("L") for seed, (across, down) in enumerate(layout)]
    files = [encoded(plane, quality=90, **options) for plane in planes]
    sof = next(marker for marker, *_ in places(files[0]) if marker in (0xC0, 0xC2))
    scans = [_scans(file, identifier) for identifier, file in enumerate(files, start=1)]
    return SOI + _tables(layout, width, height, sof) + b"".join(scans) + EOI


def _scans(grey: bytes, identifier: int) -> bytes:
    """From the first DHT of a grey JPEG to its end, as scans of another component."""
    start, _ = place(grey, 0xC4)
    data = grey[start:-2]
    at = -1
    while (at := data.find(b"\xff\xda\0\x08\1\1", at + 1)) >= 0:  # SOS of one component, whose number is 1
        data = data[: at + 5] + bytes([identifier]) + data[at + 6 :]
    return data


def _tables(layout: Layout, width: int, height: int, sof: int) -> bytes:
    """DQT, SOF and DHT."""
    components = b"".join(bytes((n, across << 4 | down, 0)) for n, (across, down) in enumerate(layout, start=1))
    frame = struct.pack(">BHHB", 8, height, width, len(layout)) + components
    dc, ac = _huffman_tables()
    return segment(0xDB, b"\0" + bytes([8] * 64)) + segment(sof, frame) + segment(0xC4, dc) + segment(0xC4, ac)


def _sos(identifiers: Sequence[int], parameters: Sequence[int]) -> bytes:
    components = b"".join(bytes((each, 0)) for each in identifiers)
    return segment(0xDA, bytes([len(identifiers)]) + components + bytes(parameters))


def _huffman_tables() -> tuple[bytes, bytes]:
    """The bodies of the DHTs for DC and for AC that Pillow writes."""
    grey = encoded(PHOTO.convert("L"))
    dc, ac = (grey[start + 4 : end] for marker, start, end in places(grey) if marker == 0xC4)
    return dc, ac


def _codes(table: bytes) -> dict[int, str]:
    """The code of each symbol, in zeros and ones."""
    codes, code, symbols = {}, 0, iter(table[17:])
    for length, count in enumerate(table[1:17], start=1):
        for _ in range(count):
            codes[next(symbols)] = f"{code:0{length}b}"
            code += 1
        code *= 2
    return codes


def _number(codes: dict[int, str], run: int, value: int) -> str:
    """A coefficient after so many zeros."""
    size = abs(value).bit_length()
    bits = f"{value if value > 0 else value + 2**size - 1:0{size}b}" if size else ""
    return codes[run << 4 | size] + bits


def _coefficients(codes: dict[int, str], random: np.random.Generator) -> str:
    """Up to three coefficients and the end of the block."""
    runs, values = random.integers(0, 9, 3).tolist(), random.choice([-9, -2, -1, 1, 3, 12], 3).tolist()
    chosen = zip(runs, values, strict=True)
    return "".join(_number(codes, run, value) for run, value in list(chosen)[: int(random.integers(0, 4))]) + codes[0]


def _stuffed(bits: str) -> bytes:
    """Zeros and ones as a part of a scan: filled up with ones, and a zero after each 0xFF."""
    padded = bits + "1" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big").replace(b"\xff", b"\xff\0")
