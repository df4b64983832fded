"""Files that cannot become training pictures: each has a reason, and none does harm."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pictures import decoded, encoded, photo
from pipeline.picture import MOST_PIXELS, UnusablePicture, to_jpeg
from test_picture import KINDS, QUALITY, SIZE

GOOD = encoded(photo(1, 200, 200), quality=95)
PROGRESSIVE = encoded(photo(1, 200, 200), quality=95, progressive=True)
FRAME = GOOD.index(b"\xff\xc0")  # marker, length, bits, height, width


def changed(at: int, new: bytes) -> bytes:
    """GOOD with other bytes from a place on."""
    return GOOD[:at] + new + GOOD[at + len(new) :]


def empty_png(width: int, height: int) -> bytes:
    """A sound PNG header for a picture that is not there."""
    header = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    ends = [struct.pack(">L", 13) + header, struct.pack(">L", 0) + b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + struct.pack(">L", zlib.crc32(part[4:])) for part in ends)


UNUSABLE = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>not found</html>", "not a picture in any of the formats JPEG, PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
    "JPEG's first bytes": (GOOD[:4], "ValueError"),
    "JPEG's header": (GOOD[:20], "ValueError"),
    "half a JPEG": (GOOD[: len(GOOD) // 2], "Premature end"),
    "half a JPEG and an end": (GOOD[: len(GOOD) // 2] + GOOD[-2:], "premature end"),
    "JPEG without its end": (GOOD[:-2], "Premature end"),
    "JPEG without a row": (GOOD[:-50] + GOOD[-2:], "premature end"),
    "half a progressive JPEG": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "ValueError"),
    "half a CMYK JPEG": (encoded(photo(1).convert("CMYK"), quality=95)[:-200], "Premature end"),
    "12 bits": (changed(FRAME + 4, b"\x0c"), "precision 12"),
    "lossless": (changed(FRAME + 1, b"\xc3"), "ValueError"),
    "half a PNG": (encoded(photo(1), "PNG")[:200], "truncated"),
    "enormous JPEG": (changed(FRAME + 5, struct.pack(">HH", 9460, 9460)), "more than 89,478,485 pixels"),
    "enormous PNG": (empty_png(100_000, 100_000), "more than 89,478,485 pixels"),
    "long JPEG": (changed(FRAME + 5, struct.pack(">HH", 60_000, 1)), "1 x 60000 pixels are too long"),
    "long PNG": (encoded(Image.new("L", (1400, 1)), "PNG"), "1400 x 1 pixels are too long"),
}


@pytest.mark.parametrize("size", [SIZE, 0])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_not_usable_has_a_reason(kind: str, size: int) -> None:
    data, reason = UNUSABLE[kind]
    with pytest.raises(UnusablePicture, match=reason) as first:
        to_jpeg(data, size, QUALITY)
    with pytest.raises(UnusablePicture) as second:
        to_jpeg(data, size, QUALITY)
    assert str(first.value) == str(second.value)


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")  # where warnings are no errors
def test_the_bound_does_not_rest_on_a_warning() -> None:
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UnusablePicture, match="more than"):
        to_jpeg(empty_png(MOST_PIXELS // 9000 + 1, 9000), SIZE, QUALITY)


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for at in random.integers(0, len(data), 3):
        damaged[at] ^= int(random.integers(1, 256))
    return bytes(damaged)


def inserted(data: bytes, random: np.random.Generator) -> bytes:
    at = int(random.integers(0, len(data)))
    return data[:at] + random.bytes(5) + data[at:]


def truncated(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(0, len(data)))]


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on damaged metadata
@pytest.mark.parametrize("damage", [flipped, inserted, truncated])
def test_damage_is_survived_or_has_a_reason(damage: Callable[[bytes, np.random.Generator], bytes]) -> None:
    random = np.random.default_rng(0)
    for turn in range(12):
        for data, *_ in KINDS.values():
            size = (16, 0)[turn % 2]
            try:
                jpeg, pixels = to_jpeg(damage(data, random), size, QUALITY)
            except UnusablePicture as unusable:
                assert "\n" not in str(unusable) and " at 0x" not in str(unusable)
            else:
                assert pixels.shape == (size or 256, size or 256, 3)
                assert not size or decoded(jpeg).shape == (size, size, 3)
