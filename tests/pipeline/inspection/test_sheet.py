"""A sheet shows every pixel of its pictures, where it says."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.inspection.sheet import Captioned, columns_of, sheet_png, tile_place


@pytest.mark.parametrize(("tiles", "side"), [(1, 8), (5, 67), (24, 40), (7, 224)])
def test_pictures_are_on_it_pixel_by_pixel(tiles: int, side: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (tiles, side, side, 3), np.uint8)
    title = ("A title that is longer than the pictures are wide together, as of a single small one", "more")
    given = [
        Captioned(picture, ("a class with a name that is far too long for a tile" * 3, "2")) for picture in pictures
    ]
    with Image.open(io.BytesIO(sheet_png(title, given))) as png:
        sheet = np.asarray(png)
    places = [tile_place(number, tiles, side, 2, title) for number in range(tiles)]
    for (x, y), picture in zip(places, pictures, strict=True):
        np.testing.assert_array_equal(sheet[y : y + side, x : x + side], picture)
    assert len(set(places)) == tiles
    below = places[0][1] + side
    assert len(np.unique(sheet[below + 3 : below + 15, :100])) > 2  # there are letters


def test_few_places_are_empty() -> None:
    for tiles, most in ((1, 0), (2, 0), (25, 0), (128, 0), (24, 0), (13, 3)):
        assert -tiles % columns_of(tiles, 224, 3) <= most
    for tiles in range(1, 200):
        assert 1 <= columns_of(tiles, 80, 2) <= tiles
