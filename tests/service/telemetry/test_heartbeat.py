"""Liveness by progress."""

from service.telemetry.heartbeat import COMPILE_FACTOR, Heartbeat


def test_liveness_is_progress_and_compiling_has_more_time() -> None:
    now = 0.0
    heartbeat = Heartbeat(10.0, clock=lambda: now)
    heartbeat.beat("compiling", COMPILE_FACTOR)
    now = 45.0
    assert heartbeat.health()["status"] == "ok"
    heartbeat.beat("training")
    now = 54.0
    assert heartbeat.health()["status"] == "ok"
    now = 56.0
    stalled = {"status": "stalled", "phase": "training", "seconds_since_progress": 11.0, "limit_seconds": 10.0}
    assert heartbeat.health() == stalled
