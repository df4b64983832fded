"""What an event must have, by its kind: events.jsonl and a checkpoint's state may come from elsewhere."""

from dataclasses import dataclass
from typing import Any, Final

from pipeline.foreign import Count, Real, checked


@dataclass
class _Event:
    kind: str
    step: Count
    epoch: Real


@dataclass
class _Rates:
    base: Real
    conv1: Real


@dataclass
class _RateChange:
    old: _Rates
    new: _Rates


@dataclass
class _Precision:
    old: str
    new: str


@dataclass
class _Answer:
    positions: tuple[Count, Count]


_BY_KIND: Final[dict[str, type]] = {
    "learning-rate": _RateChange,
    "precision": _Precision,
    "skip": _Answer,
    "rollback": _Answer,
}


def check_event(event: dict[str, Any]) -> None:
    """ValueError where an event lacks what its readers use, or has it in another type."""
    checked(_Event, event)
    if kind := _BY_KIND.get(event["kind"]):
        checked(kind, event)
