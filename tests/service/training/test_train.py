"""The worker as a process: exact resumes, signals, what it writes and serves, and what it refuses."""

import json
import os
import signal
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from model.alexnet import ModelConfig
from model.flop import training_flops_per_picture
from model.optim import OptimConfig, rates_at
from processes import (
    MODERN,
    command,
    losses,
    records,
    run,
    small_shards,
    start,
    torchrun,
    wait_until,
    weights,
    wrong_in_turn,
)
from service.network.read import load
from service.run.checkpoint import FOLDER, checkpoints, newest_checkpoint, save_checkpoint


def assert_same_end(out: Path, reference: Path, step: int) -> None:
    """Weights, momentum and logged losses are bit for bit those of the reference."""
    ours, theirs = weights(out, step), weights(reference, step)
    assert ours.keys() == theirs.keys() and any(name.startswith("momentum.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(out) == losses(reference)
    assert list(losses(out)) == list(range(1, step + 1))


@pytest.mark.parametrize("mode", ["--no-compile", pytest.param("--compile", marks=pytest.mark.slow)])
def test_an_interrupted_run_equals_an_uninterrupted_one(shards: Path, tmp_path: Path, mode: str) -> None:
    """12 steps of 40 over 30 pictures, an epoch's end in each: SIGTERM about step 5, SIGKILL after step 9."""
    # Large enough batches that a signal sent when a step is seen arrives within the next one or two.
    options = ("--max-steps", "12", "--checkpoint-every", "3", "--batch-size", "40", "--epochs", "50", mode)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = run(command(shards, whole, *options))
    assert status == 0, output

    worker = start(command(shards, broken, *options))
    wait_until(lambda: 4 in losses(broken), worker)
    worker.send_signal(signal.SIGTERM)
    output = worker.communicate()[0]
    assert worker.returncode == 143, output
    stopped = newest_checkpoint(broken, print)
    assert stopped and 4 <= stopped.state.step < 9, "the signal came too late"

    worker = start(command(shards, broken, *options))
    wait_until(lambda: (broken / FOLDER / "step-00000009").exists(), worker)
    worker.kill()
    output = worker.communicate()[0]
    assert worker.returncode == -signal.SIGKILL and "restart 1" in output

    status, output = run(command(shards, broken, *options))
    assert status == 0 and "restart 2" in output
    assert_same_end(broken, whole, 12)
    assert [r["epoch"] for r in records(broken) if "validation" in r] == [step * 40 // 30 for step in range(1, 13)]
    validation = [r for r in records(whole) if "validation" in r]
    assert [r for r in records(broken) if "validation" in r] == validation


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["--no-compile", "--compile"])
def test_a_modern_run_resumes_bit_for_bit_and_its_averaged_network_is_what_it_measures(
    shards: Path, tmp_path: Path, mode: str
) -> None:
    """12 steps of 10 over 30 pictures, the second time in two parts, which end in the middle of an epoch."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = run(command(shards, whole, *MODERN, mode))
    assert status == 0 and "weights are averaged (decay 0.9)" in output, output
    for steps in ("5", "0"):
        status, output = run(command(shards, broken, *MODERN, mode, "--max-steps", steps))
        assert status == 0, output
    assert_same_end(broken, whole, 12)
    measured = [[r for r in records(out) if "validation" in r or "evaluation" in r] for out in (whole, broken)]
    assert measured[0] == measured[1] and len(measured[0]) == 5
    end = weights(whole, 12)
    averages = {name.removeprefix("average."): w for name, w in end.items() if name.startswith("average.")}
    assert all(torch.equal(w, averages[name]) for name, w in load(whole, "cpu").model.named_parameters())
    assert not any(torch.equal(w, end[name]) for name, w in averages.items())
    # Every step has its rate in the log, and none of them is an event.
    config = OptimConfig(lr=0.5, schedule="cosine", warmup_epochs=1)
    expected = [rates_at(config, step / 3, [], 4).base for step in range(12)]
    assert [r["learning_rate"] for r in records(whole) if "gradient_norm" in r] == expected
    assert not (whole / "events.jsonl").read_text()


def test_ctrl_c_saves_and_exits_130(shards: Path, tmp_path: Path) -> None:
    worker = start(command(shards, tmp_path))
    wait_until(lambda: losses(tmp_path), worker)
    worker.send_signal(signal.SIGINT)
    output = worker.communicate()[0]
    assert worker.returncode == 130, output
    checkpoint = newest_checkpoint(tmp_path, print)
    assert checkpoint and checkpoint.state.step == max(losses(tmp_path))
    assert "stopped by SIGINT" in output


def test_too_many_damaged_samples_end_the_run_saved_with_a_line(tmp_path: Path) -> None:
    shards, out = small_shards(tmp_path), tmp_path / "run"
    for row in np.load(shards / "train/samples.npy")[:11]:
        with open(shards / f"train/{row['shard']:06d}.tar", "r+b") as stream:
            stream.seek(int(row["offset"]) + 20)
            stream.write(b"damage")
    status, output = run(command(shards, out, "--epochs", "2", "--checkpoint-every", "100"))
    assert status == 2 and "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "11 samples of" in line and "(000000.tar: 8, 000001.tar: 3), expected at most 10 an epoch" in line
    saved = newest_checkpoint(out, print)
    assert saved and 0 < saved.state.step == max(losses(out)) < 4  # before the end of the epoch


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_run_still_ends_the_same(shards: Path, tmp_path: Path) -> None:
    options = ("--checkpoint-every", "2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(command(shards, whole, *options, "--max-steps", "6"))[0] == 0
    assert run(command(shards, broken, *options, "--max-steps", "4"))[0] == 0
    file = broken / FOLDER / "step-00000004/towers-1.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    status, output = run(command(shards, broken, *options, "--max-steps", "6"))
    assert status == 0 and "towers-1.safetensors is damaged" in output and "step-00000002, restart 1" in output
    assert_same_end(broken, whole, 6)


@pytest.mark.slow
def test_a_stop_during_validation_leaves_it_to_the_resume(shards: Path, tmp_path: Path) -> None:
    """The last step done, its validation not: a checkpoint without the last error, made by taking it out."""
    arguments = command(shards, tmp_path, "--epochs", "1")
    assert run(arguments)[0] == 0
    checkpoint = newest_checkpoint(tmp_path, print)
    assert checkpoint and len(checkpoint.state.history) == 1
    tensors = {f.name: load_file(f) for f in sorted(checkpoint.path.glob("*.safetensors"))}
    save_checkpoint(tmp_path, replace(checkpoint.state, history=()), tensors, checkpoint.run)
    status, output = run(arguments)
    assert status == 0 and "epoch 1: validation" in output
    again = newest_checkpoint(tmp_path, print)
    assert again and again.state.history == checkpoint.state.history


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoints_by_time_change_no_number_of_the_run(shards: Path, tmp_path: Path, ranks: int) -> None:
    """3 steps of an epoch of 8: one after each where any time is too long, else one at the end."""
    steps: dict[str, list[str]] = {}
    for seconds in ("0.000001", "0"):
        call = command(
            shards, tmp_path / seconds, "--max-steps", "3", "--batch-size", "4", "--checkpoint-seconds", seconds
        )
        status, output = run(torchrun(call, ranks) if ranks > 1 else call)
        assert status == 0, output
        steps[seconds] = [path.name for path in checkpoints(tmp_path / seconds)]
    assert steps == {"0.000001": ["step-00000003", "step-00000002", "step-00000001"], "0": ["step-00000003"]}
    assert_same_end(tmp_path / "0.000001", tmp_path / "0", 3)


TOLD_WHILE_VALIDATING = """
import os, signal, sys
from pipeline.command import run_command
from service import train
from service.training import validation

def told(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return plain(*arguments)

plain, validation.eval_step = validation.eval_step, told
run_command(train.main)
"""


@pytest.mark.slow
def test_a_stop_during_the_last_validation_does_not_count_as_done(shards: Path, tmp_path: Path) -> None:
    arguments = command(shards, tmp_path, "--epochs", "1")
    status, output = run([arguments[0], "-c", TOLD_WHILE_VALIDATING, *arguments[3:]])
    assert status == 143 and "stopped by SIGTERM at step 4, saved" in output, output
    status, output = run(arguments)
    assert status == 0 and "epoch 1: validation" in output


def test_a_finished_run_is_not_trained_further(shards: Path, tmp_path: Path) -> None:
    arguments = command(shards, tmp_path, "--max-steps", "2")
    assert run(arguments)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}
    status, output = run(arguments)
    assert status == 0 and "done at step 2" in output and "evaluation" not in output  # its epochs are not done
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}


def test_metrics_and_health_are_served_while_it_trains(shards: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--epochs", "1000", "--peak-tflops", "0.001", "--checkpoint-every", "1")
    worker = start(command(shards, tmp_path, "--port", str(port), *options))
    wait_until(lambda: len([r for r in records(tmp_path) if "validation" in r]) >= 1, worker)

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def samples() -> dict[str, float]:
        families = text_string_to_metric_families(get("/metrics"))
        return {s.name + str(s.labels or ""): s.value for family in families for s in family.samples}

    first = samples()
    wait_until(lambda: samples()["trainer_samples_total"] > first["trainer_samples_total"], worker)
    assert first["trainer_samples_total"] == 8 * first["trainer_steps_total"]
    assert 0 <= first["trainer_validation_error_ratio{'top': '1'}"] <= 1
    assert first["trainer_nonfinite_steps_total"] == 0 and first["trainer_checkpoint_failures_total"] == 0
    flop = training_flops_per_picture(ModelConfig(fc_width=64), classes=3, crop=67)
    assert first["trainer_mfu_ratio"] == pytest.approx(first["trainer_samples_per_second"] * flop / 1e9)
    newest_files = newest_checkpoint(tmp_path, print)
    assert newest_files and first["trainer_checkpoint_size_bytes"] == pytest.approx(
        sum(f.stat().st_size for f in newest_files.path.iterdir()), rel=0.01
    )  # its state grows by a few bytes a step
    assert first["process_resident_memory_bytes"] > 1e8 and first["trainer_device_memory_bytes{'state': 'peak'}"] >= 0
    assert first["trainer_events_total{'kind': 'learning-rate'}"] >= 0
    assert json.loads(get("/healthz"))["status"] == "ok"
    # Only loopback: another address of this machine has nobody listening.
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass
    worker.terminate()
    assert worker.communicate() and worker.returncode == 143


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    shards: Path, tmp_path: Path
) -> None:
    options = ("--checkpoint-every", "1", "--optim.lr", "1e12")
    status, output = run(command(shards, tmp_path, *options))
    assert status == 1, output
    assert "expected finite numbers" in output and "last good checkpoint" in output and "lower --optim.lr" in output
    checkpoint = newest_checkpoint(tmp_path, print)
    assert checkpoint and str(checkpoint.path) in output
    assert all(torch.isfinite(t).all() for t in weights(tmp_path, checkpoint.state.step).values())
    assert max(losses(tmp_path)) == checkpoint.state.step  # the bad step is not logged as done


@pytest.mark.slow
def test_every_other_network_and_no_validation_train_too(tmp_path: Path) -> None:
    shards = small_shards(tmp_path, val=False)
    for recipe in ("paper", "source"):
        arguments = command(shards, tmp_path / recipe, "--max-steps", "2", "--model.init", "he")
        arguments[arguments.index("demo")] = recipe
        status, output = run([*arguments, "--model.pixel-std", "58"])
        assert status == 0, output
        assert "no validation split" in output
        assert len(losses(tmp_path / recipe)) == 2


def wrong(arguments: list[str]) -> str:
    """The one line that a wrong call gets, with exit status 2."""
    status, output = run(arguments)
    assert status == 2, output
    (line,) = output.splitlines()
    assert line.startswith("error: "), output
    return line


def test_wrong_calls_get_one_line_and_status_2(shards: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    assert run(command(shards, done, "--max-steps", "1"))[0] == 0
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert "seed 0 there, 5 here" in wrong(command(shards, done, "--max-steps", "2", "--seed", "5"))
    newer = tmp_path / "newer"
    newer.mkdir()
    fields = json.loads((shards / "dataset.json").read_text())
    (newer / "dataset.json").write_text(json.dumps({**fields, "schema_version": 99}))
    other, out = command(shards, done), tmp_path / "out"
    other[other.index("demo")] = "source"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        calls = {
            "recipe demo there, source here": other,
            "is not a folder, expected shards": command(tmp_path / "none", out),
            "schema version 99, expected 2": command(newer, out),
            f"port {port} cannot be used": command(shards, out, "--port", str(port)),
            "batch_size is 0, expected at least 1": command(shards, out, "--batch-size", "0"),
            "crop is 50 pixels, expected at least 63": [*command(shards, out), "--data.crop", "50"],
            "cannot be written": command(shards, shards / "dataset.json"),
        }
        if not torch.cuda.is_available():
            calls["device is gpu"] = command(shards, out, "--device", "gpu")
        for expected, line in zip(calls, wrong_in_turn(*calls.values()), strict=True):
            assert expected in line
    assert not (out / "run.json").exists()
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_two_workers_refuse_each_other(shards: Path, tmp_path: Path) -> None:
    worker = start(command(shards, tmp_path, "--epochs", "1000"))
    wait_until(lambda: losses(tmp_path), worker)
    assert "another worker is training in" in wrong(command(shards, tmp_path, "--epochs", "1000"))
    worker.terminate()
    worker.communicate()


def test_old_checkpoints_go_but_never_the_newest_two(shards: Path, tmp_path: Path) -> None:
    options = ("--max-steps", "7", "--checkpoint-every", "1", "--keep-checkpoints", "2")
    assert run(command(shards, tmp_path, *options))[0] == 0
    names = [path.name for path in checkpoints(tmp_path)]
    assert names[:2] == ["step-00000007", "step-00000006"] and len(names) <= 3  # and the best
    assert (tmp_path / FOLDER / "LATEST").read_text() == "step-00000007\n"
    assert not [name for name in os.listdir(tmp_path / FOLDER) if name.startswith(".")]
