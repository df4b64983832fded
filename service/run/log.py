"""log.jsonl and events.jsonl: one JSON object a line, appended; cut back to the step that a resume starts from."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.command import InputError
from pipeline.files import fsync_file, fsync_folder, open_regular, write_atomic
from pipeline.foreign import MOST_LINE, Count, Measured, Real, checked, parse_json, read_regular

LOG_FILE: Final = "log.jsonl"
EVENTS_FILE: Final = "events.jsonl"
NOWHERE: Final = Path(os.devnull)  # where ranks other than 0 write their logs
SAMPLED: Final = 500  # lines that are read of a log, which may have a million
MOST_BYTES: Final = 2 * 2**30  # of a log that is gone on with; a million steps have 0.2 GB
MOST_WAITING: Final = 16 * 2**20  # bytes of lines that wait for room: about a hundred thousand steps'


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
    """An append-only file of records that each have a "step"; every line reaches the kernel when it is written.

    A file that cannot be written, as on a full disk, ends nothing: its lines wait in memory for room, at most
    MOST_WAITING bytes of them.
    """

    failures = 0  # writes that failed
    fault = ""  # why the last one did; empty where it did not
    lost = 0  # lines for which there was no room in memory either

    def __init__(self, path: Path, before: bytes, content: bytes, say: Callable[[str], None]):
        """Open `path`, which holds `before`, with just this content; InputError where that cannot be.

        Where one of the two begins with the other, as usually, that takes no room on the disk.
        """
        self._path, self._say = path, say
        try:
            if content[: len(before)] != before[: len(content)]:
                write_atomic(path, content)
                before = content
            self._file = path.open("ab", buffering=0)
            if before[len(content) :]:
                self._file.truncate(len(content))
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}), expected a run's file; mend its rights or make room"
            ) from error
        self._is_named = False  # durably, in its folder
        self._waiting = bytearray(content[len(before) :])
        self._write()

    @classmethod
    def truncated_to(cls, path: Path, last_step: int, say: Callable[[str], None]) -> "JsonLog":
        """Open `path` without what lies after `last_step`: steps that a resume is about to do again."""
        before = _content(path)
        kept = (line for line in before.splitlines(keepends=True) if _step(line) <= last_step)
        return cls(path, before, b"".join(kept), say)

    @classmethod
    def with_records(cls, path: Path, records: Iterable[dict[str, Any]], say: Callable[[str], None]) -> "JsonLog":
        """Open `path` with just these records in it."""
        return cls(path, _content(path), b"".join(map(_line, records)), say)

    def append(self, record: dict[str, Any]) -> None:
        """Add a record."""
        line = _line(record)
        if len(self._waiting) + len(line) <= MOST_WAITING:
            self._waiting += line
        else:
            self.lost += 1
        self._write()

    def _write(self) -> None:
        failed_before = self.fault
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
            self.fault = ""
        except OSError as error:
            self.failures += 1
            self.fault = error.strerror or str(error)
        if self.fault and not failed_before:
            self._say(
                f"{self._path} cannot be written ({self.fault}): training goes on, and its lines wait; "
                "make room or mend the disk"
            )
        elif failed_before and not self.fault:
            self._say(
                f"{self._path} is written again, {f'without {self.lost:,} lines' if self.lost else 'no line lost'}"
            )

    def cut_to(self, records: Iterable[dict[str, Any]]) -> None:
        """Take back the lines after these records, which are its first ones."""
        size = len(b"".join(map(_line, records)))
        written = os.fstat(self._file.fileno()).st_size
        del self._waiting[max(0, size - written) :]
        if size < written:
            self._file.truncate(size)

    def sync(self) -> None:
        """Make the lines so far durable, before a checkpoint is that comes after them; called by the thread that saves.

        Those that wait for room are not, nor are any where that fails: a crash may cost them.
        """
        try:
            fsync_file(self._file.fileno())
            if not self._is_named:
                fsync_folder(self._path.parent)
                self._is_named = True
        except OSError:
            self.failures += 1

    def close(self) -> None:
        """Close the file; lines for which there is still no room are lost."""
        self._write()
        if self._waiting:
            lost = self.lost + self._waiting.count(b"\n")
            self._say(f"{self._path} lacks {lost:,} lines: it cannot be written ({self.fault})")
        with suppress(OSError):  # NFS tells then of what it could not write
            self._file.close()


def sample_steps(path: Path) -> list[dict[str, Any]]:
    """Evenly spaced records of a log's training steps, at most SAMPLED; those that are none are passed over."""
    lines = [line for line in _lines(path) if b'"loss"' in line and b'"validation"' not in line]
    return [record for line in lines[:: -(-len(lines) // SAMPLED) or 1] if (record := _point(line))]


@dataclass
class _Point:
    """What a curve is drawn of."""

    step: Count
    epoch: Real
    loss: Measured


def _point(line: bytes) -> dict[str, Any] | None:
    try:
        checked(_Point, record := parse_json(line))
    except ValueError:
        return None
    return record


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON Lines file; its last line may be under way, and is passed over if it is not whole."""
    broken: ValueError | None = None
    number = 0
    try:
        with open_regular(path) as lines:
            while line := lines.readline(MOST_LINE + 1):
                number += 1
                if broken:
                    where = f"{path} is damaged at line {number - 1:,}"
                    raise InputError(f"{where}, expected JSON; restore it, or resume the run") from broken
                if len(line) > MOST_LINE:
                    where = f"{path} is damaged at line {number:,}"
                    raise InputError(f"{where}, expected at most {MOST_LINE:,} bytes in one; restore it")
                try:
                    record = parse_json(line)
                except ValueError as error:
                    broken = error
                    continue
                if not isinstance(record, dict):
                    raise InputError(f"{path} is damaged at line {number:,}, expected a JSON object; restore it")
                yield record
    except OSError as error:
        raise _unreadable(path, error) from error


def last_step(path: Path) -> float:
    """The last step that a log has; 0 where there is none."""
    try:
        if not path.exists():
            return 0
        with open_regular(path) as log:  # its end: it may have a million lines
            log.seek(max(0, os.fstat(log.fileno()).st_size - MOST_LINE))
            lines = log.read(MOST_LINE).splitlines(keepends=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    return next((step for step in map(_step, reversed(lines)) if step < float("inf")), 0)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES) if path != NOWHERE and path.exists() else b""
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}; move it away") from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read ({error.strerror}), expected a run's file; mend its rights")


def _lines(path: Path) -> list[bytes]:
    return _content(path).splitlines(keepends=True)


def _step(line: bytes) -> float:
    """The record's step; a line that a crash cut short comes after everything."""
    try:
        return checked(Count, json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
