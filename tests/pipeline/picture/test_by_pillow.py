"""Grey pictures of more than 8 bits: which value is white, and what is left out."""

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pictures import encoded
from pipeline.picture.by_pillow import rgb_pixels
from pipeline.picture.jpeg import to_jpeg
from pipeline.picture.unusable import UnusablePicture

SIDE = 64
SHARES = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) + 0.5) / SIDE**2  # of white, from nearly 0 to nearly 1


def tiff(data: bytes, bits: int, sample_format: int, photometric: int = 1, order: str = "<") -> bytes:
    """A TIFF of SIDE x SIDE pixels; sample_format: 1 unsigned, 2 signed, 3 float; photometric: 0 where white is 0."""
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: SIDE, 279: len(data)}
    fields = [struct.pack(order + "HHLL", tag, 4, 1, value) for tag, value in {**tags, 339: sample_format}.items()]
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8 + len(data))
    return start + data + struct.pack(order + "H", len(fields)) + b"".join(fields) + bytes(4)


def packed(values: NDArray[np.uint16]) -> bytes:
    """Values of 12 bits, two in three bytes."""
    first, second = values.reshape(-1, 2).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def scaled(white: int, kind: str = "f4") -> NDArray[Any]:
    return (SHARES * white).astype(kind)


HEADER = f"{SIDE} {SIDE}".encode()
GREY = {
    "floats to 1": (tiff(scaled(1).tobytes(), 32, 3), SHARES),
    "floats to 255": (tiff(scaled(255).tobytes(), 32, 3), SHARES),
    "floats to 65535": (tiff(scaled(65535).tobytes(), 32, 3), SHARES),
    "floats, big-endian": (tiff(scaled(1, ">f4").tobytes(), 32, 3, order=">"), SHARES),
    "floats, white is 0": (tiff((1 - scaled(1)).tobytes(), 32, 3, photometric=0), SHARES),
    "floats of a PFM": (b"Pf\n" + HEADER + b"\n-1.0\n" + scaled(1)[::-1].tobytes(), SHARES),
    "32 bits to 255": (tiff(scaled(255, "i4").tobytes(), 32, 2), np.floor(SHARES * 255) / 255),
    "32 bits to 65535": (tiff(scaled(65535, "u4").tobytes(), 32, 1), SHARES),
    "16 bits": (tiff(scaled(65535, "u2").tobytes(), 16, 1), SHARES),
    "16 bits, big-endian": (tiff(scaled(65535, ">u2").tobytes(), 16, 1, order=">"), SHARES),
    "16 bits, white is 0": (tiff((65535 - scaled(65535, "u2")).tobytes(), 16, 1, photometric=0), SHARES),
    "16 bits, none light": (tiff(scaled(200, "u2").tobytes(), 16, 1), SHARES * 200 / 65535),
    "16 bits of a PNG": (encoded(Image.fromarray(scaled(65535, "u2")), "PNG"), SHARES),
    "16 bits of a PGM, none light": (
        b"P5 " + HEADER + b" 65535\n" + scaled(200, ">u2").tobytes(),
        SHARES * 200 / 65535,
    ),
    "10 bits of a PGM": (b"P5 " + HEADER + b" 1023\n" + scaled(1023, ">u2").tobytes(), SHARES),
    "12 bits": (tiff(packed(scaled(4095, "u2")), 12, 1), SHARES),
    "black floats": (tiff(bytes(4 * SIDE**2), 32, 3), SHARES * 0),
}


@pytest.mark.parametrize("kind", GREY)
def test_white_is_by_the_bits_or_the_least_of_the_usual_that_holds_all(kind: str) -> None:
    data, shares = GREY[kind]
    pixels = rgb_pixels(data)
    assert (pixels == pixels[..., :1]).all()
    # A value was cut off to a whole one before, and is rounded once.
    assert np.abs(pixels[..., 0] - shares * 255).max() <= 0.5 + 255 / 1023


def test_sixteen_bits_are_rounded_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    nearest = np.array([(int(value) * 255 * 2 + 65535) // (2 * 65535) for value in values.ravel()])
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(rgb_pixels(encoded(Image.fromarray(values), format))[..., 0].ravel(), nearest)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (scaled(1) - 0.25, "values from -0.2.* to 0.7.*, expected 0 to 1"),
        (scaled(70_000), "values from .* to 69991.*, expected 0 to 65535"),
        (scaled(1_000_000, "i4"), "values from .*, expected 0 to 65535"),
        (scaled(255, "i4") - 1, "values from -1 to 253, expected 0 to 255"),
        (np.where(SHARES > 0.5, np.nan, SHARES).astype("f4"), "values from nan to nan"),
        (np.where(SHARES > 0.5, np.inf, SHARES).astype("f4"), "values from .* to inf, expected 0 to 65535"),
    ],
)
def test_values_outside_black_and_white_are_left_out(values: NDArray[Any], reason: str) -> None:
    with pytest.raises(UnusablePicture, match=reason):
        to_jpeg(tiff(values.tobytes(), 32, 3 if values.dtype.kind == "f" else 2), 32, 90)
