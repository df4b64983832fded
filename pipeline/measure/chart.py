"""The measurements as a picture: speeds beside their bound, and how long the next batch is waited for."""

import io
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.measure.summary import Figures
from pipeline.measure.windows import Window

# Of Okabe and Ito's palette, which the colour-blind can tell apart.
_COLOURS: Final = ("#56B4E9", "#009E73", "#0072B2", "#D55E00")
_BOUND: Final = "#999999"


def bench_png(figures: Sequence[Figures], windows: Mapping[str, Sequence[Window]], title: str) -> bytes:
    """`bench_figure` as a PNG file."""
    stream = io.BytesIO()
    bench_figure(figures, windows, title).savefig(stream, format="png")
    return stream.getvalue()


def bench_figure(figures: Sequence[Figures], windows: Mapping[str, Sequence[Window]], title: str) -> Figure:
    """Bars of the speeds with the range of the rounds, the bound last; beneath, the times to the next batch."""
    figure = Figure(figsize=(9, 6.4), dpi=120, layout="constrained")
    speeds, waits = figure.subplots(2, 1, height_ratios=(3, 2))
    figure.suptitle(title, fontsize=8)
    _draw_speeds(speeds, figures)
    _draw_waits(waits, figures, windows)
    return figure


def _draw_speeds(axes: Axes, figures: Sequence[Figures]) -> None:
    places = range(len(figures))
    medians = [each.images_per_second.median for each in figures]
    below = [each.images_per_second.median - each.images_per_second.lowest for each in figures]
    above = [each.images_per_second.highest - each.images_per_second.median for each in figures]
    colours = [_colour(place, len(figures)) for place in places]
    axes.barh(places, medians, xerr=(below, above), color=colours, height=0.7, error_kw={"linewidth": 1, "capsize": 3})
    # Reading may be ten times as fast as the rest, whose differences are what matters.
    decoding = [each.images_per_second.highest for each in figures if each.share_of_bound] or medians
    most = 1.5 * max(*decoding, medians[-1])
    axes.set_xlim(0, most)
    for place, each in zip(places, figures, strict=True):
        share = f", {each.share_of_bound.median:.0%} of the bound" if each.share_of_bound else ""
        words, end = f"{each.images_per_second.median:,.0f}{share}", each.images_per_second.highest
        if end > 0.8 * most:
            axes.text(0.98 * most, place, f"{words} →", va="center", ha="right", color="white", fontsize=9)
        else:
            axes.text(end + 0.015 * most, place, words, va="center", fontsize=9)
    axes.set_yticks(places, [each.name for each in figures])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("images/s: median, and range of the rounds")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _draw_waits(axes: Axes, figures: Sequence[Figures], windows: Mapping[str, Sequence[Window]]) -> None:
    for place, each in enumerate(figures):
        waits = np.sort(np.concatenate([window.waits for window in windows[each.name]]))
        if len(waits):
            share = np.arange(1, len(waits) + 1) / len(waits)
            axes.step(1000 * np.maximum(waits, 1e-5), share, where="post", color=_colour(place, len(figures)))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("milliseconds to the next batch")
    axes.set_ylabel("share of batches;\ncolours as above")
    axes.grid(alpha=0.25)


def _colour(place: int, sides: int) -> str:
    return _BOUND if place == sides - 1 else _COLOURS[place % len(_COLOURS)]
