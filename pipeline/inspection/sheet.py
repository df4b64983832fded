"""Pictures at their own size with words beneath, as one PNG: every pixel of it is one that was given."""

import io
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP: Final = 10  # pixels
_LEAST_WIDTH: Final = 112  # of a column, for its words
_SHAPE: Final = 1.5  # width of a sheet over its height, about
_SIZE: Final = 12
_TITLE_SIZE: Final = 15
_LINE: Final = 15
_BACKGROUND: Final = (250, 250, 248)
_DARK: Final = (40, 40, 40)
_GREY: Final = (110, 110, 110)
_FRAME: Final = (215, 215, 212)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Captioned(NamedTuple):
    """A picture, and the lines beneath it: the first dark, the others grey."""

    picture: NDArray[np.uint8]  # (side, side, 3) RGB
    lines: tuple[str, ...]


def sheet_png(title: Sequence[str], tiles: Sequence[Captioned]) -> bytes:
    """A PNG of at least one tile, all of one size, below a title."""
    stream = io.BytesIO()
    draw_sheet(title, tiles).save(stream, "PNG")
    return stream.getvalue()


def draw_sheet(title: Sequence[str], tiles: Sequence[Captioned]) -> Image.Image:
    """The same as a picture."""
    side, lines = len(tiles[0].picture), max(len(tile.lines) for tile in tiles)
    columns = columns_of(len(tiles), side, lines)
    width, height = _cell(side, lines)
    top, rows = _top(title), -(-len(tiles) // columns)
    font, large = ImageFont.load_default(_SIZE), ImageFont.load_default(_TITLE_SIZE)
    words = max((large.getlength(line) for line in title), default=0)
    size = (max(GAP + columns * width, math.ceil(words) + 2 * GAP), top + rows * height)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        colour = _GREY if number else _DARK
        draw.text((GAP, GAP + number * (_TITLE_SIZE + 5)), line, colour, large if not number else font)
    for number, tile in enumerate(tiles):
        x, y = tile_place(number, len(tiles), side, lines, title)
        draw.rectangle((x - 1, y - 1, x + side, y + side), outline=_FRAME)  # around it, where a picture is white
        sheet.paste(Image.fromarray(tile.picture), (x, y))
        for below, line in enumerate(tile.lines):
            at = (x, y + side + 3 + below * _LINE)
            draw.text(at, fitting(line, width - GAP, font), _GREY if below else _DARK, font)
    return sheet


def tile_place(number: int, tiles: int, side: int, lines: int, title: Sequence[str]) -> tuple[int, int]:
    """Left and top of a picture on the sheet, pixels."""
    row, column = divmod(number, columns_of(tiles, side, lines))
    width, height = _cell(side, lines)
    return GAP + column * width, _top(title) + row * height


def columns_of(tiles: int, side: int, lines: int) -> int:
    """How many tiles stand beside each other: few places of the last row are empty."""
    width, height = _cell(side, lines)
    ideal = math.sqrt(tiles * _SHAPE * height / width)
    possible = range(max(1, math.floor(0.75 * ideal)), min(tiles, math.ceil(1.3 * ideal)) + 1)
    return min(possible, key=lambda columns: (-tiles % columns, abs(columns - ideal)))


def fitting(text: str, width: int, font: Font) -> str:
    """The text, or as much of its start as is no wider, and an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _cell(side: int, lines: int) -> tuple[int, int]:
    return max(side, _LEAST_WIDTH) + GAP, side + lines * _LINE + GAP


def _top(title: Sequence[str]) -> int:
    return GAP + (len(title) * (_TITLE_SIZE + 5) + GAP // 2 if title else 0)
