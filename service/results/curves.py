"""Losses, errors and learning rates of several runs over epochs, on one PNG."""

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from service.results.history import RunHistory, mean_points
from service.run.events import describe_change

POINTS: Final = 400  # of a loss curve: as many as the picture can tell apart
# Okabe and Ito's palette, which the colour-blind can tell apart; without its yellow, too pale for a line on white.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES: Final = ("-", "--", "-.", ":")  # the palette again, in another style, for every seven runs
MARKS: Final = {
    "learning-rate": "v",
    "checkpoint": "s",
    "pause": "|",
    "resume": "|",
    "stop": "X",
    "precision": "D",
    "fork": "*",
    "skip": "x",
    "rollback": "<",
}


def curves_png(histories: Sequence[RunHistory]) -> bytes:
    """`curves_figure` as a PNG file."""
    stream = io.BytesIO()
    curves_figure(histories).savefig(stream, format="png")
    return stream.getvalue()


def curves_figure(histories: Sequence[RunHistory]) -> Figure:
    """Three plots, one above the other: training loss, validation errors, learning rate with the events marked."""
    figure = Figure(figsize=(9, 10), dpi=120, layout="constrained")
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    for number, history in enumerate(histories):
        line: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
        }
        _draw_loss(loss, history, line)
        _draw_errors(error, history, line)
        _draw_rates(rate, history, line)
    _finish(loss, error, rate, validated=any(history.validations for history in histories))
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(histories), 3))
    return figure


def _draw_loss(axes: Axes, history: RunHistory, line: dict[str, Any]) -> None:
    axes.plot(*mean_points(history.epochs, history.losses, POINTS), label=history.name, linewidth=1.3, **line)


def _draw_errors(axes: Axes, history: RunHistory, line: dict[str, Any]) -> None:
    epochs = [each.epoch for each in history.validations]
    for errors, width, alpha in (
        ([each.top1 for each in history.validations], 1.6, 1.0),
        ([each.top5 for each in history.validations], 1.0, 0.7),
    ):
        axes.plot(epochs, errors, marker=".", linewidth=width, alpha=alpha, **line)


def _draw_rates(axes: Axes, history: RunHistory, line: dict[str, Any]) -> None:
    axes.step(history.epochs, history.learning_rates, where="post", linewidth=1.3, **line)
    for event in history.events:
        if event["kind"] != "learning-rate" or event.get("manual"):  # what a schedule does the line shows by itself
            step = min(np.searchsorted(history.epochs, event["epoch"], side="right"), len(history.epochs) - 1)
            at = history.learning_rates[step]  # the rate of the first step after the event
            mark = MARKS.get(event["kind"], "o")
            axes.plot(event["epoch"], at, mark, color=line["color"], markersize=7, clip_on=False)
            words = " ".join(word for word in (event["kind"], describe_change(event)) if word)
            axes.annotate(words, (event["epoch"], at), (0, 8), textcoords="offset points", fontsize=7, ha="center")


def _finish(loss: Axes, error: Axes, rate: Axes, *, validated: bool) -> None:
    loss.set_ylabel("training loss")
    loss.set_ylim(bottom=0)
    error.set_ylabel("validation error: top-1 thick, top-5 thin")
    error.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    error.set_ylim(0, None if validated else 1)
    if not validated:
        error.text(0.5, 0.5, "no run has validated", transform=error.transAxes, ha="center", va="center", color="grey")
    rate.set_ylabel("learning rate")
    rate.set_yscale("log")
    rate.set_xlabel("epochs")
    for axes in (loss, error, rate):
        axes.grid(alpha=0.25)
        axes.margins(x=0.01)
