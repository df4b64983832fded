"""Odd metadata of PNG, TIFF, WebP and GIF files: the picture is used as if they were not there."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from jpeg_files import exif
from pictures import encoded, photo
from pipeline.picture.by_pillow import rgb_pixels
from pipeline.picture.jpeg import to_jpeg, to_square
from pipeline.picture.unusable import UnusablePicture

PHOTO = photo(4, 60, 40)
PIXELS = np.asarray(PHOTO)
PALETTE = PHOTO.quantize(16)
PNG = encoded(PHOTO, "PNG")


def chunk(name: bytes, data: bytes, damage: int = 0) -> bytes:
    """A chunk of a PNG; `damage` flips bits of its checksum."""
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data) ^ damage)


def with_chunk(name: bytes, data: bytes, damage: int = 0, at_end: bool = False, png: bytes = PNG) -> bytes:
    """The PNG with one more chunk after its header, or before its end."""
    place = len(png) - 12 if at_end else 33
    return png[:place] + chunk(name, data, damage) + png[place:]


def text() -> dict[str, PngImagePlugin.PngInfo]:
    compressed, international = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    compressed.add_text("x", "y" * 2_000_000, zip=True)
    international.add_itxt("x", "y" * 2_000_000, zip=True)
    return {"zTXt": compressed, "iTXt": international}


def tag_of(field: bytes) -> int:
    return int.from_bytes(field[:2], "little")


def tiff(tag: int, kind: int, count: int, value: int) -> bytes:
    """A TIFF with one more tag, of any type, count and value."""
    plain = encoded(PHOTO, "TIFF")
    (directory,) = struct.unpack_from("<L", plain, 4)
    (entries,) = struct.unpack_from("<H", plain, directory)
    end = directory + 2 + 12 * entries
    fields = [plain[at : at + 12] for at in range(directory + 2, end, 12)] + [
        struct.pack("<HHLL", tag, kind, count, value)
    ]
    together = struct.pack("<H", len(fields)) + b"".join(sorted(fields, key=tag_of)) + bytes(4)
    return plain[:4] + struct.pack("<L", len(plain)) + plain[8:] + together


EXIF = exif(3, 6)[10:]
ODD = {
    "much text, zTXt": encoded(PHOTO, "PNG", pnginfo=text()["zTXt"]),
    "much text, iTXt": encoded(PHOTO, "PNG", pnginfo=text()["iTXt"]),
    "large profile": encoded(PHOTO, "PNG", icc_profile=bytes(2_000_000)),
    "profile that is none": with_chunk(b"iCCP", b"name\0\0not compressed"),
    "text after the pixels": with_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2_000_000)), at_end=True),
    "damaged text": with_chunk(b"tEXt", b"x\0y", damage=1),
    "damaged time": with_chunk(b"tIME", bytes(7), damage=0xFFFFFFFF),
    "damaged chunk of somebody's": with_chunk(b"prVt", bytes(9), damage=1),
    "damaged text after the pixels": with_chunk(b"tEXt", b"x\0y", damage=1, at_end=True),
    "resolution too short": with_chunk(b"pHYs", b"\0"),
    "gamma too short": with_chunk(b"gAMA", b"\0"),
    "chromaticities too short": with_chunk(b"cHRM", b"\0\0"),
    "animation of nothing": with_chunk(b"acTL", bytes(8)),
    "EXIF that is none": with_chunk(b"eXIf", b"no EXIF"),
    "EXIF cut off": with_chunk(b"eXIf", EXIF[:12]),
    "EXIF that points outside": with_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "damaged EXIF": with_chunk(b"eXIf", EXIF, damage=1),
    "WebP with EXIF that is none": encoded(PHOTO, "WEBP", lossless=True, exif=b"Exif\0\0no EXIF"),
    "WebP with a profile that is none": encoded(PHOTO, "WEBP", lossless=True, icc_profile=b"none", xmp=b"<"),
    "TIFF with a resolution of text": tiff(TiffImagePlugin.X_RESOLUTION, 2, 9, 8),
    "TIFF with a tag outside": tiff(TiffImagePlugin.IMAGEDESCRIPTION, 2, 0xFFFFFFF, 0xFFFFFFF0),
    "TIFF with a tag of no type": tiff(TiffImagePlugin.IMAGEDESCRIPTION, 255, 1, 1),
    "TIFF with XMP of numbers": tiff(700, 12, 3, 8),
    "TIFF with a large profile": tiff(34675, 7, 0xFFFFFF, 8),
    "TIFF with an EXIF outside": tiff(34665, 4, 1, 0xFFFFFFF0),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on them
@pytest.mark.parametrize("kind", ODD)
def test_odd_metadata_change_nothing(kind: str) -> None:
    np.testing.assert_array_equal(rgb_pixels(ODD[kind]), PIXELS)
    assert to_jpeg(ODD[kind], 32, 90)[0] == to_jpeg(PNG, 32, 90)[0]


def test_a_long_comment_of_a_gif_changes_nothing() -> None:
    expected = to_square(encoded(PALETTE, "GIF"), 32)
    np.testing.assert_array_equal(to_square(encoded(PALETTE, "GIF", comment=b"y" * 3_000_000), 32), expected)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_an_orientation_is_heeded_beside_odd_metadata(format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    options["exif"] = Image.Exif()
    options["exif"][ExifTags.Base.Orientation] = 6
    picture = encoded(PHOTO.transpose(Image.Transpose.ROTATE_90), format, **options)
    odd = with_chunk(b"tEXt", b"x\0y", damage=1, png=picture) if format == "PNG" else picture
    np.testing.assert_array_equal(rgb_pixels(odd), PIXELS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "value"), [(3, 0), (3, 9), (3, 65535), (2, 6), (7, 6), (255, 6)])
def test_an_orientation_that_is_none_turns_nothing(kind: int, value: int) -> None:
    png = with_chunk(b"eXIf", exif(kind, value)[10:])
    np.testing.assert_array_equal(rgb_pixels(png), PIXELS)


def damaged_checksum(name: bytes, png: bytes) -> bytes:
    """The PNG with a bit of a chunk's checksum flipped."""
    at = png.index(name)
    end = at + 4 + int.from_bytes(png[at - 4 : at], "big")
    return png[:end] + bytes([png[end] ^ 1]) + png[end + 1 :]


TRANSPARENT = encoded(PALETTE, "PNG", transparency=3)
DAMAGED: dict[str, Callable[[], bytes]] = {
    "header": lambda: damaged_checksum(b"IHDR", PNG),
    "palette": lambda: damaged_checksum(b"PLTE", TRANSPARENT),
    "transparency": lambda: damaged_checksum(b"tRNS", TRANSPARENT),
    "palette's name": lambda: TRANSPARENT.replace(b"PLTE", b"pLTE"),
    "transparency's name": lambda: TRANSPARENT.replace(b"tRNS", b"tRNs"),
    "pixels' name": lambda: PNG.replace(b"IDAT", b"iDAT"),
    "pixels cut off": lambda: with_chunk(b"tEXt", b"x\0y", damage=1)[:-300],
    "TIFF cut off": lambda: ODD["TIFF with a tag of no type"][:4000],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DAMAGED)
def test_what_says_something_of_the_pixels_must_be_sound(kind: str) -> None:
    with pytest.raises(UnusablePicture):
        to_jpeg(DAMAGED[kind](), 32, 90)
