"""Outcomes of trials as JSON and as Markdown."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["passed", "failed", "skipped", "not run"]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    name: str
    state: State
    words: str
    figures: list[dict[str, Any]] = field(default_factory=list)  # each `what`, `unit`, `values`: one a round
    facts: dict[str, str] = field(default_factory=dict)  # of the machine
    seconds: float = 0.0
    timed_out: bool = False


def line(outcome: Outcome) -> str:
    """An outcome in a line, its figures with it."""
    figures = "; ".join(f"{each['what']} {number(median(each))} {each['unit']}" for each in outcome.figures)
    said = "; ".join(filter(None, (outcome.words, figures)))
    return f"{outcome.state:7}  {outcome.name} ({outcome.seconds:.0f} s): {said}"


def number(value: float) -> str:
    """Four digits, but for the whole numbers before the point: 0.01235, 12.35, 40,123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def median(figure: dict[str, Any]) -> float:
    return statistics.median(figure["values"])


def write_report(out: Path, device: str, outcomes: Sequence[Outcome]) -> None:
    """results.json and results.md, each whole at any time."""
    facts = {name: value for each in outcomes for name, value in each.facts.items()}
    content = {"device": device, "facts": facts, "trials": [asdict(each) for each in outcomes]}
    _replace(out / "results.json", json.dumps(content, indent=1) + "\n")
    _replace(out / "results.md", markdown(facts, outcomes))


def markdown(facts: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """Facts, a table of figures, and a table of trials."""
    machine = "; ".join(f"{name} {value}" for name, value in facts.items())
    figures = [
        f"| {each.name} | {figure['what']} | {figure['unit']} | {len(figure['values'])} | {number(median(figure))} "
        f"| {number(min(figure['values']))} to {number(max(figure['values']))} |"
        for each in outcomes
        for figure in each.figures
    ]
    trials = [f"| {each.name} | {each.state} | {each.seconds:.0f} | {_cell(each.words)} |" for each in outcomes]
    head = ["| trial | figure | unit | n | median | range |", "| --- | --- | --- | ---: | ---: | --- |"]
    foot = ["| trial | outcome | s | what it says |", "| --- | --- | ---: | --- |"]
    return "\n".join([machine, "", *head, *figures, "", *foot, *trials, ""])


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "/").split())


def _replace(path: Path, content: str) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(content)
    os.replace(unfinished, path)
