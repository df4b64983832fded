"""JPEGs of chroma layouts that TurboJPEG has no name for: Pillow's pixels, and all the damage that libjpeg sees."""

import io
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from jpeg_files import (
    EOI,
    PHOTO,
    SOI,
    UNNAMED_LAYOUTS,
    apart,
    interleaved,
    overwritten,
    put_before,
    scan_end,
    scan_start,
)
from pictures import encoded
from pipeline.picture.jpeg import to_jpeg, to_square, verified_header
from pipeline.picture.resize import central_square
from pipeline.picture.scans import DamagedScan, require_whole_scans
from pipeline.picture.unusable import UnusablePicture

WAYS = {
    "interleaved": interleaved,
    "restarts": lambda layout: interleaved(layout, restart_interval=3),
    "apart": apart,
    "progressive": lambda layout: apart(layout, progressive=True),
    "optimised": lambda layout: apart(layout, optimize=True),
}
SMALL = PHOTO.resize((64, 48))
NAMED = {
    "4:2:0": encoded(SMALL, quality=85),
    "optimised": encoded(SMALL, quality=85, optimize=True),
    "4:4:4": encoded(SMALL, quality=85, subsampling=0),
    "restarts": encoded(SMALL, quality=85, restart_marker_blocks=2),
    "progressive": encoded(SMALL, quality=85, progressive=True),
    "progressive restarts": encoded(SMALL, quality=85, progressive=True, restart_marker_blocks=2),
    "grey": encoded(SMALL.convert("L"), quality=85),
    "CMYK": encoded(SMALL.convert("CMYK"), quality=85),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", UNNAMED_LAYOUTS)
def test_the_pixels_are_pillows(layout: str, way: str) -> None:
    jpeg = WAYS[way](UNNAMED_LAYOUTS[layout])
    with pytest.raises(ValueError, match="Could not determine subsampling"):
        simplejpeg.decode_jpeg(jpeg)
    with Image.open(io.BytesIO(jpeg)) as by_pillow:
        pixels = np.asarray(by_pillow)
    np.testing.assert_array_equal(to_square(jpeg, 20), central_square(pixels, 20))
    stored, _ = to_jpeg(jpeg, 0, 95)
    assert verified_header(stored) == (*pixels.shape[1::-1], "YCbCr")
    assert np.abs(simplejpeg.decode_jpeg(stored).astype(int) - pixels).mean() < 20  # 4:2:0 of random colours


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", UNNAMED_LAYOUTS)
def test_an_end_that_comes_too_soon_is_seen(layout: str, way: str) -> None:
    jpeg = WAYS[way](UNNAMED_LAYOUTS[layout])
    start, end = scan_start(jpeg), scan_end(jpeg)
    for share in (0.1, 0.5, 0.9):
        middle = round(start + share * (end - start))
        for damaged in (
            jpeg[:middle],
            jpeg[:middle] + EOI,
            jpeg[:end] + EOI if way == "apart" else jpeg[:middle] + EOI,
            jpeg[:middle] + jpeg[end:],
            jpeg[:middle] + b"\xff\xd5" + jpeg[middle:],
        ):
            with pytest.raises(UnusablePicture, match="DamagedScan: "):
                to_jpeg(damaged, 0, 95)


@pytest.mark.parametrize("kind", NAMED)
def test_what_libjpeg_warns_of_is_damage(kind: str) -> None:
    """On layouts that it decodes; what it ends at as an error, Pillow does too."""
    whole, random = NAMED[kind], np.random.default_rng(0)
    require_whole_scans(whole)
    start, seen = scan_start(whole), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(random.integers(start, len(whole) - 2))] ^= 1 << int(random.integers(0, 8))
        if only_warned_of(damaged):
            seen += 1
            with pytest.raises(DamagedScan):
                require_whole_scans(bytes(damaged))
    assert seen


def only_warned_of(jpeg: bytearray) -> bool:
    try:
        simplejpeg.decode_jpeg(jpeg, strict=False)
    except ValueError:
        return False
    try:
        simplejpeg.decode_jpeg(jpeg)
    except ValueError:
        return True
    return False


def test_an_odd_header_and_an_odd_layout() -> None:
    layout = UNNAMED_LAYOUTS["4:1:0"]
    odd = put_before(0xC4, b"\0\0\xff\x01", interleaved(layout))
    np.testing.assert_array_equal(to_square(odd, 20), to_square(interleaved(layout), 20))
    after_soi = SOI + b"\0" + interleaved(layout)[2:]
    np.testing.assert_array_equal(to_square(after_soi, 20), to_square(odd, 20))


def test_arithmetic_codes_in_an_odd_layout_are_left_out_with_a_reason_of_their_own() -> None:
    arithmetic = re.sub(rb"\xff\xc0", b"\xff\xc9", interleaved(UNNAMED_LAYOUTS["4:1:0"]), count=1)
    with pytest.raises(UnusablePicture, match="arithmetic codes in an unusual chroma layout"):
        to_jpeg(arithmetic, 0, 95)


def test_a_layout_that_is_enormous_costs_nothing() -> None:
    jpeg = interleaved(UNNAMED_LAYOUTS["4:1:0"])
    frame = jpeg.index(b"\xff\xc0")
    with pytest.raises(UnusablePicture, match="more than 89,478,485 pixels"):
        to_jpeg(overwritten(frame + 5, b"\xff\xff\xff\xff", jpeg), 0, 95)
