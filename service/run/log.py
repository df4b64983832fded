"""log.jsonl and events.jsonl: one JSON object a line, appended; cut back to the step that a resume starts from."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.command import InputError
from pipeline.files import write_atomic

LOG_FILE: Final = "log.jsonl"
EVENTS_FILE: Final = "events.jsonl"
NOWHERE: Final = Path(os.devnull)  # where ranks other than 0 write their logs
SAMPLED: Final = 500  # lines that are read of a log, which may have a million


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step's line of log.jsonl; its figures are of all ranks together."""

    step: int
    epoch: float
    loss: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    data_wait_ratio: float


class JsonLog:
    """An append-only file of records that each have a "step"; every line reaches the kernel when it is written."""

    def __init__(self, path: Path, lines: Iterable[bytes]):
        """Open `path` with just these lines in it."""
        if path != NOWHERE:
            write_atomic(path, b"".join(lines))
        self._file = path.open("a", buffering=1)

    @classmethod
    def truncated_to(cls, path: Path, last_step: int) -> "JsonLog":
        """Open `path` without what lies after `last_step`: steps that a resume is about to do again."""
        return cls(path, [line for line in _lines(path) if _step(line) <= last_step])

    @classmethod
    def with_records(cls, path: Path, records: Iterable[dict[str, Any]]) -> "JsonLog":
        """Open `path` with just these records in it."""
        return cls(path, map(_line, records))

    def append(self, record: dict[str, Any]) -> None:
        """Add a record."""
        self._file.write(_line(record).decode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def sample_steps(path: Path) -> list[dict[str, Any]]:
    """Evenly spaced records of a log's training steps, at most SAMPLED."""
    lines = [line for line in _lines(path) if b'"loss"' in line and b'"validation"' not in line]
    return [json.loads(line) for line in lines[:: -(-len(lines) // SAMPLED) or 1]]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON Lines file; its last line may be under way, and is passed over if it is not whole."""
    broken: ValueError | None = None
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if broken:
                    where = f"{path} is damaged at line {number - 1:,}"
                    raise InputError(f"{where}, expected JSON; restore it, or resume the run") from broken
                try:
                    record = json.loads(line)
                except ValueError as error:
                    broken = error
                    continue
                if not isinstance(record, dict):
                    raise InputError(f"{path} is damaged at line {number:,}, expected a JSON object; restore it")
                yield record
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected a run's file; mend its rights") from error


def last_step(path: Path) -> float:
    """The last step that a log has; 0 where there is none."""
    steps = map(_step, reversed(_lines(path)))  # from the end: a log may have a million lines
    return next((step for step in steps if step < float("inf")), 0)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _step(line: bytes) -> float:
    """The record's step; a line that a crash cut short comes after everything."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
