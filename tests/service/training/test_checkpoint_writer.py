"""Saving beside the loop, and under failure."""

import errno
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from service.run.checkpoint import State, newest, save
from service.telemetry.metrics import Metrics
from service.training import checkpoint_writer as saver
from service.training.checkpoint_writer import Saver, Writer


def test_a_full_disk_costs_a_checkpoint_but_neither_the_run_nor_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, said = Metrics(CollectorRegistry()), []
    tensors = {"towers-0.safetensors": {"w": torch.ones(3)}}
    writer = Saver(Writer(tmp_path, {}, metrics, keep=2, resumed_from=None, say=said.append))
    writer.submit(State(step=1), tensors)
    assert writer.wait()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saver, "save", full)
    writer.submit(State(step=2), tensors)
    assert not writer.wait()
    assert "checkpoint of step 2 failed" in said[0] and "step-00000001" in said[0]
    monkeypatch.setattr(saver, "save", save)
    writer.submit(State(step=3), tensors)
    assert writer.close()
    found = newest(tmp_path, print)
    assert found and found.state.step == 3
    get = metrics.registry.get_sample_value
    assert get("trainer_checkpoint_attempts_total") == 3 and get("trainer_checkpoint_failures_total") == 1
