"""The central square of a picture at another size, in integer arithmetic: the same bits on every machine.

Pillow's antialiased bicubic takes longer than decoding the picture. cykooz-resizer's is the same filter in 16-bit fixed
point, written for each instruction set to give equal bits, and five times as fast. OpenCV's area and linear filters are
in floats or not antialiased.
"""

from importlib import metadata
from typing import Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

try:
    import cykooz_resizer as cykooz
except ImportError:  # it has wheels for x86-64; elsewhere it must be built, and Pillow makes pictures as good
    cykooz = None

_PACKAGE: Final = "cykooz-resizer"


def resizer_version() -> str:
    """The name and version of what resizes: another one gives other bits."""
    return f"{_PACKAGE} {metadata.version(_PACKAGE)}" if cykooz else f"Pillow's resize {PIL.__version__}"


def central_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square of a (height, width, 3) picture as (size, size, 3)."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    return _resize(square, size) if cykooz else _resize_by_pillow(square, size)


def _resize(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    side = len(square)
    assert cykooz is not None
    # A resizer of its own for each call: it keeps its working memory, and callers may be threads.
    source = cykooz.ImageData(side, side, cykooz.PixelType.U8x3, square.tobytes())
    target = cykooz.ImageData(size, size, cykooz.PixelType.U8x3)
    bicubic = cykooz.ResizeAlg.convolution(cykooz.FilterType.catmull_rom)
    cykooz.Resizer().resize(source, target, cykooz.ResizeOptions(bicubic))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)


def _resize_by_pillow(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    picture = Image.fromarray(np.ascontiguousarray(square))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
