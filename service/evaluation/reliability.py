"""Confidence against accuracy as a PNG: the reliability diagram of Guo et al. 2017, figure 1."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from service.evaluation.measures import Bin, expected_calibration_error


def reliability_png(bins: Sequence[Bin], name: str) -> bytes:
    """Bars of accuracy over confidence, and beneath how many pictures each is of; on the line both are equal."""
    figure = Figure(figsize=(5.5, 6), dpi=120, layout="constrained")
    accuracy, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    lefts, widths = [each.low for each in bins], [each.high - each.low for each in bins]
    bars = {"width": widths, "align": "edge", "color": "#0072B2", "edgecolor": "white"}
    accuracy.bar(lefts, [each.accuracy for each in bins], **bars)
    accuracy.plot([0, 1], [0, 1], color="#D55E00", linewidth=1.3, label="confidence = accuracy")
    counts.bar(lefts, [each.samples for each in bins], **bars)
    total = sum(each.samples for each in bins)
    error = expected_calibration_error(list(bins))
    accuracy.set_title(f"{name}: {total:,} pictures, expected calibration error {error:.2%}", fontsize=9)
    accuracy.set_ylabel("share that was right")
    accuracy.legend(loc="upper left", frameon=False)
    counts.set_ylabel("pictures")
    counts.set_xlabel("probability of the predicted class")
    for axes in (accuracy, counts):
        axes.set_xlim(0, 1)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    accuracy.set_ylim(0, 1)
    for axis in (accuracy.yaxis, counts.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
