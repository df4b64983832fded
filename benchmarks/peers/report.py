"""What was measured of a side, and how it is said."""

import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch
from nvidia import dali

from inputs import Expected

MIB = 2**20


@dataclass(kw_only=True)
class Result:
    """One side with one output."""

    name: str
    output: str
    fault: str = ""  # why it does not count, or is not there
    shape: list[int] = field(default_factory=list)  # of its first batch
    start_seconds: float = 0.0  # from the process's start to the first batch
    mean: list[float] = field(default_factory=list)  # of an epoch's pixels, RGB on 0..255
    std: list[float] = field(default_factory=list)
    images: int = 0  # of that epoch
    each_once: bool = False  # it had as many pictures of each label as there are
    rates: list[float] = field(default_factory=list)  # images/s of each window
    cores: list[float] = field(default_factory=list)  # processor seconds a second, of each window
    ratios: list[float] = field(default_factory=list)  # ours / it, of windows of the same round
    memory: int = 0  # the most bytes that its processes held, mapped files' pages counted
    own_memory: int = 0  # without those
    idle: float = 0.0  # the most of a core that it used while others ran


def judge(result: Result, reference: Expected, tolerance: float) -> None:
    """Note what is wrong with a side's pictures, and whether each came once."""
    pairs = zip(result.mean + result.std, reference.mean + reference.std, strict=True)
    if (off := max(abs(mine - its) for mine, its in pairs)) > tolerance:
        result.fault = f"mean or deviation is off by {off:.2f}, expected at most {tolerance}"
    if result.images != reference.images:
        result.fault = f"an epoch had {result.images} pictures, expected {reference.images}"


def compare(results: list[Result], ours: str, ours_raw: str, raw: set[str]) -> None:
    """Set each side's ratios, to ours that reads the same kind of input."""
    by_name = {result.name: result for result in results}
    for result in results:
        mine = by_name.get(ours_raw if result.name in raw else ours)
        if mine and len(mine.rates) == len(result.rates):
            result.ratios = [a / b for a, b in zip(mine.rates, result.rates, strict=True)]


def table(output: str, results: list[Result]) -> str:
    """A line for each side."""
    head = f"{output:28}{'images/s':>9}{'range':>16}{'ours / it':>11}{'range':>14}"
    head += f"{'cores':>7}{'start, s':>10}{'MiB':>7}{'own':>7}"
    return "\n".join([head, *map(line, results), ""])


def line(result: Result) -> str:
    """One side."""
    if result.fault or not result.rates:
        return f"{result.name:28}{result.fault}"
    return (
        f"{result.name:28}{statistics.median(result.rates):9,.0f}{span(result.rates, ',.0f'):>16}"
        f"{middle(result.ratios):>11}{span(result.ratios, '.2f'):>14}{statistics.median(result.cores):7.2f}"
        f"{result.start_seconds:10.1f}{result.memory / MIB:7,.0f}{result.own_memory / MIB:7,.0f}"
        f"{'' if result.each_once or not result.images else '  not each picture once an epoch'}"
    )


def middle(values: list[float]) -> str:
    """The median, or nothing."""
    return f"{statistics.median(values):.2f}" if values else ""


def span(values: list[float], form: str) -> str:
    """Least and most."""
    return f"{min(values):{form}}-{max(values):{form}}" if values else ""


def machine() -> dict[str, str]:
    """What it was measured on."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "processor": model.partition(":")[2].strip(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "DALI": dali.__version__,
        "load": f"{os.getloadavg()[0]:.1f}",
    }
