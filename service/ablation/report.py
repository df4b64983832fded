"""An experiment's outcome as a table, remarks, a picture and JSON."""

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from service.ablation.experiments import Experiment, Measure
from service.ablation.measures import Variant, history_of
from service.ablation.plan import PlannedRun
from service.ablation.training_error import ENOUGH, read_training_errors
from service.results.curves import COLOURS
from service.results.table import MISSING, markdown

MEASURES: Final[dict[Measure, str]] = {
    "validation": "top-1 error, %",
    "views": "top-1 error, %",
    "training": f"epochs to {ENOUGH:.0%} training error",
}
LEFT: Final = 2  # columns of words


def headings(measure: Measure) -> tuple[str, ...]:
    """Of the table's columns."""
    difference = "times the base's" if measure == "training" else "difference"
    return ("variant", "against base", "runs", MEASURES[measure], "spread", difference, "95% interval")


def rows_of(variants: Sequence[Variant]) -> list[tuple[str, ...]]:
    """A row for each variant, a text for each of `headings`."""
    return [_row(variant) for variant in variants]


def _row(variant: Variant) -> tuple[str, ...]:
    found = variant.difference
    sign = "" if found and found.same else "+"  # a factor has none
    return (
        variant.title,
        verdict(variant),
        f"{variant.finished} of {variant.planned}",
        _number(variant.mean),
        _number(variant.spread),
        f"{found.mean:{sign}.2f}" if found else MISSING,
        f"{found.low:{sign}.2f} to {found.high:{sign}.2f}" if found else MISSING,
    )


def verdict(variant: Variant) -> str:
    """What the interval says, in a word."""
    if not variant.difference:
        return MISSING
    if variant.difference.within_noise:
        return "within noise"
    return "worse" if variant.difference.mean > variant.difference.same else "better"


def _number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.2f}"


def remarks(experiment: Experiment, epochs: int, variants: Sequence[Variant]) -> list[str]:
    """What the table alone does not say: what is missing, and which learning rates were found."""
    lines = []
    for variant in variants:
        if missing := variant.planned - variant.finished:
            lines.append(f"{variant.title}: {missing} of {variant.planned} runs not finished")
        if experiment.measure == "training" and (short := variant.finished - len(variant.by_seed)):
            never = f"runs never came to {ENOUGH:.0%} in {epochs} epochs"
            lines.append(f"{variant.title}: {short} of {variant.finished} {never}")
        if variant.rate is not None and variant.finished:
            tried = ", ".join(f"{rate:g}" for rate in experiment.rates)
            edge = variant.rate in (min(experiment.rates), max(experiment.rates))
            but = "; it is the last of them, so a better one may lie beyond" if edge else ""
            after = f"after {min(experiment.trial_epochs, epochs)} epochs of seed 0"
            lines.append(f"{variant.title}: learning rate {variant.rate:g}, the best of {tried} {after}{but}")
    return lines


def document(experiment: Experiment, epochs: int, variants: Sequence[Variant]) -> str:
    """The table as Markdown, with what it answers and what the paper found."""
    base, columns = experiment.base, headings(experiment.measure)
    notes = "".join(f"- {line}\n" for line in remarks(experiment, epochs, variants))
    return (
        f"### {experiment.name}\n\n{experiment.question} (section {experiment.section})\n\n"
        f"The paper: {experiment.paper}.\n\nHere: {base.what}; {_at_most(experiment)}{epochs} epochs of the recipe "
        f"`{base.recipe}`. Runs of one seed see the same crops. {_compared(experiment)}, paired by seed; spread is the "
        f"standard deviation over seeds.\n\n{markdown(columns, rows_of(variants), LEFT)}"
        + (f"\n{notes}" if notes else "")
    )


def _at_most(experiment: Experiment) -> str:
    return "at most " if experiment.measure == "training" else ""


def _compared(experiment: Experiment) -> str:
    if experiment.measure == "training":
        return "Factors are geometric means of variant over base"
    return "Differences are variant less base"


def as_json(experiment: Experiment, epochs: int, variants: Sequence[Variant]) -> dict[str, Any]:
    """Everything, as plain values: errors in percent, differences in points; or epochs, and factors."""
    return {
        "experiment": experiment.name,
        "section": experiment.section,
        "paper": experiment.paper,
        "data": experiment.base.name,
        "recipe": experiment.base.recipe,
        "base": {**experiment.base.of_epochs(epochs), **experiment.changes},
        "epochs": epochs,
        "measure": MEASURES[experiment.measure],
        "variants": [
            {
                "name": variant.name,
                "changes": dict(experiment.variants.get(variant.name, {})),
                "planned": variant.planned,
                "finished": variant.finished,
                "by_seed": dict(variant.by_seed),
                "mean": None if math.isnan(variant.mean) else variant.mean,
                "spread": None if math.isnan(variant.spread) else variant.spread,
                "difference": asdict(variant.difference) if variant.difference else None,
                "learning_rate": variant.rate,
                "within_noise": variant.difference.within_noise if variant.difference else None,
            }
            for variant in variants
        ],
        "remarks": remarks(experiment, epochs, variants),
    }


def picture(experiment: Experiment, runs: Sequence[PlannedRun], variants: Sequence[Variant]) -> bytes:
    """PNG: errors over epochs, of each run and as means of all seeds; and the differences with their intervals."""
    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    curves, differences = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(f"{experiment.name}: {experiment.question}")
    for number, variant in enumerate(variants):
        of_variant = [run for run in runs if run.variant == variant.name]
        _draw_curves(
            curves,
            of_variant,
            experiment.measure,
            variant.title,
            COLOURS[number % len(COLOURS)],
            "--" if experiment.measure == "training" and number else "-",  # as figure 1 has them
        )
    split = "training" if experiment.measure == "training" else "validation"
    curves.set(xlabel="epochs", ylabel=f"{split} error, top-1, %", ylim=(0, None if curves.lines else 100))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.grid(alpha=0.25)
    if experiment.measure == "training":
        curves.axhline(100 * ENOUGH, color="grey", linestyle=":", linewidth=1)
    if curves.get_legend_handles_labels()[0]:
        curves.legend()
    _draw_differences(differences, variants)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def curve_of(run: PlannedRun, measure: Measure) -> dict[int, float]:
    """A run's errors by epoch, percent: what it has so far."""
    if measure == "training":
        return {epoch: 100 * error for epoch, error in read_training_errors(run).items()}
    history = history_of(run)
    return {each.epoch: 100 * each.top1 for each in history.validations} if history else {}


def _draw_curves(axes: Axes, runs: Sequence[PlannedRun], measure: Measure, title: str, colour: str, line: str) -> None:
    by_epoch = defaultdict[int, list[float]](list)
    for run in runs:
        points = curve_of(run, measure)
        axes.plot(list(points), list(points.values()), color=colour, alpha=0.35, linewidth=0.8, linestyle=line)
        for epoch, error in points.items():
            by_epoch[epoch].append(error)
    # Only where all runs have a number: a mean of fewer would jump where one ends.
    means = {epoch: sum(errors) / len(errors) for epoch, errors in by_epoch.items() if len(errors) == len(runs)}
    if by_epoch:
        axes.plot(
            list(means),
            list(means.values()),
            color=colour,
            linewidth=2,
            linestyle=line,
            marker=".",
            label=title,
        )


def _draw_differences(axes: Axes, variants: Sequence[Variant]) -> None:
    found = [(number, variant) for number, variant in enumerate(variants) if variant.difference]
    if not found:
        axes.set_axis_off()
        text = "no two pairs of runs to compare"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color="grey")
        return
    same = 0.0
    for place, (number, variant) in enumerate(found):
        assert variant.difference
        same = variant.difference.same
        mean, low, high = variant.difference.mean, variant.difference.low, variant.difference.high
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4, color=colour)
        axes.annotate(verdict(variant), (mean, place), (0, 8), textcoords="offset points", fontsize=8, ha="center")
    axes.axvline(same, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [variant.title for _, variant in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    what = "times the base's epochs" if same else "difference from the base, points"
    axes.set_xlabel(f"{what}, 95% interval")
    axes.grid(alpha=0.25, axis="x")
