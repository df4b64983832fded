"""What stored pictures lose by the way they are decoded, by chroma and by JPEG quality, against the bytes they take.

    pip install 'scikit-image>=0.24'
    python benchmarks/quality.py FOLDER [--size 256] [--qualities 85 90 92 95]

A JPEG below FOLDER becomes a square as in pipeline/picture/jpeg.py, is encoded, decoded, and compared with the whole
picture decoded (integer DCT, smooth upsampling) and its central square resized by Pillow's bicubic in floats, never
rounded and never compressed. PSNR is over the three channels together, SSIM scikit-image's, the mean of the channels.
`none` in place of a quality is the square before JPEG. The ways of decoding differ for large pictures alone, so those
have a table of their own.
"""

import importlib
import io
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import tyro
from numpy.typing import NDArray
from PIL import Image

from pipeline.picture.jpeg import encoder_version
from pipeline.picture.resize import central_square

# The DCT scales by 2 or more, down to no less than so many times the size; None: never.
DECODE = {"whole": None, "DCT to >= 2x": 2, "DCT to >= 1x": 1}
CHROMA = {"4:2:0": "420", "4:4:4": "444"}

# By name: it is for this script alone, and no dependency of the project's.
skimage: Any = importlib.import_module("skimage")
metrics: Any = importlib.import_module("skimage.metrics")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    folder: tyro.conf.Positional[Path]
    """Pictures, in folders of any depth."""
    size: int = 256
    """Pixels a side."""
    qualities: tuple[int, ...] = (85, 88, 90, 92, 95)
    """JPEG qualities."""


class Way(NamedTuple):
    """How a picture is stored."""

    decode: str
    chroma: str
    quality: int | None


class Score(NamedTuple):
    """What became of a picture."""

    bytes: int
    psnr: float  # dB
    ssim: float


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(
        f"Python {platform.python_version()}, {platform.machine()}; {encoder_version()}; "
        f"scikit-image {skimage.__version__}"
    )
    pictures = [data for data in files(options.folder) if is_rgb(data)]
    large = [data for data in pictures if shorter_side(data) >= 2 * options.size]
    print_table(f"all {len(pictures)} pictures", pictures, options, ["DCT to >= 2x"])
    if large:
        print_table(f"the {len(large)} whose shorter side is {2 * options.size} or more", large, options, list(DECODE))


def files(folder: Path) -> Iterator[bytes]:
    """The files below a folder."""
    return (path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def is_rgb(data: bytes) -> bool:
    """Whether it is a JPEG in colours, which all ways of decoding take."""
    return data.startswith(b"\xff\xd8\xff") and simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"


def shorter_side(data: bytes) -> int:
    """Pixels of the shorter side."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return min(int(height), int(width))


def print_table(title: str, pictures: list[bytes], options: Options, decode: list[str]) -> None:
    """A row for each way of storing them."""
    print(f"\n{title}\n{'decode':14} {'chroma':6} {'quality':>7} {'bytes':>8}", end=" ")
    print(f"{'PSNR median':>12} {'worst':>6} {'SSIM median':>12} {'worst':>7}", flush=True)
    references = [reference(data, options.size) for data in pictures]
    for way in ways(decode, options.qualities):
        scores = [score(data, truth, way, options.size) for data, truth in zip(pictures, references, strict=True)]
        psnr, ssim = [each.psnr for each in scores], [each.ssim for each in scores]
        print(f"{way.decode:14} {way.chroma:6} {way.quality or 'none':>7}", end=" ")
        print(f"{statistics.mean(each.bytes for each in scores):8,.0f}", end=" ")
        print(f"{statistics.median(psnr):12.2f} {min(psnr):6.2f} ", end="")
        print(f"{statistics.median(ssim):12.4f} {min(ssim):7.4f}", flush=True)


def ways(decode: list[str], qualities: tuple[int, ...]) -> Iterator[Way]:
    """The rows of a table, in order."""
    for method in decode:
        yield Way(method, "", None)
        yield from (Way(method, chroma, quality) for chroma in CHROMA for quality in qualities)


def reference(data: bytes, size: int) -> NDArray[np.float32]:
    """The central square in floats."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    channels = [channel.convert("F").resize((size, size), Image.Resampling.BICUBIC) for channel in square.split()]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def score(data: bytes, truth: NDArray[np.float32], way: Way, size: int) -> Score:
    """Store a picture and compare what a decoder sees of it."""
    stored = central_square(decoded(data, size, DECODE[way.decode]), size)
    jpeg = b""
    if way.quality is not None:
        jpeg = simplejpeg.encode_jpeg(stored, way.quality, "RGB", CHROMA[way.chroma])
        stored = simplejpeg.decode_jpeg(jpeg, "RGB")
    seen = stored.astype(np.float32)
    psnr = metrics.peak_signal_noise_ratio(truth, seen, data_range=255)
    ssim = metrics.structural_similarity(truth, seen, data_range=255, channel_axis=2)
    return Score(len(jpeg), float(psnr), float(ssim))


def decoded(data: bytes, size: int, least: int | None) -> NDArray[np.uint8]:
    """The pixels of the whole picture, scaled by the DCT where that is allowed."""
    if least is None:
        return simplejpeg.decode_jpeg(data, "RGB")
    return simplejpeg.decode_jpeg(data, "RGB", min_height=least * size, min_width=least * size, min_factor=2)


if __name__ == "__main__":
    main()
