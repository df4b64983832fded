"""Pictures with words beneath them, as one PNG: what was sharded, or pictures beside those that are alike."""

import io
import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

MAX_TILES: Final = 40
SIDE: Final = 144  # pixels of a picture
GAP: Final = 12
_COLUMNS: Final = 8
_LINES: Final = 2
_LINE_HEIGHT: Final = 15
_FONT_SIZE: Final = 12
_BACKGROUND: Final = (250, 250, 248)
_TEXT_COLOUR: Final = (40, 40, 40)
_NOTE_COLOUR: Final = (110, 110, 110)
_RULE_COLOUR: Final = (170, 170, 170)


class Tile(NamedTuple):
    """One picture of the sheet."""

    jpeg: bytes | NDArray[np.uint8]  # or pixels, (height, width, 3) RGB
    words: str
    note: str = ""  # a line beneath the words, in grey


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(tiles: Sequence[Tile]) -> bytes:
    """A PNG of the tiles in rows of eight, each above its words; at least one tile."""
    columns = min(_COLUMNS, len(tiles))
    return _sheet([tiles[start : start + columns] for start in range(0, len(tiles), columns)], _LINES)


def neighbour_sheet(rows: Sequence[Sequence[Tile]]) -> bytes:
    """A PNG with the tiles of each row side by side, the first ones apart, as in Krizhevsky et al. 2012, figure 4.

    The first of a row is a picture, the others are those nearest to it; rows may differ in length.
    """
    return _sheet(rows, _LINES + 1, apart=True)


def tile_place(row: int, column: int, lines: int, apart: bool = False) -> tuple[int, int]:
    """Left and top of a picture, pixels, on a sheet with so many lines of text beneath each."""
    width, height = SIDE + GAP, SIDE + lines * _LINE_HEIGHT + GAP
    return GAP + column * width + (2 * GAP if apart and column else 0), GAP + row * height


def _sheet(rows: Sequence[Sequence[Tile]], lines: int, apart: bool = False) -> bytes:
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", tile_place(len(rows), columns, lines, apart), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for at_row, row in enumerate(rows):
        for column, tile in enumerate(row):
            place = tile_place(at_row, column, lines, apart)
            sheet.paste(_thumbnail(tile.jpeg), place)
            _write(draw, font, tile, place)
    if apart:
        x = 2 * GAP + SIDE + GAP // 2
        draw.line((x, GAP, x, sheet.height - GAP), _RULE_COLOUR)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _write(draw: ImageDraw.ImageDraw, font: Font, tile: Tile, place: tuple[int, int]) -> None:
    x, y = place
    lines = [(text, _TEXT_COLOUR) for text in _wrapped(tile.words, font)]
    lines += [(text, _NOTE_COLOUR) for text in _wrapped(tile.note, font)[:1] if text]
    for line, (text, colour) in enumerate(lines):
        draw.text((x, y + SIDE + 2 + line * _LINE_HEIGHT), text, colour, font)


def _thumbnail(picture: bytes | NDArray[np.uint8]) -> Image.Image:
    if isinstance(picture, bytes):
        picture = simplejpeg.decode_jpeg(picture, "RGB", min_height=SIDE, min_width=SIDE)
    return ImageOps.fit(Image.fromarray(picture), (SIDE, SIDE), Image.Resampling.BICUBIC)


def _wrapped(words: str, font: Font) -> list[str]:
    """The words in lines that fit a tile, an ellipsis where they go on."""
    widest = max(len(words) for words in (words, "x"))
    for letters in range(widest, 0, -1):
        lines = textwrap.wrap(words, letters, max_lines=_LINES, placeholder="…") or [""]
        if all(font.getlength(line) <= SIDE for line in lines):
            return lines
    return [""]
