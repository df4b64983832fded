"""Pictures with their five likeliest classes, on one PNG: the left part of the paper's figure 4."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.manifest import PictureClass
from service.network.trained import LIKELIEST, Likely

BAR: Final = "#A9C4E6"
TRUE_BAR: Final = "#F5A3B7"  # pink, as the paper's
FRAME: Final = "#555555"
WIDTH: Final = 1.75  # of a panel, inches
TITLE: Final = 0.26  # heights of a panel's parts, inches
BARS: Final = 1.0
LETTERS: Final = 27  # that fit a panel


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """A picture, and what the network makes of it."""

    square: NDArray[np.uint8]  # (side, side, 3), as the network saw it
    name: str  # of the file: written where the class is not known
    true: PictureClass | None
    likeliest: tuple[Likely, ...]


def panels_png(panels: Sequence[Panel]) -> bytes:
    """`panels_figure` as a PNG file."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # such a letter is drawn as a box
        panels_figure(panels).savefig(stream, format="png")
    return stream.getvalue()


def panels_figure(panels: Sequence[Panel]) -> Figure:
    """Rows of panels, at least one: the picture, its class, and bars of the likeliest classes, the true one's pink."""
    columns = min(len(panels), 4 if len(panels) <= 12 else 8)
    rows = -(-len(panels) // columns)
    height = WIDTH + TITLE + BARS
    figure = Figure(figsize=(columns * WIDTH * 1.06 + 0.1, rows * height * 1.04 + 0.1), dpi=150)
    grid = figure.add_gridspec(rows, columns, left=0.01, right=0.99, top=0.99, bottom=0.01, wspace=0.06, hspace=0.05)
    for place, panel in enumerate(panels):
        ratios = (WIDTH, TITLE, BARS)
        picture, title, bars = grid[place // columns, place % columns].subgridspec(3, 1, height_ratios=ratios, hspace=0)
        _draw_picture(figure.add_subplot(picture), panel.square)
        _draw_title(figure.add_subplot(title), panel)
        _draw_bars(figure.add_subplot(bars), panel)
    return figure


def _draw_picture(axes: Axes, square: NDArray[np.uint8]) -> None:
    axes.imshow(square, aspect="auto", interpolation="antialiased")
    _frame(axes)


def _draw_title(axes: Axes, panel: Panel) -> None:
    axes.set_axis_off()
    text = short(panel.true) if panel.true else _cut(panel.name, at_start=True)
    look = {"fontsize": 8, "color": "black"} if panel.true else {"fontsize": 6.5, "color": "grey"}
    axes.text(0.5, 0.45, text, ha="center", va="center", parse_math=False, **look)


def _draw_bars(axes: Axes, panel: Panel) -> None:
    true = panel.true.index if panel.true else None
    places = range(len(panel.likeliest))
    colours = [TRUE_BAR if each.index == true else BAR for each in panel.likeliest]
    axes.barh(places, [each.probability for each in panel.likeliest], height=0.86, color=colours)
    for place, each in zip(places, panel.likeliest, strict=True):
        axes.text(0.03, place, short(each), fontsize=7, va="center", clip_on=True, parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(LIKELIEST - 0.4, -0.6)  # the likeliest at the top
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color=FRAME, linewidth=0.6)


def short(each: PictureClass | Likely) -> str:
    """What people call a class, in one of its words, as long as a panel is wide."""
    return _cut(each.words.partition(",")[0] or each.id)


def _cut(text: str, at_start: bool = False) -> str:
    if len(text) <= LETTERS:
        return text
    return "…" + text[1 - LETTERS :] if at_start else text[: LETTERS - 1] + "…"
