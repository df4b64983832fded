"""Saving beside the loop, and under failure."""

import errno
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from service.run.checkpoint import RunState, newest_checkpoint, save_checkpoint
from service.telemetry.metrics import Metrics
from service.training import checkpoint_writer
from service.training.checkpoint_writer import BackgroundSaver, CheckpointWriter


def test_a_full_disk_costs_a_checkpoint_but_neither_the_run_nor_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, said = Metrics(CollectorRegistry()), []
    tensors = {"towers-0.safetensors": {"w": torch.ones(3)}}
    writer = BackgroundSaver(CheckpointWriter(tmp_path, {}, metrics, keep=2, resumed_from=None, say=said.append))
    writer.submit(RunState(step=1), tensors)
    assert writer.wait()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", full)
    writer.submit(RunState(step=2), tensors)
    assert not writer.wait()
    assert "checkpoint of step 2 failed" in said[0] and "step-00000001" in said[0]
    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save_checkpoint)
    writer.submit(RunState(step=3), tensors)
    assert writer.close()
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state.step == 3
    get = metrics.registry.get_sample_value
    assert get("trainer_checkpoint_attempts_total") == 3 and get("trainer_checkpoint_failures_total") == 1
