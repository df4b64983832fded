"""An experiment's outcome as a table, a picture and JSON."""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from service.ablation.experiments import Base, Experiment
from service.ablation.measures import Variant, history_of
from service.ablation.plan import PlannedRun
from service.results.curves import COLOURS
from service.results.table import MISSING, markdown

HEADINGS: Final = ("variant", "says", "runs", "top-1 error", "spread", "against base", "95% interval")
LEFT: Final = 2  # of them are words


def rows_of(variants: Sequence[Variant]) -> list[tuple[str, ...]]:
    """A row for each variant, a text for each of HEADINGS; errors in percent, differences in points."""
    return [_row(variant) for variant in variants]


def _row(variant: Variant) -> tuple[str, ...]:
    found = variant.difference
    return (
        variant.name,
        verdict(variant),
        f"{len(variant.errors)} of {variant.planned}",
        _number(variant.mean, ".2f", "%"),
        _number(variant.spread, ".2f"),
        f"{found.mean:+.2f}" if found else MISSING,
        f"{found.low:+.2f} to {found.high:+.2f}" if found else MISSING,
    )


def verdict(variant: Variant) -> str:
    """What the interval says, in a word."""
    if not variant.difference:
        return MISSING
    if variant.difference.within_noise:
        return "within noise"
    return "worse" if variant.difference.mean > 0 else "better"


def _number(value: float, form: str, unit: str = "") -> str:
    return MISSING if math.isnan(value) else f"{value:{form}}{unit}"


def document(name: str, experiment: Experiment, base: Base, epochs: int, variants: Sequence[Variant]) -> str:
    """The table as Markdown, with what it answers and what the paper found."""
    return (
        f"### {name}\n\n{experiment.question} (section {experiment.section})\n\n"
        f"The paper: {experiment.paper}. Here: {base.what}; {epochs} epochs of the recipe `{base.recipe}`, top-1 error "
        "on the validation pictures in percent, centre crop; runs of one seed see the same crops.\n\n"
        f"{markdown(HEADINGS, rows_of(variants), LEFT)}"
    )


def as_json(name: str, experiment: Experiment, base: Base, epochs: int, variants: Sequence[Variant]) -> dict[str, Any]:
    """Everything, as plain values; errors in percent."""
    return {
        "experiment": name,
        "section": experiment.section,
        "base": base.name,
        "epochs": epochs,
        "variants": [
            {
                "name": variant.name,
                "changes": dict(experiment.variants.get(variant.name, {})),
                "top1_by_seed": dict(variant.errors),
                "difference": asdict(variant.difference) if variant.difference else None,
            }
            for variant in variants
        ],
    }


def picture(name: str, experiment: Experiment, runs: Sequence[PlannedRun], variants: Sequence[Variant]) -> bytes:
    """PNG: validation error over epochs, each run and each variant's mean; and the differences with intervals."""
    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    curves, differences = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(f"{name}: {experiment.question}")
    for number, variant in enumerate(variants):
        _draw_curves(curves, [run for run in runs if run.variant == variant.name], COLOURS[number % len(COLOURS)])
    curves.set(xlabel="epoch", ylabel="top-1 error, validation, %")
    curves.grid(alpha=0.3)
    if curves.get_legend_handles_labels()[0]:
        curves.legend()
    _draw_differences(differences, variants)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _draw_curves(axes: Axes, runs: Sequence[PlannedRun], colour: str) -> None:
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        validations = history.validations if (history := history_of(run)) else ()
        axes.plot(
            [each.epoch for each in validations], [100 * each.top1 for each in validations], color=colour, alpha=0.3
        )
        for each in validations:
            by_epoch.setdefault(each.epoch, []).append(100 * each.top1)
    means = {epoch: sum(errors) / len(errors) for epoch, errors in by_epoch.items() if len(errors) == len(runs)}
    if means:
        axes.plot(list(means), list(means.values()), color=colour, linewidth=2, label=runs[0].variant)


def _draw_differences(axes: Axes, variants: Sequence[Variant]) -> None:
    found = [(number, each) for number, each in enumerate(variants) if each.difference]
    for place, (number, variant) in enumerate(found):
        assert variant.difference
        mean, low, high = variant.difference.mean, variant.difference.low, variant.difference.high
        axes.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4, color=COLOURS[number % len(COLOURS)]
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [variant.name for _, variant in found])
    axes.set_ylim(max(len(found), 1) - 0.5, -0.5)
    axes.set_xlabel("difference from the base, points (95%)")
    axes.grid(alpha=0.3, axis="x")
