"""log.jsonl and events.jsonl: whole lines, cut back to where a resume starts."""

import json
from pathlib import Path

from service.run.log import JsonLog


def test_a_log_is_cut_back_to_the_step_resumed_from_and_a_torn_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnonsense\n{"step": 3}\n{"step": 4')
    log = JsonLog.truncated_to(path, last_step=2)
    log.append({"step": 3, "loss": 0.1})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.1}\n'


def test_events_are_those_of_the_state_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 3, "kind": "lost"}\n')
    log = JsonLog.with_records(path, [{"step": 1}, {"step": 2}])
    log.append({"step": 5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 5]


def test_the_log_is_json(tmp_path: Path) -> None:
    log = JsonLog.truncated_to(tmp_path / "log.jsonl", 0)
    log.append({"step": 1, "loss": 0.30000001192092896})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 0.30000001192092896  # at once, and exactly
    log.close()
