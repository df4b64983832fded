"""A worker that hangs says where, and ends itself, so that it is started again; real processes."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from processes import PATIENCE, command, losses, run, start, torchrun, wait_until
from service.run.checkpoint import checkpoints, step_of

PROGRAM = Path(__file__).with_name("hanging_worker.py")


def hanging(shards: Path, out: Path, *options: str) -> list[str]:
    """Twelve steps, a checkpoint after every second one; a second without progress is a stall."""
    every = ["--epochs", "4", "--batch-size", "10", "--checkpoint-every", "2", "--stall-seconds", "1"]
    return [sys.executable, str(PROGRAM), *command(shards, out, *every, *options)[3:]]


def test_a_rank_that_sleeps_for_ever_ends_itself_with_all_stacks_and_the_next_start_goes_on(
    shards: Path, tmp_path: Path
) -> None:
    status, output = run(hanging(shards, tmp_path), HANG="sleep")
    assert status == 1
    told = re.findall(
        r"no progress for \d+ s while training, expected some within 1 s; it is ended( 2 s from now)?", output
    )
    assert told[-2:] == [" 2 s from now", ""]  # a slow save may be one before that passes
    stacks = (tmp_path / "stacks-rank0.txt").read_text()
    assert stacks.count("sleeps_for_ever") == 2 and "in _watch" in stacks and "s while training" in stacks
    assert step_of(checkpoints(tmp_path)[0]) == 4
    status, output = run(command(shards, tmp_path, "--epochs", "4", "--batch-size", "10", "--checkpoint-every", "2"))
    assert status == 0 and "restart 1" in output
    assert list(losses(tmp_path)) == list(range(1, 13))


@pytest.mark.slow
def test_where_the_interpreter_itself_hangs_the_process_ends_too(shards: Path, tmp_path: Path) -> None:
    status, output = run(hanging(shards, tmp_path), HANG="lock")
    assert status == 1 and "Timeout" in output and "sleeps_for_ever" in output


@pytest.mark.slow
def test_of_two_ranks_both_end_and_torchrun_starts_them_again(shards: Path, tmp_path: Path) -> None:
    arguments = torchrun(hanging(shards, tmp_path), 2, "--max-restarts", "1")
    status, output = run(arguments, HANG="sleep")
    assert status == 0, output
    assert list(losses(tmp_path)) == list(range(1, 13))
    assert "sleeps_for_ever" in (tmp_path / "stacks-rank1.txt").read_text()
    waiting = (tmp_path / "stacks-rank0.txt").read_text()
    assert "sleeps_for_ever" not in waiting
    (record,) = {line.partition(": ")[2] for line in waiting.splitlines() if line.startswith("Last exchanges")}
    assert json.loads(record)


@pytest.mark.slow
def test_a_process_that_was_stopped_meanwhile_has_not_hung(shards: Path, tmp_path: Path) -> None:
    """SIGSTOP for longer than three times the limit: no second of it was the worker's."""
    worker = start(command(shards, tmp_path, "--epochs", "100000", "--stall-seconds", "4"))
    wait_until(lambda: len(losses(tmp_path)) > 3, worker)
    worker.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
    # Time is what is tested: there is no condition to wait for.
    signal.sigtimedwait([signal.SIGUSR1], 14)
    before = len(losses(tmp_path))
    worker.send_signal(signal.SIGCONT)
    wait_until(lambda: len(losses(tmp_path)) > before + 3, worker)
    worker.terminate()
    output, _ = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 128 + signal.SIGTERM, output
