"""Saving beside the loop, and under failure."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from service.run.checkpoint import FOLDER, LATEST, RunState, Tensors, checkpoints, newest_checkpoint, save_checkpoint
from service.telemetry.metrics import Metrics
from service.training import checkpoint_writer
from service.training.checkpoint_writer import BackgroundSaver, CheckpointClock, CheckpointWriter


def test_a_full_disk_costs_a_checkpoint_but_neither_the_run_nor_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, said = Metrics(CollectorRegistry()), []
    tensors = {"towers-0.safetensors": {"w": torch.ones(3)}}
    writer = BackgroundSaver(CheckpointWriter(tmp_path, {}, metrics, keep=2, resumed_from=None, say=said.append))
    writer.submit(RunState(step=1), lambda: tensors)
    assert writer.wait()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", full)
    writer.submit(RunState(step=2), lambda: tensors)
    assert not writer.wait()
    assert "checkpoint of step 2 failed" in said[0] and "step-00000001" in said[0]
    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save_checkpoint)
    writer.submit(RunState(step=3), lambda: tensors)
    assert writer.close()
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state.step == 3
    get = metrics.registry.get_sample_value
    assert (tmp_path / FOLDER / LATEST).read_text() == "step-00000003\n"
    assert get("trainer_checkpoint_attempts_total") == 3 and get("trainer_checkpoint_failures_total") == 1


def test_a_clean_up_that_fails_is_no_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, said = Metrics(CollectorRegistry()), []
    tensors = {"towers-0.safetensors": {"w": torch.ones(3)}}
    writer = CheckpointWriter(tmp_path, {}, metrics, keep=1, resumed_from=None, say=said.append)
    assert writer(RunState(step=1), tensors)
    size = metrics.registry.get_sample_value("trainer_checkpoint_size_bytes") or 0
    rename = Path.rename

    def busy(self: Path, target: Path) -> Path:
        if self.name == "step-00000001":
            raise OSError(errno.EBUSY, "Device or resource busy", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    for step in (2, 3, 4):
        assert writer(RunState(step=step), tensors)
        assert writer.last_good and writer.last_good.name == f"step-0000000{step}" and not writer.failed
    assert len(said) == 1 and "step-00000001 cannot be removed (Device or resource busy); it is left" in said[0]
    get = metrics.registry.get_sample_value
    assert get("trainer_checkpoint_failures_total") == 0 and get("trainer_checkpoints_unremoved") == 1
    assert 2 * size <= (get("trainer_checkpoints_size_bytes") or 0) < 3 * size  # the old one counts
    monkeypatch.undo()
    assert writer(RunState(step=5), tensors)
    assert get("trainer_checkpoints_unremoved") == 0
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"step-00000005", LATEST}


@pytest.mark.parametrize("part", ["write_latest", "prune_checkpoints"])
def test_nor_is_a_hint_that_cannot_be_written(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, part, full)
    said: list[str] = []
    tensors = {"towers-0.safetensors": {"w": torch.ones(3)}}
    writer = CheckpointWriter(tmp_path, {}, Metrics(CollectorRegistry()), keep=2, resumed_from=None, say=said.append)
    for step in (1, 2, 3):
        assert writer(RunState(step=step), tensors) and not writer.failed
    assert "checkpoint of step 1 is saved, but its folder cannot be tidied" in said[0]
    if part == "write_latest":  # room is made all the same
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000002"]


def test_the_clock_asks_for_a_checkpoint_so_long_after_the_last_and_with_0_never() -> None:
    times = [0.0]
    clock, never = CheckpointClock(10.0, lambda: times[-1]), CheckpointClock(0.0, lambda: times[-1])

    def due(time: float) -> bool:
        times.append(time)
        assert not never.due()
        return clock.due()

    assert [due(time) for time in (0.0, 9.9, 10.0, 400.0)] == [False, False, True, True]
    clock.restart()
    assert [due(time) for time in (400.0, 409.9, 410.0)] == [False, False, True]


def test_tensors_are_fetched_by_the_savers_thread_and_only_when_the_last_are_written() -> None:
    loop, happened, may_end = threading.get_ident(), [], threading.Event()

    def fetch() -> Tensors:
        assert threading.get_ident() != loop
        happened.append("fetched")
        return {}

    def write(state: RunState, tensors: Tensors) -> bool:
        assert state.step == 2 or may_end.wait(60)
        happened.append("written")
        return True

    saver = BackgroundSaver(write)
    saver.submit(RunState(step=1), fetch)  # returns although it cannot be written yet
    threading.Timer(0.05, may_end.set).start()
    saver.submit(RunState(step=2), fetch)
    assert saver.close() and happened == ["fetched", "written"] * 2
