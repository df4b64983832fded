"""Bytes of any picture file -> an upright RGB JPEG, and the pixels a decoder will see in it.

ImageNet's .JPEG files hold CMYK, grey, a PNG and worse; here they become one kind, or a reason why not. Embedded colour
profiles are ignored, as training decoders do.
"""

import io
import warnings
from typing import Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

STATISTICS_SIZE: Final = 256  # pixels a side of the central crop that is measured where pictures keep their own size

# Not every format Pillow knows: some start other programs (EPS), and no data set has them.
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_PAPER: Final = "white"  # what shows through transparent pixels, as on a page
_RESAMPLER: Final = Image.Resampling.BICUBIC
_SUBSAMPLING: Final = "4:2:0"  # what cameras and ImageNet have, and decoders are fastest at


class UnusablePicture(Exception):
    """A file that cannot become a training picture; the message is the reason, the same on every run."""


def encoder() -> str:
    """The encoder's name and version: with another one the same picture gives other bytes."""
    turbo = features.version("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, " + (f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}")


def to_jpeg(data: bytes, size: int, quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The JPEG to store, and the central square of what it decodes to, (size, size, 3) RGB.

    The shorter side becomes `size` pixels and the central square is kept. With size 0 an upright RGB or grey JPEG stays
    as it is, and anything else is encoded at its own size; the square returned is then of STATISTICS_SIZE.
    UnusablePicture where the data does not decode whole, or where the JPEG made of it does not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on odd metadata; the pixels are what counts
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            jpeg = _square_jpeg(data, size, quality) if size else _own_size_jpeg(data, quality)
            return jpeg, _central_pixels(jpeg, size or STATISTICS_SIZE)
        except MemoryError:
            raise  # this machine's fault, not the picture's
        except Exception as error:  # Pillow raises a dozen unrelated types on damaged data
            raise UnusablePicture(_reason(data, error)) from error


def _square_jpeg(data: bytes, size: int, quality: int) -> bytes:
    picture = _open(data)
    picture.draft(None, (2 * size, 2 * size))  # a large JPEG: let the DCT scale it down to no less than twice the size
    return _encode(ImageOps.fit(_upright_rgb(picture), (size, size), _RESAMPLER), quality)


def _own_size_jpeg(data: bytes, quality: int) -> bytes:
    picture = _open(data)
    upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if picture.format == "JPEG" and picture.mode in ("RGB", "L") and upright:
        return data
    return _encode(_upright_rgb(picture), quality)


def _central_pixels(jpeg: bytes, size: int) -> NDArray[np.uint8]:
    picture = _open(jpeg).convert("RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), _RESAMPLER)
    return np.asarray(picture)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _upright_rgb(picture: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _PAPER), rgba).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).clip(0, 65535)  # Pillow itself would cut everything above 255 off
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _encode(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    # Pillow would copy the source's comment; nothing but the pixels shall decide the bytes.
    picture.save(stream, "JPEG", quality=quality, subsampling=_SUBSAMPLING, comment=b"")
    return stream.getvalue()


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its own message holds a memory address
        return f"not a picture in any of the formats {', '.join(_FORMATS)}"
    return f"{type(error).__name__}: {error}"
