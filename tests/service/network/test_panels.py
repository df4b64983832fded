"""Figure 4's panels: what is drawn of a picture, its class, and its likeliest classes."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from pictures import photo
from pipeline.manifest import PictureClass
from service.network.panels import BAR, LETTERS, TRUE_BAR, Panel, panels_figure, panels_png
from service.network.trained import Likely

WORDS = ("tench, Tinca tinca", "a word of $x_1$ and no formula", "very " * 9 + "long, short", "", "猫")
SQUARE = np.asarray(photo(1, 64, 64))


def panel(true: int | None, classes: int = 5, name: str = "a.jpg") -> Panel:
    likeliest = tuple(Likely(k, f"n{k}", WORDS[k], 0.5 / 2**k) for k in range(classes))
    words = PictureClass(index=true, id=f"n{true}", words="tench, Tinca tinca") if true is not None else None
    return Panel(square=SQUARE, name=name, true=words, likeliest=likeliest)


def parts(*panels: Panel) -> list[tuple[Axes, Axes, Axes]]:
    """Each panel's picture, title and bars."""
    axes = panels_figure(panels).axes
    return list(zip(axes[::3], axes[1::3], axes[2::3], strict=True))


@pytest.mark.parametrize("true", [0, 3, 9, None])
def test_the_true_classs_bar_has_another_colour(true: int | None) -> None:
    ((_, _, bars),) = parts(panel(true))
    colours = [to_hex(bar.get_facecolor()).upper() for bar in bars.patches]
    assert colours == [TRUE_BAR if k == true else BAR for k in range(5)]
    assert [bar.get_width() for bar in bars.patches] == [0.5 / 2**k for k in range(5)]  # type: ignore[attr-defined]
    heights = [bar.get_y() for bar in bars.patches]  # type: ignore[attr-defined]
    assert heights == sorted(heights) and bars.yaxis_inverted()  # the likeliest at the top


def test_the_title_is_the_class_where_it_is_known_else_the_file() -> None:
    (known, unknown, long) = parts(panel(7), panel(None), panel(None, name="x" * 80 + ".jpg"))
    assert [each[1].texts[0].get_text() for each in (known, unknown)] == ["tench", "a.jpg"]
    assert long[1].texts[0].get_text() == "…" + "x" * (LETTERS - 5) + ".jpg"


def test_words_are_as_long_as_a_panel_is_wide_and_no_formulas() -> None:
    ((picture, _, bars),) = parts(panel(None))
    words = [text.get_text() for text in bars.texts]
    assert words == ["tench", "a word of $x_1$ and no for…", "very very very very very v…", "n3", "猫"]
    assert not any(text.get_parse_math() for text in bars.texts)
    assert np.array_equal(picture.images[0].get_array(), SQUARE)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (8, 4, 2), (13, 8, 2), (40, 8, 5)])
def test_panels_stand_in_rows(count: int, columns: int, rows: int) -> None:
    drawn = parts(*[panel(None)] * count)
    corners = [each[0].get_position() for each in drawn]
    assert len({round(each.x0, 6) for each in corners}) == columns
    assert len({round(each.y0, 6) for each in corners}) == rows


def test_the_picture_is_square_and_in_the_png() -> None:
    png = np.asarray(Image.open(io.BytesIO(panels_png([panel(0, classes=2), panel(None, classes=5)]))).convert("RGB"))
    figure = panels_figure([panel(0), panel(0)])
    box = figure.axes[0].get_window_extent()
    assert abs(box.width / box.height - 1) < 0.05
    top, left = png.shape[0] - round(box.y1), round(box.x0)
    seen = png[top : top + round(box.height), left : left + round(box.width)]
    seen = np.asarray(Image.fromarray(seen).resize((64, 64), Image.Resampling.BOX)).astype(int)
    assert np.abs(seen - SQUARE)[4:-4, 4:-4].mean() < 3  # of 255: it was scaled up and down again
