"""Bytes of any picture file -> an upright RGB JPEG, and the pixels a decoder will see in it.

ImageNet's .JPEG files hold CMYK, grey, a PNG and worse; here they become one kind, or a reason why not. Embedded colour
profiles are ignored, as training decoders do. Nothing here is shared between calls: threads may call at once.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.picture.exif import orientation
from pipeline.picture.resize import central_square, resizer_version

STATISTICS_SIZE: Final = 256  # pixels a side of the central crop that is measured where pictures keep their own size
MOST_PIXELS: Final = 89_478_485  # what Pillow warns of; a third of a gigabyte in its memory

_JPEG: Final = b"\xff\xd8\xff"
# Not every format Pillow knows: some start other programs (EPS), and no data set has them.
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Extra bytes between the last block and the end mark: nothing of the picture is missing. ImageNet has such pictures
# (apache/mxnet issue 1522), and others train on them too.
_BYTES_AT_THE_END: Final = re.compile("extraneous bytes before marker 0xd9")
_BACKGROUND: Final = "white"  # what shows through transparent pixels, as on a page
_SUBSAMPLING: Final = "420"  # what cameras and ImageNet have, and decoders are fastest at


class UnusablePicture(Exception):
    """A file that cannot become a training picture; the message is the reason, one line, the same on every run."""


class Header(NamedTuple):
    """What a picture file says of itself."""

    width: int
    height: int
    colours: str  # YCbCr, RGB, Gray, CMYK, YCCK or unknown


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8]  # (height, width, 3)
    clean: bool  # whether it decoded without anything that a decoder might warn of


def encoder_version() -> str:
    """The names and versions of the libraries that determine the bytes: others give other bytes.

    simplejpeg bundles a libjpeg-turbo that does not tell its version; each simplejpeg version has one of them.
    """
    return f"simplejpeg {simplejpeg.__version__}, {resizer_version()}, Pillow {PIL.__version__}"


def to_jpeg(data: bytes, size: int, quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The JPEG to store, and the central square of what it decodes to, (size, size, 3) RGB.

    The shorter side becomes `size` pixels and the central square is kept. With size 0 an upright RGB or grey JPEG stays
    as it is, and anything else is encoded at its own size; the square returned is then of STATISTICS_SIZE.
    UnusablePicture where the data does not decode whole and without complaint, or has too many pixels.
    """
    if not data:
        raise UnusablePicture("the file is empty")
    with _reasons():
        return _square_jpeg(data, size, quality) if size else _own_size_jpeg(data, quality)


def verified_header(jpeg: bytes) -> Header:
    """The header of a JPEG of a data set; UnusablePicture unless it decodes whole and without complaint."""
    with _reasons():
        header = _require_size(_jpeg_header(jpeg))
        simplejpeg.decode_jpeg(jpeg, "RGB")
        return header


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except (MemoryError, UnusablePicture):
        raise  # the former is this machine's fault, not the picture's
    except Exception as error:  # Pillow raises a dozen unrelated types on damaged data
        raise UnusablePicture(_reason(error)) from error


def to_square(data: bytes, size: int) -> NDArray[np.uint8]:
    """The central square of an upright picture, (size, size, 3) RGB, as `to_jpeg` encodes it; UnusablePicture too."""
    if not data:
        raise UnusablePicture("the file is empty")
    with _reasons():
        return _square(data, size)


def _square_jpeg(data: bytes, size: int, quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    jpeg = _encode(_square(data, size), quality)
    return jpeg, _decode(jpeg).pixels


def _square(data: bytes, size: int) -> NDArray[np.uint8]:
    if data.startswith(_JPEG):
        _require_size(_jpeg_header(data))
        # A large JPEG: let the DCT scale it down by 2 or more, to no less than twice the size.
        decoded = _decode(data, least=2 * size)
        pixels = _upright(decoded.pixels, orientation(data))
    else:
        pixels = _by_pillow(data)
    return central_square(pixels, size)


def _own_size_jpeg(data: bytes, quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    if data.startswith(_JPEG):
        header = _require_size(_jpeg_header(data))
        decoded, turn = _decode(data), orientation(data)
        if turn == 1 and header.colours in ("YCbCr", "RGB", "Gray") and decoded.clean:
            return data, central_square(decoded.pixels, STATISTICS_SIZE)
        jpeg = _encode(_upright(decoded.pixels, turn), quality)
    else:
        jpeg = _encode(_by_pillow(data), quality)
    return jpeg, central_square(_decode(jpeg).pixels, STATISTICS_SIZE)


def _jpeg_header(data: bytes) -> Header:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        return Header(int(width), int(height), colours)
    except KeyError:  # a chroma subsampling that simplejpeg can decode but has no name for
        width, height = _open(data).size
        return Header(width, height, "unknown")


def _decode(jpeg: bytes, least: int = 0) -> _Decoded:
    """The pixels; scaled down by 2 or more where they are still at least `least` a side."""
    # The integer DCT and smooth upsampling, which all of libjpeg-turbo's instruction sets compute to the same bits.
    # Strict: what libjpeg only warns of, such as an early end, is an error. CMYK is taken as Adobe writes it, inverted.
    factor = 2 if least else 1
    decode = partial(simplejpeg.decode_jpeg, jpeg, "RGB", min_height=least, min_width=least, min_factor=factor)
    try:
        return _Decoded(decode(), clean=True)
    except ValueError as error:
        if not _BYTES_AT_THE_END.search(str(error)):
            raise
        return _Decoded(decode(strict=False), clean=False)


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", _SUBSAMPLING)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """An upright view of pixels that are stored in an EXIF orientation, 1 to 8."""
    upright = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    upright = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    return upright[::-1] if orientation in (3, 4, 7, 8) else upright


def _by_pillow(data: bytes) -> NDArray[np.uint8]:
    picture = _open(data)
    _require_size(Header(*picture.size, picture.mode))
    return np.asarray(_upright_rgb(picture))


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _require_size(header: Header) -> Header:
    shorter, longer = sorted(header[:2])
    if shorter * longer > MOST_PIXELS:
        raise UnusablePicture(_TOO_LARGE)
    # A loader that scales the shorter side to STATISTICS_SIZE must not get more pixels than that either.
    if longer * STATISTICS_SIZE**2 > MOST_PIXELS * shorter:
        raise UnusablePicture(f"{header.width} x {header.height} pixels are too long for their width")
    return header


def _upright_rgb(picture: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        page = Image.new("RGB", rgba.size, _BACKGROUND)
        page.paste(rgba, mask=rgba)
        return page
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).clip(0, 65535).astype(np.uint32)  # Pillow itself would cut everything above 255 off
    values += 128
    values //= 257
    return Image.fromarray(values.astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message holds a memory address
        return f"not a picture in any of the formats {', '.join(_FORMATS)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _TOO_LARGE
    return " ".join(f"{type(error).__name__}: {error}".split())


_TOO_LARGE: Final = f"more than {MOST_PIXELS:,} pixels"
