"""The worker under torchrun: any number of ranks goes on where another stopped, and a rank or a host may die."""

import os
import signal
import socket
import subprocess
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from processes import MODERN, command, losses, rank_pids, records, run, start, torchrun, wait_until, weights
from service.run.checkpoint import FOLDER, newest_checkpoint
from service.training.ranks import NCCL_ENVIRONMENT, set_nccl_environment

WORKER = str(Path(__file__).with_name("recording_worker.py"))
# Float64 sums in another order: the norm of the difference over the norm. A step errs by some hundred times 2^-53 of
# its gradient, 1e-14. Training at these rates amplifies that by the number of steps or so, as long as no unit is taken
# over ReLU's edge, and of a million units none lies within 1e-12 of it but by a chance of one in a million.
ROUNDING = 1e-10
LOGGED = 2**-22  # of a loss: the log has float32, where two numbers that nearly agree may be rounded apart


def assert_near(out: Path, reference: Path, step: int) -> None:
    """The same weights, momentum and losses up to rounding."""
    ours, theirs = weights(out, step), weights(reference, step)
    assert ours.keys() == theirs.keys() and any(name.startswith("momentum.") for name in theirs)
    for name in theirs:
        assert ours[name].dtype == torch.float64
        assert (ours[name] - theirs[name]).norm() <= ROUNDING * theirs[name].norm(), name
    assert list(losses(out)) == list(range(1, step + 1))
    assert list(losses(out).values()) == pytest.approx(list(losses(reference).values()), rel=LOGGED)


def in_float64(shards: Path, out: Path, *options: str) -> list[str]:
    """A small run whose numbers are good enough to compare; it needs RECORD."""
    arguments = command(shards, out, "--model.precision", "float32", *options)
    return [arguments[0], WORKER, *arguments[3:]]


def positions_by_step(folder: Path) -> dict[int, list[int]]:
    """What all ranks together trained on at each step, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            step, *positions = map(int, line.split())
            found[step] += positions
    return {step: sorted(positions) for step, positions in found.items()}


# A run of 2 in the layout of `auto`, towers, is in the tests below, and half of what 4 do.
MANY = ((1, 2, "auto"), (4, 6, "auto"), (3, 8, "auto"), (2, 11, "2014"), (1, 12, "auto"))
FEW = ((3, 8, "auto"), (1, 12, "auto"))


@pytest.mark.parametrize("phases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_run_goes_on_under_any_number_of_ranks_without_skipping_or_repeating_a_sample(
    shards: Path, tmp_path: Path, phases: tuple[tuple[int, int, str], ...]
) -> None:
    """12 steps of 10 over 30 pictures, by 1, 4, 3, 2 and 1 ranks, in three layouts: changes in the middle of epochs."""
    reference, out, record = tmp_path / "reference", tmp_path / "out", tmp_path / "record"
    record.mkdir()
    arguments = in_float64(shards, reference, "--batch-size", "10", "--max-steps", "12")
    assert run(arguments, RECORD=str(tmp_path))[0] == 0
    for ranks, steps, layout in phases:
        arguments = in_float64(shards, out, "--batch-size", "10", "--max-steps", str(steps), "--parallel", layout)
        status, output = run(torchrun(arguments, ranks) if ranks > 1 else arguments, RECORD=str(record))
        assert status == 0, output
        assert f"done at step {steps}" in output
    assert positions_by_step(record) == {step: list(range(10 * step - 10, 10 * step)) for step in range(1, 13)}
    assert_near(out, reference, 12)
    validation = [[r for r in records(folder) if "validation" in r] for folder in (out, reference)]
    assert [r["top1"] for r in validation[0]] == [r["top1"] for r in validation[1]]


@pytest.mark.slow
def test_a_modern_run_and_its_averages_go_on_under_any_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    """A tower each, whose averages rank 0 collects; then a replica each, then alone."""
    reference, out = tmp_path / "reference", tmp_path / "out"
    status, output = run(in_float64(shards, reference, *MODERN), RECORD=str(tmp_path))
    assert status == 0, output
    for ranks, steps, layout in ((2, 5, "tower"), (3, 8, "data"), (1, 0, "auto")):
        arguments = in_float64(shards, out, *MODERN, "--max-steps", str(steps), "--parallel", layout)
        status, output = run(torchrun(arguments, ranks) if ranks > 1 else arguments, RECORD=str(tmp_path))
        assert status == 0, output
    assert_near(out, reference, 12)
    names = weights(out, 12).keys()
    assert {f"average.towers.{tower}.fc8.bias" for tower in (0, 1)} <= names
    validation = [[r for r in records(folder) if "validation" in r] for folder in (out, reference)]
    assert [r["top1"] for r in validation[0]] == [r["top1"] for r in validation[1]]


@pytest.mark.slow
def test_a_rank_killed_is_started_again_and_the_run_ends_the_same_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    options = ("--max-steps", "10", "--checkpoint-every", "3", "--batch-size", "9")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = run(torchrun(command(shards, whole, *options), 2))
    assert status == 0, output
    launcher = start(torchrun(command(shards, broken, *options), 2, "--max-restarts", "1"))
    wait_until(lambda: (broken / FOLDER / "step-00000003").exists(), launcher)
    os.kill(rank_pids(launcher)[1], signal.SIGKILL)
    output = launcher.communicate()[0]
    assert launcher.returncode == 0, output
    assert "restart 1" in output and "rank 0 lost another" in output
    ours, theirs = weights(broken, 10), weights(whole, 10)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(broken) == losses(whole) and list(losses(whole)) == list(range(1, 11))


def test_what_one_rank_is_told_all_do_and_each_has_its_metrics(shards: Path, tmp_path: Path) -> None:
    launcher = start(torchrun(command(shards, tmp_path, "--epochs", "1000", "--batch-size", "9"), 2))
    served: dict[int, str] = {}
    assert launcher.stdout
    while len(served) < 2:
        line = launcher.stdout.readline()
        assert line, "torchrun ended"
        if "serving" in line:
            served[int(line.split()[1])] = line.split("serving ")[1].split(",")[0] + "metrics"

    def samples(rank: int) -> dict[str, float]:
        with urllib.request.urlopen(served[rank], timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {s.name: s.value for family in families for s in family.samples}

    wait_until(lambda: min(samples(rank)["trainer_steps_total"] for rank in (0, 1)) >= 3, launcher)
    for rank, pictures in ((0, 4), (1, 5)):  # of a batch of 9
        found = samples(rank)
        assert found["trainer_samples_total"] == pictures * found["trainer_steps_total"]
        assert found["trainer_loss"] > 0
    os.kill(rank_pids(launcher)[1], signal.SIGTERM)  # rank 1 alone
    output = launcher.communicate()[0]
    checkpoint = newest_checkpoint(tmp_path, print)
    assert checkpoint and f"stopped by another rank at step {checkpoint.state.step}, saved" in output
    assert checkpoint.state.step == max(losses(tmp_path))
    codes = [line for line in output.splitlines() if "exitcode" in line]
    assert codes and all("143" in line for line in codes), output


@pytest.mark.slow
def test_nccl_ends_a_process_at_once_unless_somebody_says_otherwise() -> None:
    by_torchrun = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "HOME": "/root"}
    set_nccl_environment(by_torchrun)
    assert by_torchrun == {**NCCL_ENVIRONMENT, "HOME": "/root"}
    by_user = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_FR_BUFFER_SIZE": "20"}
    set_nccl_environment(by_user)
    assert by_user == {**NCCL_ENVIRONMENT, "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_FR_BUFFER_SIZE": "20"}


@pytest.mark.slow
def test_a_wrong_call_is_said_once(shards: Path, tmp_path: Path) -> None:
    def errors(arguments: list[str], ranks: int) -> list[str]:
        status, output = run(torchrun(arguments, ranks))
        assert status == 1 and output.count("exitcode  : 2") >= 1, output  # torchrun's own is always 1
        return [line for line in output.splitlines() if line.startswith("error: ")]

    arguments = command(shards, tmp_path / "a", "--parallel", "tower+data")
    (line,) = errors(arguments, 2)
    assert "2 processes with parallel tower+data, expected an even number, at least 4" in line
    done = tmp_path / "done"
    assert run(command(shards, done, "--max-steps", "1"))[0] == 0
    (line,) = errors(command(shards, done, "--seed", "5"), 2)  # rank 0 alone knows
    assert "seed 0 there, 5 here" in line


def host(arguments: list[str], address: str, port: int, record: Path) -> subprocess.Popen[str]:
    """A torchrun with one rank on a loopback address, as on a host of its own; they meet at 127.0.0.1."""
    elastic = ["--nnodes", "1:2", "--max-restarts", "5", "--monitor-interval", "0.1", "--local-addr", address]
    elastic += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    # Each address is this machine's own, so torchrun cannot tell by it which of them is the place to meet.
    patience = "join_timeout=60,last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=10"
    elastic += ["--rdzv-conf", f"is_host={int(address == '127.0.0.1')},{patience}"]
    # Else a torchrun of 2.13 does not tell one that joins later where to meet; docs/operations.md says so.
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "RECORD": str(record)}
    return start(torchrun(arguments, 1, *elastic), **environment)


@pytest.mark.slow
def test_a_host_that_dies_is_done_without_and_its_replacement_is_taken_in(shards: Path, tmp_path: Path) -> None:
    reference, out = tmp_path / "reference", tmp_path / "out"
    # The rate is small, because how many steps there are is up to the machine.
    options = ["--batch-size", "9", "--checkpoint-every", "10", "--epochs", "100000"]
    options += ["--optim.lr", "0.0001", "--optim.schedule", "manual"]
    arguments, port = in_float64(shards, out, *options), free_port()
    first, second = (host(arguments, address, port, tmp_path) for address in ("127.0.0.1", "127.0.0.2"))
    wait_until(lambda: newest_step(out) >= 3, first)
    for pid in (*rank_pids(second).values(), second.pid):
        os.kill(pid, signal.SIGKILL)
    second.communicate()
    at = newest_step(out)
    wait_until(lambda: newest_step(out) > at, first)
    third = host(arguments, "127.0.0.3", port, tmp_path)
    wait_until(lambda: len(rank_pids(third)) == 1 and restarts(out) >= 2, third)
    at = newest_step(out)
    wait_until(lambda: newest_step(out) > at, third)
    for launcher in (first, third):
        launcher.terminate()
    output = first.communicate()[0] + third.communicate()[0]
    sizes = [line.split("rank 0 of ")[1][0] for line in output.splitlines() if "rank 0 of " in line]
    assert len(sizes) >= 2 and "1" not in sizes[1:-1], output
    # On a busy machine the torchruns may have lost each other once more, and the steps since the last checkpoint: one
    # process goes on from it, and every step is there once.
    last = newest_step(out) + 2
    for folder in (out, reference):
        arguments = in_float64(shards, folder, *options, "--max-steps", str(last))
        assert run(arguments, RECORD=str(tmp_path))[0] == 0, output
    assert_near(out, reference, last)


def restarts(out: Path) -> int:
    """That the newest checkpoint tells of."""
    checkpoint = newest_checkpoint(out, lambda warning: None)
    return checkpoint.state.restarts if checkpoint else 0


def newest_step(out: Path) -> int:
    """Of the run's finished checkpoints; 0 before the first."""
    return max((int(path.name.removeprefix("step-")) for path in (out / FOLDER).glob("step-*")), default=0)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
