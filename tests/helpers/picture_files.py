"""Picture files of every kind that becomes a training picture, and of every kind that does not."""

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from pictures import encoded, photo

SIZE = 32
QUALITY = 95


def red_left(mode: str = "RGB") -> Image.Image:
    """48 x 32, red on the left half and blue on the right."""
    picture = Image.new("RGB", (48, 32), (0, 0, 250))
    picture.paste((250, 0, 0), (0, 0, 24, 32))
    return picture.convert(mode)


def rotated(orientation: int, transpose: Image.Transpose) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(red_left().transpose(transpose), quality=95, exif=exif)


def half_transparent() -> Image.Image:
    picture = red_left("RGBA")
    picture.paste((9, 9, 9, 0), (24, 0, 48, 32))
    return picture


def grey(mode: str) -> Image.Image:
    """48 x 32, mid-grey on the left half and white on the right."""
    picture = Image.new("L", (48, 32), 255)
    picture.paste(128, (0, 0, 24, 32))
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    return picture.convert(mode)


# How a camera stores a picture that it tells to be shown with this EXIF orientation; 1 is upright.
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RED, BLUE, WHITE, MIDDLE = (250, 0, 0), (0, 0, 250), (255, 255, 255), (128, 128, 128)
KINDS = {
    "JPEG": (encoded(red_left(), quality=95), RED, BLUE),
    "progressive": (encoded(red_left(), quality=95, progressive=True), RED, BLUE),
    "PNG": (encoded(red_left(), "PNG"), RED, BLUE),
    "WebP": (encoded(red_left(), "WEBP", lossless=True), RED, BLUE),
    "palette": (encoded(red_left("P"), "PNG"), (255, 0, 0), (0, 0, 255)),
    "CMYK": (encoded(red_left("CMYK"), quality=95), RED, BLUE),
    "grey": (encoded(grey("L"), quality=95), MIDDLE, WHITE),
    "grey with alpha": (encoded(grey("LA"), "PNG"), MIDDLE, WHITE),
    "16 bits": (encoded(grey("I;16"), "PNG"), MIDDLE, WHITE),
    "1 bit": (encoded(grey("1"), "PNG"), None, WHITE),
    "alpha": (encoded(half_transparent(), "PNG"), RED, WHITE),
    "palette with alpha": (encoded(half_transparent().quantize(), "PNG"), RED, WHITE),
    "transparent colour": (encoded(red_left(), "PNG", transparency=BLUE), RED, WHITE),
    "multi-picture": (encoded(red_left(), "MPO", quality=95, save_all=True, append_images=[photo(1)]), RED, BLUE),
    "animated GIF": (encoded(red_left("P"), "GIF", save_all=True, append_images=[photo(1)]), (255, 0, 0), (0, 0, 255)),
    "animated WebP": (
        encoded(red_left(), "WEBP", lossless=True, save_all=True, append_images=[photo(1, 48, 32)]),
        RED,
        BLUE,
    ),
    "bytes before the end": (encoded(red_left(), quality=95)[:-2] + bytes(1483) + b"\xff\xd9", RED, BLUE),
    "bytes after the end": (encoded(red_left(), quality=95) + bytes(1000), RED, BLUE),
    "large profile": (encoded(red_left(), quality=95, icc_profile=bytes(300_000)), RED, BLUE),
    "large odd EXIF": (encoded(red_left(), quality=95, exif=b"Exif\0\0II*\0" + b"\7" * 60_000), RED, BLUE),
    "RGB inside": (encoded(red_left(), quality=95, keep_rgb=True), RED, BLUE),
    **{f"EXIF {value}": (rotated(value, transpose), RED, BLUE) for value, transpose in STORED_AS.items()},
}
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
