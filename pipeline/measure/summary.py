"""Measurements -> medians, ranges and shares of the bound; as a table on stdout, and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
from rich.table import Table

from pipeline.measure.windows import Window
from pipeline.progress import console

_MISSING: Final = "-"
_PLAIN_WIDTH: Final = 200  # of a table that no terminal bounds


class Spread(NamedTuple):
    """A figure of several rounds."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of a side; speeds and the share are of each round."""

    name: str
    images_per_second: Spread
    images_per_second_per_core: float
    bytes_per_second: float  # as stored
    wait_p50: float | None  # seconds until the next batch comes; None where there are no batches
    wait_p99: float | None
    cpu_seconds_per_1000: float
    peak_rss: int  # bytes, those of mapped shards among them
    peak_own: int  # bytes without them
    share_of_bound: Spread | None  # None for the bound itself, and for reading, which it does not bound
    engine_use: float | None = None


def summarise(windows: Mapping[str, Sequence[Window]], cores: int, bound: str, bounded: Sequence[str]) -> list[Figures]:
    """The figures of each side, in the windows' order. bound: the side that bounds those named in `bounded`."""
    return [
        _figures(name, taken, cores, windows[bound] if name in bounded else None) for name, taken in windows.items()
    ]


def _figures(name: str, windows: Sequence[Window], cores: int, bound: Sequence[Window] | None) -> Figures:
    speed = spread([window.images_per_second for window in windows])
    waits = np.concatenate([window.waits for window in windows])
    used = [window.engine_use for window in windows if window.engine_use is not None]
    return Figures(
        name=name,
        images_per_second=speed,
        images_per_second_per_core=speed.median / cores,
        bytes_per_second=median(window.bytes / window.seconds for window in windows),
        wait_p50=float(np.percentile(waits, 50)) if len(waits) else None,
        wait_p99=float(np.percentile(waits, 99)) if len(waits) else None,
        cpu_seconds_per_1000=median(1000 * window.cpu_seconds / window.images for window in windows),
        peak_rss=max(window.peak_rss for window in windows),
        peak_own=max(window.peak_own for window in windows),
        share_of_bound=ratios(windows, bound) if bound else None,
        engine_use=median(used) if used else None,
    )


def ratios(windows: Sequence[Window], others: Sequence[Window]) -> Spread:
    """Speeds of one side over those of another in the same rounds."""
    return spread([w.images_per_second / o.images_per_second for w, o in zip(windows, others, strict=True)])


def spread(values: Sequence[float]) -> Spread:
    """The median of values and their range."""
    return Spread(median(values), min(values), max(values))


def as_json(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """The figures as plain JSON values."""
    rows = [asdict(each) for each in figures]
    for row in rows:
        for name in ("images_per_second", "share_of_bound"):
            row[name] = row[name] and dict(zip(Spread._fields, row[name], strict=True))
    return rows


HEADINGS: Final = (
    "",
    "images/s",
    "range",
    "a core",
    "MB/s",
    "p50 ms",
    "p99 ms",
    "CPU s/1000",
    "MB",
    "of bound",
    "range",
)


def print_figures(figures: Sequence[Figures]) -> None:
    """The figures as a table on stdout."""
    print_rows(HEADINGS, [_row(each) for each in figures])


def _row(each: Figures) -> tuple[str, ...]:
    speed, share = each.images_per_second, each.share_of_bound
    return (
        each.name,
        f"{speed.median:,.0f}",
        f"{speed.lowest:,.0f}..{speed.highest:,.0f}",
        f"{each.images_per_second_per_core:,.0f}",
        f"{each.bytes_per_second / 1e6:,.0f}",
        _MISSING if each.wait_p50 is None else f"{1000 * each.wait_p50:.1f}",
        _MISSING if each.wait_p99 is None else f"{1000 * each.wait_p99:.1f}",
        f"{each.cpu_seconds_per_1000:.3f}",
        f"{each.peak_own / 1e6:,.0f}",
        f"{share.median:.0%}" if share else _MISSING,
        f"{share.lowest:.0%}..{share.highest:.0%}" if share else _MISSING,
    )


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Rows on stdout in columns; after the first `left` they are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    screen = console(markup=False, highlight=False)
    screen.width = max(screen.width, 110) if screen.is_terminal else _PLAIN_WIDTH
    screen.print(table)
