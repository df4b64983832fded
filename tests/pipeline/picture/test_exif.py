import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from jpeg_files import exif, put_before
from pictures import encoded, photo
from pipeline.picture.exif import orientation


def turned(value: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    exif[ExifTags.Base.Orientation] = value
    return encoded(photo(1), exif=exif, **options)


@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_pillows(value: int) -> None:
    assert orientation(turned(value)) == value
    assert orientation(turned(value, comment=b"x" * 1000, progressive=True)) == value


@pytest.mark.parametrize("order", ["little", "big"])
def test_both_byte_orders_are_read(order: str) -> None:
    numbers = [(42, 2), (8, 4), (1, 2), (0x0112, 2), (3, 2), (1, 4), (6, 2), (0, 2), (0, 4)]  # one entry: orientation 6
    tiff = b"".join(value.to_bytes(size, "little" if order == "little" else "big") for value, size in numbers)
    exif = b"Exif\0\0" + (b"II" if order == "little" else b"MM") + tiff
    assert orientation(encoded(photo(1), exif=exif)) == 6


def test_fill_bytes_before_a_marker_are_passed_over() -> None:
    data = turned(8)
    at = data.index(b"\xff\xe1")
    assert orientation(data[:at] + b"\xff\xff" + data[at:]) == 8


@pytest.mark.parametrize("before", [b"\0\0", b"\xff\0", b"\xff\x01", b"\xff\xe5\0\0", b"\xff\xfe\0\1"])
def test_what_else_lies_before_it_is_passed_over(before: bytes) -> None:
    assert orientation(put_before(0xDB, before + exif(3, 6))) == 6


@pytest.mark.parametrize("order", "<>")
def test_a_long_orientation_is_read_as_pillow_reads_it(order: str) -> None:
    jpeg = put_before(0xDB, exif(4, 6, order))
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert orientation(jpeg) == picture.getexif()[ExifTags.Base.Orientation] == 6


def test_the_first_of_two_counts() -> None:
    assert orientation(put_before(0xDB, exif(3, 6) + exif(3, 1))) == 6
    assert orientation(put_before(0xDB, exif(3, 1) + exif(3, 6))) == 1


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", encoded(photo(1)), turned(0), turned(9)])
def test_none_that_can_be_read_is_upright(data: bytes) -> None:
    assert orientation(data) == 1


def test_any_damage_gives_an_orientation() -> None:
    random = np.random.default_rng(0)
    whole = turned(6)
    for _ in range(2000):
        damaged = bytearray(whole[: random.integers(0, len(whole))])
        for at in random.integers(0, 120, 4):
            if at < len(damaged):
                damaged[at] = random.integers(0, 256)
        assert orientation(bytes(damaged)) in range(1, 9)
