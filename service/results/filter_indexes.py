"""Figure 3 and its claim: the first layer's filters, and how the two towers differ in orientation and colour.

Section 6.1: "the kernels on GPU 1 are largely color-agnostic, while the kernels on GPU 2 are largely color-specific".
Here the towers are 0 and 1, and which of them takes to colour is chance.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import permutation_test
from torch import Tensor

from model.filters import colour_index, filters_picture, orientation_index
from service.results.curves import COLOURS
from service.results.table import MISSING

RESAMPLES: Final = 9999
SEED: Final = 0  # of the permutations: the same checkpoint has the same p
LEVEL: Final = 0.05
HEADINGS: Final = ("index", "tower", "filters", "mean", "median", "quartiles", "difference", "p")
METHOD: Final = (
    f"A difference of means is claimed at p < {LEVEL}: permutation test, two-sided, {RESAMPLES:,} resamples, "
    "each index by itself.\nIt is about the filters of this checkpoint, not about other runs."
)
MARKS: Final = "A point: one filter; bar: quartiles; white line: median; diamond: mean; dotted: mean of white noise."


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An index, in words."""

    name: str
    measure: Callable[[Tensor], Tensor]  # (n, 3, k, k) kernels -> (n,), NaN where a kernel has no index
    more: str  # what a tower's kernels are whose mean is higher
    ends: str  # what 0 and 1 are
    noise: float  # mean of kernels that are white noise, as those of a network before training


KINDS: Final = (
    Kind(
        name="orientation",
        measure=orientation_index,
        more="more oriented",
        ends="0: no orientation, 1: one only",
        noise=0.07,  # of 11 x 11 kernels of three colours; 0.12 of grey ones
    ),
    Kind(
        name="colour",
        measure=colour_index,
        more="more chromatic",
        ends="0: luminance only, 1: colour only",
        noise=2 / 3,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One index of one tower's filters, of those that have it; None where none has."""

    filters: int
    left_out: int  # all zeros or not finite
    mean: float | None
    quartiles: tuple[float, float, float] | None  # the second is the median


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One index of every filter, and its difference between the towers."""

    kind: Kind
    values: tuple[NDArray[np.float64], ...]  # a tower's (n,), NaN for a filter that has no index
    summaries: tuple[Summary, ...]
    difference: float | None  # of means, tower 1's less tower 0's
    p: float | None  # None where there are not two towers of two filters

    @property
    def claim(self) -> str:
        """What is so, with its figures."""
        means, name = [_text(summary.mean) for summary in self.summaries], self.kind.name
        if len(means) == 1:
            return f"one tower, nothing to compare in {name}: mean {means[0]}"
        if self.p is None or self.difference is None:
            return f"too few kernels to compare the towers in {name}: means {means[0]} and {means[1]}"
        if self.p >= LEVEL:
            return (
                f"no difference found between the towers in {name}: means {means[0]} and {means[1]}, p = {self.p:.4f}"
            )
        more = int(self.difference > 0)
        figures = f"means {means[more]} against {means[1 - more]}, p = {self.p:.4f}"
        return f"tower {more}'s kernels are {self.kind.more}: {figures}"


def measure(towers: Sequence[Tensor]) -> list[Measured]:
    """Each index of KINDS, of every filter of one or two towers."""
    return [_measure(kind, tuple(kind.measure(kernels).numpy() for kernels in towers)) for kind in KINDS]


def _measure(kind: Kind, values: tuple[NDArray[np.float64], ...]) -> Measured:
    difference, p = compare_means([each[~np.isnan(each)] for each in values])
    summaries = tuple(_summary(each) for each in values)
    return Measured(kind=kind, values=values, summaries=summaries, difference=difference, p=p)


def _summary(values: NDArray[np.float64]) -> Summary:
    sound = values[~np.isnan(values)]
    left_out = len(values) - len(sound)
    if not len(sound):
        return Summary(filters=0, left_out=left_out, mean=None, quartiles=None)
    lower, median, upper = np.quantile(sound, (0.25, 0.5, 0.75)).tolist()
    return Summary(filters=len(sound), left_out=left_out, mean=float(sound.mean()), quartiles=(lower, median, upper))


def compare_means(towers: Sequence[NDArray[np.float64]]) -> tuple[float | None, float | None]:
    """Tower 1's mean less tower 0's, and the p value of a two-sided permutation test; None where there is no such.

    If the towers did not differ, a filter might as well be in the other one. p is at least 2 / (RESAMPLES + 1).
    """
    if len(towers) != 2 or min(map(len, towers)) < 2:  # of a single filter it is not known how it might vary
        return None, None
    # Named as scipy before 1.15 does, and as later ones still take it.
    generator: dict[str, Any] = {"random_state": np.random.default_rng(SEED)}
    test = permutation_test(towers, _difference, vectorized=True, n_resamples=RESAMPLES, **generator)
    return float(test.statistic), float(test.pvalue)


def _difference(tower0: NDArray[np.float64], tower1: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return tower1.mean(axis=axis) - tower0.mean(axis=axis)


def table_rows(indexes: Sequence[Measured]) -> list[tuple[str, ...]]:
    """A row for each index and tower, a text for each of HEADINGS; the difference stands with the last tower."""
    rows: list[tuple[str, ...]] = []
    for index in indexes:
        last = len(index.summaries) - 1
        for tower, each in enumerate(index.summaries):
            lower, median, upper = map(_text, each.quartiles or (None,) * 3)
            figures = (f"{each.filters}", _text(each.mean), median, f"{lower} to {upper}")
            test = (_text(index.difference, "+.3f"), _text(index.p, ".4f")) if tower == last else ("", "")
            rows.append((index.kind.name, f"{tower}", *figures, *test))
    return rows


def notes(indexes: Sequence[Measured]) -> list[str]:
    """How the claims were decided, if there are any, and which kernels have no index."""
    left_out = [summary.left_out for summary in indexes[0].summaries]
    lines = [METHOD] if len(left_out) > 1 else []
    return lines + [
        f"{count} of tower {tower}'s kernels {'is' if count == 1 else 'are'} all zeros or not finite: no index."
        for tower, count in enumerate(left_out)
        if count
    ]


def as_json(indexes: Sequence[Measured]) -> dict[str, Any]:
    """Every filter's indexes, in the order of figure 3, and what `table_rows` has; null for what there is not."""
    return {
        "towers": [
            [
                {f"{index.kind.name}_index": _finite(index.values[tower][number]) for index in indexes}
                for number in range(len(values))
            ]
            for tower, values in enumerate(indexes[0].values)
        ],
        "summary": {
            f"{index.kind.name}_index": {
                "towers": [_record(summary) for summary in index.summaries],
                "difference_of_means": index.difference,
                "p_value": index.p,
                "claim": index.claim,
            }
            for index in indexes
        },
        "test": {
            "name": "permutation",
            "alternative": "two-sided",
            "resamples": RESAMPLES,
            "seed": SEED,
            "level": LEVEL,
        },
    }


def _record(summary: Summary) -> dict[str, float | None]:
    lower, median, upper = summary.quartiles or (None,) * 3
    return {
        "filters": summary.filters,
        "left_out": summary.left_out,
        "mean": summary.mean,
        "median": median,
        "lower_quartile": lower,
        "upper_quartile": upper,
    }


def _finite(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _text(value: float | None, form: str = ".3f") -> str:
    return MISSING if value is None else format(value, form)


def figure_png(towers: Sequence[Tensor], indexes: Sequence[Measured], caption: str) -> bytes:
    """`filters_figure` as a PNG file."""
    stream = io.BytesIO()
    filters_figure(towers, indexes, caption).savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


ENLARGE: Final = 5  # pixels of the figure for each of a kernel
DPI: Final = 120
LEFT, RIGHT, TOP, BELOW = 80, 35, 75, 92  # pixels around the filters
PLOT, GUTTER, AXIS = 230, 45, 72  # pixels: height of the plots, between the two, and below them
LINE: Final = 17  # pixels of a line of notes


def filters_figure(towers: Sequence[Tensor], indexes: Sequence[Measured], caption: str) -> Figure:
    """The filters pixel by pixel, tower 0's above tower 1's; below them a plot of each index, and notes."""
    picture = filters_picture(list(towers), enlarge=ENLARGE)
    text = "\n".join([*notes(indexes), MARKS])
    bottom = AXIS + LINE * len(text.splitlines())  # of the plots, in pixels from the figure's lower edge
    low = bottom + PLOT + BELOW  # of the filters
    height, width = low + picture.shape[0] + TOP, LEFT + picture.shape[1] + RIGHT
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(picture, LEFT, low, origin="upper")  # not in axes, which would scale it
    for tower in range(len(towers) if len(towers) > 1 else 0):
        middle = low + picture.shape[0] * (1 - (tower + 0.5) / len(towers))
        words: dict[str, Any] = {"color": COLOURS[tower], "weight": "bold", "ha": "center", "va": "center"}
        figure.text((LEFT - 22) / width, middle / height, f"tower {tower}", rotation=90, **words)
    count, side = sum(map(len, towers)), towers[0].shape[-1]
    title = f"The {count} filters of conv1, {side} x {side} x 3"
    figure.text(LEFT / width, 1 - 32 / height, title, fontsize=13, weight="bold", va="center")
    figure.text(LEFT / width, 1 - 56 / height, caption, fontsize=9, color="dimgrey", va="center")
    figure.text(LEFT / width, 12 / height, text, fontsize=7.5, color="dimgrey", va="bottom")
    across = (picture.shape[1] - GUTTER) // 2
    for number, index in enumerate(indexes):
        left = LEFT + number * (across + GUTTER)
        axes = figure.add_axes((left / width, bottom / height, across / width, PLOT / height))
        _draw_index(axes, index, named=number == 0 and len(towers) > 1)
    return figure


def _draw_index(axes: Axes, index: Measured, named: bool) -> None:
    """A point for each filter, and under each tower's points the quartiles, the median (white) and the mean."""
    generator = np.random.default_rng(SEED)  # of how far points are moved up or down, to be seen
    for tower, (values, summary) in enumerate(zip(index.values, index.summaries, strict=True)):
        colour = COLOURS[tower]
        heights = tower + generator.uniform(-0.33, 0.17, len(values))
        axes.scatter(values, heights, s=16, color=colour, alpha=0.6, linewidths=0)
        if summary.mean is not None and summary.quartiles is not None:
            lower, median, upper = summary.quartiles
            under = tower + 0.33
            axes.plot([lower, upper], [under, under], color=colour, linewidth=6, solid_capstyle="butt")
            axes.plot(median, under, "|", color="white", markersize=6, markeredgewidth=1.5)
            axes.plot(summary.mean, under, "D", color="black", markersize=4.5)
    axes.axvline(index.kind.noise, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_title(index.claim.replace(": ", ":\n"), fontsize=9, loc="left")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(index.values) - 0.5, -0.5)
    axes.set_xlabel(f"{index.kind.name} index ({index.kind.ends})", fontsize=9)
    axes.set_yticks(range(len(index.values)), [f"tower {t}" if named else "" for t in range(len(index.values))])
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
