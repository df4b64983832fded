"""Sample pictures with their class's words, as one PNG: a look at what was sharded."""

import io
import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple

import simplejpeg
from PIL import Image, ImageDraw, ImageFont, ImageOps

MAX_TILES: Final = 40
_COLUMNS: Final = 8
_SIDE: Final = 144  # pixels of a picture
_GAP: Final = 12
_LINES: Final = 2
_LINE_HEIGHT: Final = 15
_FONT_SIZE: Final = 12
_BACKGROUND: Final = (250, 250, 248)
_TEXT_COLOUR: Final = (40, 40, 40)


class Tile(NamedTuple):
    """One picture of the sheet."""

    jpeg: bytes
    words: str


def contact_sheet(tiles: Sequence[Tile]) -> bytes:
    """A PNG of the tiles in rows of eight, each above its words; at least one tile."""
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = _SIDE + _GAP, _SIDE + _LINES * _LINE_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for index, tile in enumerate(tiles):
        x, y = _GAP + index % columns * width, _GAP + index // columns * height
        sheet.paste(_thumbnail(tile.jpeg), (x, y))
        for line, text in enumerate(_wrapped(tile.words, font)):
            draw.text((x, y + _SIDE + 2 + line * _LINE_HEIGHT), text, _TEXT_COLOUR, font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _thumbnail(jpeg: bytes) -> Image.Image:
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=_SIDE, min_width=_SIDE)
    return ImageOps.fit(Image.fromarray(pixels), (_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _wrapped(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The words in lines that fit a tile, an ellipsis where they go on."""
    widest = max(len(words) for words in (words, "x"))
    for letters in range(widest, 0, -1):
        lines = textwrap.wrap(words, letters, max_lines=_LINES, placeholder="…") or [""]
        if all(font.getlength(line) <= _SIDE for line in lines):
            return lines
    return [""]
