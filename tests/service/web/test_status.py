"""What the page says is wrong."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.telemetry.heartbeat import Heartbeat
from service.telemetry.metrics import Metrics
from service.web.status import alerts, finite_or_none


def told(
    metrics: Metrics, health: str = "ok", failed: str = "", unwritten: Mapping[str, str] | None = None, **stands: object
) -> list[str]:
    state = {"status": health, "phase": "training", "seconds_since_progress": 700.0, "limit_seconds": 600.0}
    return [found["name"] for found in alerts(state, metrics.values(), stands, failed, unwritten or {})]


def test_each_alert_is_there_when_its_cause_is_and_only_then(tmp_path: Path) -> None:
    metrics = Metrics(CollectorRegistry())
    assert told(metrics, data_wait_ratio=0.1, proposal=None) == []
    assert told(metrics, health="stalled") == ["TrainerStalled"]
    assert told(metrics, failed="checkpoint of step 3 failed") == ["TrainerCheckpointFailing"]
    assert told(metrics, unwritten={"log.jsonl": "No space left on device"}) == ["TrainerWritesFailing"]
    assert told(metrics, data_wait_ratio=0.3) == ["TrainerDataWaitHigh"]
    assert told(metrics, proposal={"reason": "no new lowest error"}) == ["TrainerPlateau"]
    metrics.watch(Heartbeat(600), tmp_path, None)
    free = metrics.values()["trainer_disk_bytes free"]
    metrics.checkpoint_bytes.set(free / 4)
    assert told(metrics) == []
    metrics.checkpoint_bytes.set(free / 2)
    assert told(metrics) == ["TrainerDiskFilling"]  # without anybody having scraped
    metrics.checkpoint_bytes.set(0)
    metrics.unremoved.set(1)
    assert told(metrics) == ["TrainerCheckpointsUnremoved"]
    metrics.unremoved.set(0)
    metrics.replaced.labels("damaged").inc()
    assert told(metrics) == ["TrainerSamplesReplaced"]


@pytest.mark.parametrize(("value", "expected"), [(1.5, 1.5), (None, None), (float("nan"), None), (float("inf"), None)])
def test_a_number_that_json_has_not_is_null(value: float | None, expected: float | None) -> None:
    assert finite_or_none(value) == expected


def test_alike_acts_of_a_pause_are_one_series_with_the_later_time() -> None:
    metrics = Metrics(CollectorRegistry())
    act = {"kind": "checkpoint", "step": 3, "author": "alice", "reason": "again"}
    metrics.latest_events = ({**act, "time": 1.0}, {**act, "time": 2.0})
    lines = metrics.exposition()[0].decode().splitlines()
    (line,) = [line for line in lines if line.startswith("trainer_event_timestamp_seconds{")]
    assert line.endswith(" 2.0")
