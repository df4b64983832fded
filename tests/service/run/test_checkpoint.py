"""Checkpoints: whole or absent, verified when read, never losing the last good one."""

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from model.alexnet import AlexNet, ModelConfig
from model.optim import MomentumSGD, OptimConfig
from networks import copy_tensors
from pipeline.command import InputError
from pipeline.files import fsync_folder
from service.run import checkpoint
from service.run.checkpoint import (
    FOLDER,
    RunState,
    Validation,
    checkpoints,
    clear_unfinished,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    read_tensors,
    read_weights,
    restore,
    save_checkpoint,
)

RUN = {"recipe": "test"}


def network(seed: int = 0, average_decay: float = 0.0) -> tuple[AlexNet, MomentumSGD]:
    model = AlexNet(ModelConfig(fc_width=16), classes=3, crop=67, seed=seed)
    return model, MomentumSGD(OptimConfig(average_decay=average_decay), dict(model.named_parameters()))


def history(*errors: float) -> tuple[Validation, ...]:
    return tuple(Validation(epoch=i + 1, step=i + 1, loss=1.0, top1=e, top5=0.0) for i, e in enumerate(errors))


def save_step(out: Path, step: int, *errors: float) -> Path:
    tensors = {"towers-0.safetensors": {"w": torch.full((4,), float(step))}}
    return save_checkpoint(
        out, RunState(step=step, position=8 * step, history=history(*errors)), tensors, RUN
    )  # errors of steps 1, 2…


def test_what_is_saved_comes_back_exactly(tmp_path: Path) -> None:
    model, optimizer = network(seed=1)
    for velocity in optimizer.velocities.values():
        velocity.normal_()
    state = RunState(
        step=7, position=56, restarts=2, history=history(0.5, 0.4), events=({"kind": "x", "step": 3, "epoch": 0.5},)
    )
    path = save_checkpoint(tmp_path, state, copy_tensors(model, optimizer), RUN)
    found = newest_checkpoint(tmp_path, print)
    assert found and found.path == path and found.state == state and found.run == RUN
    other, others = network(seed=2)
    restore(read_tensors(found).items(), other, others)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(optimizer.velocities[name], others.velocities[name])
        assert b.stride() == a.stride()  # channels-last kernels stay so


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_files_are_those_of_the_library_without_a_copy_in_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    """Byte for byte: of any shape, also of views, none and one number; and written piece by piece."""
    tensors = {
        "towers.0.b": torch.randn(3, 5).to(dtype),
        "towers.0.a": torch.randn(4, 6).to(dtype).t(),
        "towers.0.none": torch.empty(0, 2).to(dtype),
        "towers.0.é": torch.randn(()).to(dtype),
        "towers.0.large": torch.ones(1 << 23, dtype=dtype),
    }
    path = save_checkpoint(tmp_path, RunState(step=1), {"towers-0.safetensors": tensors}, {})
    expected = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert (path / "towers-0.safetensors").read_bytes() == expected
    assert (path / "towers-0.safetensors").stat().st_mode == (path / "state.json").stat().st_mode
    tracemalloc.start()
    save_checkpoint(tmp_path, RunState(step=2), {"towers-0.safetensors": tensors}, {})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(expected) / 4


def test_averages_come_back_exactly_and_are_the_network_that_is_used(tmp_path: Path) -> None:
    model, optimizer = network(seed=1, average_decay=0.9)
    for average in optimizer.averages.values():
        average.normal_()
    path = save_checkpoint(tmp_path, RunState(step=1), copy_tensors(model, optimizer), RUN)
    other, others = network(seed=2, average_decay=0.9)
    restore(read_tensors(read_checkpoint(path)).items(), other, others)
    used = read_weights(path)
    assert used.keys() == optimizer.averages.keys() == dict(model.named_parameters()).keys()
    for name, w in model.named_parameters():
        assert torch.equal(w, others.parameters[name])
        assert torch.equal(optimizer.averages[name], others.averages[name])
        assert torch.equal(optimizer.averages[name], used[name])
    (kernels,) = read_weights(path, lambda name: name == "towers.1.conv1.weight").values()
    assert torch.equal(kernels, optimizer.averages["towers.1.conv1.weight"])


def test_averages_that_a_checkpoint_lacks_start_from_its_weights_and_others_are_left_out(tmp_path: Path) -> None:
    (old, old_optimizer), (new, new_optimizer) = network(seed=1), network(seed=2, average_decay=0.9)
    path = save_checkpoint(tmp_path, RunState(step=1), copy_tensors(old, old_optimizer), RUN)
    restore(read_tensors(read_checkpoint(path)).items(), new, new_optimizer)
    for name, w in old.named_parameters():
        assert torch.equal(new_optimizer.averages[name], w) and torch.equal(read_weights(path)[name], w)
        new_optimizer.averages[name].zero_()
    path = save_checkpoint(tmp_path, RunState(step=2), copy_tensors(new, new_optimizer), RUN)
    without, optimizer = network(seed=3)
    restore(read_tensors(read_checkpoint(path)).items(), without, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), without.parameters(), strict=True))


def test_a_copy_does_not_see_the_next_step() -> None:
    model, optimizer = network()
    tensors = copy_tensors(model, optimizer)
    before = tensors["towers-0.safetensors"]["towers.0.fc8.weight"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(tensors["towers-0.safetensors"]["towers.0.fc8.weight"], before)


def test_every_single_byte_counts(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1}:
            bad = bytearray(good)
            bad[place] ^= 0x01
            file.write_bytes(bad)
            if file.name == "manifest.json" and _still_says_the_same(bytes(bad), good):
                continue
            with pytest.raises(InputError, match="is no sound checkpoint"):
                read_checkpoint(path)
        file.write_bytes(good)
    read_checkpoint(path)


def _still_says_the_same(bad: bytes, good: bytes) -> bool:
    try:
        return json.loads(bad)["files"] == json.loads(good)["files"]
    except (ValueError, KeyError):
        return False


def test_loading_falls_back_to_the_newest_that_verifies_whatever_latest_says(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    (tmp_path / FOLDER / "step-00000003/state.json").unlink()
    (tmp_path / FOLDER / "step-00000002/towers-0.safetensors").write_bytes(b"")
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found and found.state.step == 1
    assert len(said) == 2 and "step-00000003" in said[0] and "another size" in said[1]
    assert newest_checkpoint(tmp_path / "nothing", said.append) is None
    (tmp_path / FOLDER / "step-00000001/manifest.json").write_text('{"schema_version": 9, "files": {}}')
    with pytest.raises(InputError, match="holds 3 checkpoints, none sound"):
        newest_checkpoint(tmp_path, said.append)


@pytest.mark.parametrize("kill_at", range(8))
def test_a_save_that_dies_anywhere_leaves_the_last_good_one(
    tmp_path: Path, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power goes at each durable act of a save in turn: nothing half-written is ever loaded, and a retry succeeds."""
    save_step(tmp_path, 1)
    acts = 0

    class PowerCut(BaseException):
        pass

    def counted(function):
        def act(*arguments):
            nonlocal acts
            acts += 1
            if acts > kill_at:
                raise PowerCut
            return function(*arguments)

        return act

    monkeypatch.setattr(checkpoint, "write_atomic", counted(checkpoint.write_atomic))
    monkeypatch.setattr(checkpoint, "fsync_folder", counted(fsync_folder))
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # a dead process cleans nothing up
    try:
        save_step(tmp_path, 2)
    except PowerCut:
        pass
    monkeypatch.undo()
    clear_unfinished(tmp_path)
    assert not list((tmp_path / FOLDER).glob(".*"))
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state.step in (1, 2)
    save_step(tmp_path, 3)
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state.step == 3


def test_pruning_keeps_the_newest_the_best_and_the_one_resumed_from(tmp_path: Path) -> None:
    errors = [0.9, 0.5, 0.8, 0.8, 0.8, 0.8]
    paths = [save_step(tmp_path, i + 1, *errors[: i + 1]) for i in range(6)]
    removed, unremoved = prune_checkpoints(tmp_path, 2, paths[0], set())
    assert set(removed) == {paths[2], paths[3]} and not unremoved
    assert set(checkpoints(tmp_path)) == {paths[0], paths[1], paths[4], paths[5]}


def test_pruning_does_not_count_a_damaged_checkpoint(tmp_path: Path) -> None:
    paths = [save_step(tmp_path, step) for step in (1, 2, 3)]
    (paths[2] / "state.json").write_bytes(b"{}")
    assert prune_checkpoints(tmp_path, 2, None, set()) == ([], {})
    assert set(checkpoints(tmp_path)) == set(paths)


@pytest.mark.parametrize("cut", ["before the second rename", "after it", "never"])
def test_a_step_saved_again_is_never_missing(tmp_path: Path, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 4)
    rename, renames = Path.rename, []

    def counted(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == {"before the second rename": 2}.get(cut):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted)
    if cut != "never":
        monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)
    try:
        save_step(tmp_path, 4, 0.9, 0.8, 0.7, 0.6)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    clear_unfinished(tmp_path)
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state.step == 4
    assert len(found.state.history) == (0 if cut == "before the second rename" else 4)
    assert not list((tmp_path / FOLDER).glob(".*"))


@contextmanager
def unremovable(monkeypatch: pytest.MonkeyPatch, place: Path, how: str) -> Iterator[None]:
    """A checkpoint of which something stays: it is a mount, or NFS keeps a file that is open, or it is another's."""

    def refuse(act: Any, number: int, met: Callable[[Path], bool]) -> Any:
        def acted(path: Any, *arguments: Any, **options: Any) -> Any:
            if met(Path(path)):
                raise OSError(number, os.strerror(number), str(path))
            return act(path, *arguments, **options)

        return acted

    with monkeypatch.context() as patch:
        if how == "busy":
            patch.setattr(Path, "rename", refuse(Path.rename, errno.EBUSY, lambda path: path == place))
        elif how == "open on NFS":  # the folder is renamed and its files go, but for .nfs0001
            held = place / ".nfs0001"
            held.write_bytes(b"open elsewhere")
            patch.setattr(os, "unlink", refuse(os.unlink, errno.EBUSY, lambda path: path.name == held.name))
        else:
            patch.setattr(Path, "rename", refuse(Path.rename, errno.EACCES, lambda path: path == place))
        yield


@pytest.mark.parametrize("how", ["busy", "open on NFS", "another's"])
def test_what_cannot_be_removed_is_left_told_and_tried_again(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [save_step(tmp_path, step) for step in (1, 2, 3)]
    with unremovable(monkeypatch, paths[0], how):
        left = paths[0]
        for _ in range(2):
            _, unremoved = prune_checkpoints(tmp_path, 2, None, set())
            ((left, error),) = unremoved.items()
            assert error.errno and left.parent == paths[0].parent and left.exists()
            # Never half a checkpoint under a checkpoint's name.
            assert left == paths[0] or (left.name.startswith(".removed-step-00000001-") and not paths[0].exists())
            assert all(read_checkpoint(path) for path in checkpoints(tmp_path))
        clear_unfinished(tmp_path)  # as the next start does
        told = capsys.readouterr().err
        assert how != "open on NFS" or f"{left} cannot be removed (Device or resource busy); it is left" in told
        save_step(tmp_path, 4)
        save_step(tmp_path, 4, 0.5, 0.5, 0.5, 0.5)  # the same again: what is in the way has another name
    _, unremoved = prune_checkpoints(tmp_path, 2, None, set())
    assert not unremoved and [path.name for path in sorted(paths[0].parent.iterdir())] == [
        paths[2].name,
        "step-00000004",
    ]


def test_folders_of_others_stay(tmp_path: Path) -> None:
    path = save_step(tmp_path, 1)
    others = [path.with_name(name) for name in (".ipynb_checkpoints", ".snapshot", ".tmp")]
    for other in others:
        other.mkdir()
    path.with_name(".removed-step-00000001-link").symlink_to(path)
    clear_unfinished(tmp_path)
    assert prune_checkpoints(tmp_path, 2, None, set()) == ([], {})
    assert all(other.exists() for other in others) and read_checkpoint(path)


def test_a_step_that_cannot_be_saved_again_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_step(tmp_path, 4)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="Input/output error"):
            save_step(tmp_path, 4, 0.9, 0.8, 0.7, 0.6)
    assert read_checkpoint(path).state.history == () and [path] == list(path.parent.iterdir())


def test_a_replaced_checkpoint_that_cannot_be_put_back_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_step(tmp_path, 4)
    replaced = path.rename(path.with_name(f".replaced-{path.name}-0123abcd"))

    def failing(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(InputError, match=r"cannot be renamed to step-00000004 \(Read-only file system\)"):
            clear_unfinished(tmp_path)
    prune_checkpoints(tmp_path, 2, None, set())
    assert replaced.exists()
    clear_unfinished(tmp_path)
    assert read_checkpoint(path)
