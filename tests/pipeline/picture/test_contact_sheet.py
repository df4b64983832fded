"""Sheets of pictures: what lies where."""

import io

import numpy as np
from PIL import Image

from pictures import encoded, photo
from pipeline.picture.contact_sheet import GAP, SIDE, Tile, contact_sheet, neighbour_sheet

PICTURE = encoded(photo(1, SIDE, SIDE), "PNG")
PIXELS = np.asarray(Image.open(io.BytesIO(PICTURE)))  # of a tile's size: what is pasted is what is given


def opened(sheet: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sheet)))


def test_a_contact_sheet_has_eight_to_a_row() -> None:
    sheet = opened(contact_sheet([Tile(PIXELS, "words")] * 10))
    assert sheet.shape == (2 * 186 + 12, 8 * 156 + 12, 3)
    places = [(12 + 186 * (index // 8), 12 + 156 * (index % 8)) for index in range(10)]
    assert all(np.array_equal(sheet[y : y + SIDE, x : x + SIDE], PIXELS) for y, x in places)
    assert len(np.unique(sheet[198:384, 12 + 2 * 156 :])) <= 3  # nothing beyond the tenth


def test_a_jpeg_is_drawn_as_its_middle_square() -> None:
    wide = encoded(photo(2, 2 * SIDE, SIDE), quality=100, subsampling=0)
    tile = opened(contact_sheet([Tile(wide, "words")]))[12 : 12 + SIDE, 12 : 12 + SIDE].astype(int)
    expected = np.asarray(Image.open(io.BytesIO(wide)))[:, SIDE // 2 : SIDE // 2 + SIDE].astype(int)
    assert np.abs(tile - expected).max() <= 2  # decoders round differently


def test_neighbours_stand_apart_from_their_query_and_rows_may_be_short() -> None:
    rows = [[Tile(PIXELS, "query")] + [Tile(PIXELS, "words", "note")] * count for count in (3, 1)]
    sheet = opened(neighbour_sheet(rows))
    assert sheet.shape == (2 * 201 + 12, 4 * 156 + 12 + 2 * GAP, 3)
    for row, tiles in enumerate(rows):
        for column in range(len(tiles)):
            y, x = 12 + 201 * row, 12 + 156 * column + (2 * GAP if column else 0)
            assert np.array_equal(sheet[y : y + SIDE, x : x + SIDE], PIXELS)
