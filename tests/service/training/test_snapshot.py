"""Snapshots of weights and velocities: the same bytes by either way, and none of a later step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.optim import OptimConfig
from model.step import train_step
from networks import copy_tensors
from service.run.checkpoint import RunState, Tensors, newest_checkpoint, read_tensors, save_checkpoint
from service.training import snapshot
from service.training.snapshot import ALIGNMENT, Snapshots, pack, views_of
from steps import CONFIG, Bench, examples


def trained(precision: Any = "float32") -> Bench:
    """A network with averages, whose velocities are not zero, and whose kernels lie in channels-last order."""
    bench = Bench(replace(CONFIG, precision=precision), OptimConfig(average_decay=0.9))
    bench.run(train_step, examples())
    return bench


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    assert {file: list(named) for file, named in ours.items()} == {file: list(named) for file, named in theirs.items()}
    for file, named in theirs.items():
        for name, tensor in named.items():
            assert ours[file][name].dtype == tensor.dtype and ours[file][name].is_contiguous()
            assert torch.equal(ours[file][name], tensor), name


def test_packed_tensors_come_back_whatever_their_types_sizes_and_strides() -> None:
    tensors = {
        "a": {
            "odd": torch.arange(5, dtype=torch.uint8),
            "scalar": torch.tensor(3.5, dtype=torch.float64),
            "empty": torch.zeros(0, 4),
            "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        },
        "b": {"half": torch.randn(7, 3).bfloat16(), "transposed": torch.randn(6, 5).T},
    }
    buffer = pack(tensors)
    views = views_of(buffer, tensors)
    assert_equal(views, tensors)
    starts = [
        view.data_ptr() - buffer.data_ptr() for named in views.values() for view in named.values() if len(view.shape)
    ]
    assert all(start % ALIGNMENT == 0 for start in starts)


class FakeGPU:
    """torch.cuda's streams and events, for tensors of the CPU: what is asked of them, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def Event(self) -> "FakeGPU":
        return self

    def Stream(self, device: torch.device) -> "FakeGPU":
        return self

    def record(self) -> None:
        self.calls.append("record")

    def wait_event(self, event: "FakeGPU") -> None:
        self.calls.append("wait")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    @contextmanager
    def stream(self, stream: "FakeGPU") -> Iterator[None]:
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    """The way of a GPU, taken with tensors of the CPU."""
    fake = FakeGPU()
    for name in ("Event", "Stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(snapshot, "on_gpu", lambda tensors: True)
    monkeypatch.setattr(snapshot, "host_memory", lambda size, pinned: torch.empty(size, dtype=torch.uint8))
    return fake


def test_on_a_cpu_a_snapshot_is_a_copy_in_memory_that_is_kept() -> None:
    bench = trained()
    snapshots = Snapshots(bench.model, bench.optimizer)
    buffers: set[int] = set()
    for step in (1, 2):
        expected = copy_tensors(bench.model, bench.optimizer)
        fetch = snapshots.take()
        bench.run(train_step, examples(first=8 * step))
        assert_equal(fetch(), expected)
        buffers.add(next(iter(next(iter(fetch().values())).values())).untyped_storage().data_ptr())
    assert len(buffers) == 1


def test_on_a_gpu_it_is_cloned_there_and_fetched_into_one_buffer_behind_an_event(gpu: FakeGPU, tmp_path) -> None:
    bench = trained()
    snapshots = Snapshots(bench.model, bench.optimizer)
    buffers: set[int] = set()
    for step in (1, 2):
        expected = copy_tensors(bench.model, bench.optimizer)
        fetch = snapshots.take()
        bench.run(train_step, examples(first=8 * step))  # the steps go on before it is fetched
        found = fetch()
        assert_equal(found, expected)
        assert gpu.calls == ["record", "wait", "synchronize"] * step
        buffers.add(next(iter(next(iter(found.values())).values())).untyped_storage().data_ptr())
        save_checkpoint(tmp_path, RunState(step=step), found, {})
        saved = newest_checkpoint(tmp_path, print)
        assert saved and saved.state.step == step
        for name, tensor in read_tensors(saved).items():
            assert any(name in named and torch.equal(named[name], tensor) for named in expected.values())
    assert len(buffers) == 1


def test_no_second_clone_is_made_while_one_waits(gpu: FakeGPU) -> None:
    bench = trained()
    snapshots = Snapshots(bench.model, bench.optimizer)
    fetch = snapshots.take()
    with pytest.raises(AssertionError, match="was not fetched"):
        snapshots.take()
    fetch()
    snapshots.take()
