"""log.jsonl and events.jsonl: whole lines, cut back to where a resume starts."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.command import InputError
from service.run import log as module
from service.run.log import JsonLog, read_records


def test_a_log_is_cut_back_to_the_step_resumed_from_and_a_torn_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnonsense\n{"step": 3}\n{"step": 4')
    log = JsonLog.truncated_to(path, last_step=2, say=print)
    log.append({"step": 3, "loss": 0.1})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.1}\n'


def test_events_are_those_of_the_state_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 3, "kind": "lost"}\n')
    log = JsonLog.with_records(path, [{"step": 1}, {"step": 2}], print)
    log.append({"step": 5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 5]


def test_the_log_is_json(tmp_path: Path) -> None:
    log = JsonLog.truncated_to(tmp_path / "log.jsonl", 0, print)
    log.append({"step": 1, "loss": 0.30000001192092896})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 0.30000001192092896  # at once, and exactly
    log.close()


Room = Callable[[int], None]


@pytest.fixture
def room() -> Iterator[Room]:
    """Sets how many bytes a file may have; a write that goes beyond fails, after what still fits, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_waited_out(tmp_path: Path, room: Room) -> None:
    path, said, steps = tmp_path / "log.jsonl", [], list(range(1, 31))
    log = JsonLog.truncated_to(path, 0, said.append)
    room(100)  # within a line
    for step in steps[:-1]:
        log.append({"step": step})
    assert path.stat().st_size == 100
    assert [record["step"] for record in read_records(path)] == steps[:8]  # what is there is sound
    assert len(said) == 1 and f"{path} cannot be written (File too large)" in said[0]
    assert log.failures == 29 - 8 and log.fault == "File too large"
    room(10_000)
    log.append({"step": 30})
    assert [record["step"] for record in read_records(path)] == steps
    assert said[1:] == [f"{path} is written again, no line lost"] and not log.fault
    log.close()
    assert len(said) == 2


def test_a_run_that_ends_on_a_full_disk_says_what_its_log_lacks(tmp_path: Path, room: Room) -> None:
    said: list[str] = []
    log = JsonLog.truncated_to(tmp_path / "log.jsonl", 0, said.append)
    room(0)
    log.append({"step": 1})
    log.append({"step": 2})
    log.close()
    assert said[1:] == [f"{tmp_path / 'log.jsonl'} lacks 2 lines: it cannot be written (File too large)"]


def test_memory_for_lines_that_wait_is_bounded(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 30)
    path, said = tmp_path / "log.jsonl", []
    log = JsonLog.truncated_to(path, 0, said.append)
    room(0)
    for step in range(1, 6):
        log.append({"step": step})
    room(1000)
    log.append({"step": 6})
    log.append({"step": 7})
    assert [record["step"] for record in read_records(path)] == [1, 2, 7]
    assert said[1:] == [f"{path} is written again, without 4 lines"]
    log.close()


@pytest.mark.parametrize("last", [3, 2], ids=["all kept", "cut back"])
def test_a_run_starts_again_on_a_full_disk(tmp_path: Path, room: Room, last: int) -> None:
    log_path, events_path, said = tmp_path / "log.jsonl", tmp_path / "events.jsonl", []
    log_path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
    events_path.write_text('{"step": 1}\n{"ste')  # cut short when the disk became full
    room(0)
    log = JsonLog.truncated_to(log_path, last, said.append)
    events = JsonLog.with_records(events_path, [{"step": 1}, {"step": 2}], said.append)
    assert log_path.read_text() == "".join(f'{{"step": {step}}}\n' for step in range(1, last + 1))
    room(1000)
    events.append({"step": 3})
    assert events_path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert [line for line in said if "log.jsonl" in line] == []
    log.close()
    events.close()


def test_what_can_be_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log.jsonl cannot be read \(Is a directory\), expected a run's file"):
        JsonLog.truncated_to(tmp_path / "log.jsonl", 0, print)
