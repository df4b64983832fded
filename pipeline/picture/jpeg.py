"""Bytes of any picture file -> an upright RGB JPEG, and the pixels a decoder will see in it.

ImageNet's .JPEG files hold CMYK, grey, a PNG and worse; here they become one kind, or a reason why not. Embedded colour
profiles are ignored, as training decoders do. Nothing here is shared between calls: threads may call at once.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.picture.by_pillow import FORMATS, rgb_pixels
from pipeline.picture.exif import orientation, upright
from pipeline.picture.jpeg_copies import readings, without_metadata
from pipeline.picture.readers import read_alike
from pipeline.picture.resize import central_square, resizer_version
from pipeline.picture.scans import require_whole_scans
from pipeline.picture.segments import Frame, frame
from pipeline.picture.unusable import STATISTICS_SIZE, TOO_LARGE, UnusablePicture, require_size

_JPEG: Final = b"\xff\xd8"
# Extra bytes between the last block and the end mark: nothing of the picture is missing. ImageNet has such pictures
# (apache/mxnet issue 1522), and others train on them too.
_BYTES_AT_THE_END: Final = re.compile("extraneous bytes before marker 0xd9")
_UNNAMED_LAYOUT: Final = re.compile("Could not determine subsampling")  # of chroma: 4:1:0, 3 x 1, and rarer ones
_KEPT_COLOURS: Final = ("YCbCr", "RGB", "Gray")
_UNKNOWN: Final = "unknown"
_SUBSAMPLING: Final = "420"  # what cameras and ImageNet have, and decoders are fastest at


class Header(NamedTuple):
    """What a picture file says of itself."""

    width: int
    height: int
    colours: str  # YCbCr, RGB, Gray, CMYK, YCCK or unknown


class _Decoded(NamedTuple):
    jpeg: bytes  # the file, or a copy of it without metadata
    colours: str
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
    as it is, but for metadata that some reader would stumble over, and anything else is encoded at its own size; the
    square returned is then of STATISTICS_SIZE. UnusablePicture where pixels are missing, damaged or too many.
    """
    if not data:
        raise UnusablePicture("the file is empty")
    with _reasons():
        return _square_jpeg(data, size, quality) if size else _own_size_jpeg(data, quality)


def verified_header(jpeg: bytes) -> Header:
    """The header of a JPEG of a data set; UnusablePicture unless it decodes whole and without complaint."""
    with _reasons():
        header = _jpeg_header(jpeg)
        require_size(header.width, header.height)
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
    return jpeg, simplejpeg.decode_jpeg(jpeg, "RGB")


def _square(data: bytes, size: int) -> NDArray[np.uint8]:
    if data.startswith(_JPEG):
        # A large JPEG: let the DCT scale it down by 2 or more, to no less than twice the size.
        pixels = upright(_decode(data, least=2 * size).pixels, orientation(data))
    else:
        pixels = rgb_pixels(data)
    return central_square(pixels, size)


def _own_size_jpeg(data: bytes, quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    if data.startswith(_JPEG):
        decoded = _decode(data)
        if decoded.clean and decoded.colours in _KEPT_COLOURS and (kept := _kept(data, decoded.jpeg)):
            return kept, central_square(decoded.pixels, STATISTICS_SIZE)
        pixels = upright(decoded.pixels, orientation(data))
    else:
        pixels = rgb_pixels(data)
    jpeg = _encode(pixels, quality)
    return jpeg, central_square(simplejpeg.decode_jpeg(jpeg, "RGB"), STATISTICS_SIZE)


def _kept(data: bytes, decoded: bytes) -> bytes:
    """What to keep of a JPEG of which this reading was decoded: what every reader takes; nothing if it is turned."""
    if decoded is data and read_alike(data):
        return data
    return without_metadata(decoded) if orientation(data) == 1 else b""


def _decode(jpeg: bytes, least: int = 0) -> _Decoded:
    """The whole picture; scaled down by 2 or more where it is still at least `least` a side.

    Nearly every file is decoded once; what a strict decoder warns of may be metadata, which copies of the file lack.
    """
    complaint: ValueError | None = None
    for reading in readings(jpeg):
        try:
            return _decode_strictly(reading, least)
        except ValueError as error:
            complaint = error
    assert complaint
    raise complaint


def _decode_strictly(jpeg: bytes, least: int) -> _Decoded:
    try:
        header = _jpeg_header(jpeg)
    except ValueError as error:
        shape = frame(jpeg) if _UNNAMED_LAYOUT.search(str(error)) else None
        if shape is None:
            raise
        return _decode_unnamed_layout(jpeg, shape)
    require_size(header.width, header.height)
    # The integer DCT and smooth upsampling, which all of libjpeg-turbo's instruction sets compute to the same bits.
    # Strict: what libjpeg only warns of, such as an early end, is an error. CMYK is taken as Adobe writes it, inverted.
    factor = 2 if least else 1
    decode = partial(simplejpeg.decode_jpeg, jpeg, "RGB", min_height=least, min_width=least, min_factor=factor)
    try:
        return _Decoded(jpeg, header.colours, decode(), clean=True)
    except ValueError as error:
        if not _BYTES_AT_THE_END.search(str(error)):
            raise
        return _Decoded(jpeg, header.colours, decode(strict=False), clean=False)


def _decode_unnamed_layout(jpeg: bytes, shape: Frame) -> _Decoded:
    require_size(shape.width, shape.height)
    plain = without_metadata(jpeg)
    require_whole_scans(plain)  # which Pillow does not
    return _Decoded(plain, _UNKNOWN, rgb_pixels(plain), clean=False)


def _jpeg_header(jpeg: bytes) -> Header:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
        return Header(int(width), int(height), colours)
    except KeyError:  # a chroma layout, 4:4:1, that simplejpeg can decode but has no name for
        shape = frame(jpeg)
        assert shape
        return Header(shape.width, shape.height, _UNKNOWN)


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", _SUBSAMPLING)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message holds a memory address
        return f"not a picture in any of the formats {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return TOO_LARGE
    return " ".join(f"{type(error).__name__}: {error}".split())
