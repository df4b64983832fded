"""Any picture file, by Pillow -> upright RGB pixels of 8 bits; its metadata do not decide whether it can be read."""

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from pipeline.picture.exif import upright
from pipeline.picture.metadata import without_metadata
from pipeline.picture.unusable import UnusablePicture, require_size

# Not every format Pillow knows: some start other programs (EPS), and no data set has them.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_BACKGROUND: Final = "white"  # what shows through transparent pixels, as on a page
_WHITES: Final = (1, 255, 65535)  # in use, where values have more bits than they need


def rgb_pixels(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a picture file, (height, width, 3) RGB; UnusablePicture, or whatever Pillow raises on damage."""
    try:
        return _rgb_pixels(data)
    except (MemoryError, UnusablePicture):
        raise
    except Exception:  # Pillow raises a dozen unrelated types, on odd metadata as on damage
        plain = without_metadata(data)
        if plain == data:
            raise
        return _rgb_pixels(plain)


def opens(data: bytes) -> bool:
    """Whether Pillow takes the file for a picture; only its header is looked at."""
    try:
        Image.open(io.BytesIO(data), formats=FORMATS)
    except Warning:  # where they are errors: a remark on metadata
        return True
    except Exception:  # as below
        return False
    return True


def _rgb_pixels(data: bytes) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    require_size(*picture.size)
    return upright_rgb(picture)


def upright_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a picture of Pillow's, (height, width, 3) RGB; UnusablePicture where its values cannot be shown."""
    picture.load()
    return upright(np.asarray(_rgb(picture)), _orientation(picture))


def _orientation(picture: Image.Image) -> int:
    try:
        value: int = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as above; a picture whose metadata cannot be read is upright
        return 1
    return value if value in range(1, 9) else 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _eight_bits(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        page = Image.new("RGB", rgba.size, _BACKGROUND)
        page.paste(rgba, mask=rgba)
        return page
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits; UnusablePicture where values lie outside black and white."""
    values = np.asarray(picture).astype(np.float32)
    least, most = values.min(), values.max()
    white = _white(picture, most)
    if not 0 <= least <= most <= white:  # which holds of no NaN
        raise UnusablePicture(f"values from {least:g} to {most:g}, expected 0 to {white:g}")
    if isinstance(picture, TiffImageFile) and picture.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        values = white - values  # white is zero
    return Image.fromarray((values * np.float32(255 / white) + np.float32(0.5)).astype(np.uint8))


def _white(picture: Image.Image, most: float) -> int:
    """The value that is white: by the bits of each value, but where these are 32 by the largest."""
    in_tiff = isinstance(picture, TiffImageFile)
    if picture.mode.startswith("I;16"):
        return (1 << (picture.tag_v2[BITSPERSAMPLE][0] if in_tiff else 16)) - 1  # 12 or 16
    if picture.mode == "I" and not in_tiff:  # Pillow has scaled the values
        return 65535
    return next((white for white in _WHITES if most <= white), _WHITES[-1])
