"""The launcher: its exit status says what became of the run, with one process and with torchrun's."""

import signal
import sys
from pathlib import Path

import pytest

from processes import command, losses, rank_pids, run, start, wait_until
from service.run.checkpoint import newest_checkpoint


def launch(shards: Path, out: Path, count: int, *options: str) -> list[str]:
    worker = command(shards, out, *options)[3:]
    return [sys.executable, "-m", "service.launch", "--nproc-per-node", str(count), *worker]


@pytest.mark.slow
def test_a_stop_is_143_when_all_is_saved_and_a_finished_run_0(shards: Path, tmp_path: Path) -> None:
    worker = start(launch(shards, tmp_path, 2, "--epochs", "1000"))
    wait_until(lambda: len(losses(tmp_path)) >= 2, worker)
    worker.send_signal(signal.SIGTERM)
    output = worker.communicate()[0]
    assert worker.returncode == 143, output
    assert "Traceback" not in output
    checkpoint = newest_checkpoint(tmp_path, print)
    assert checkpoint and checkpoint.state.step == max(losses(tmp_path))
    steps = checkpoint.state.step + 1
    for count in (2, 1):  # the second time there is nothing left to do
        status, output = run(launch(shards, tmp_path, count, "--epochs", "1000", "--max-steps", str(steps)))
        assert (status, max(losses(tmp_path))) == (0, steps), output


@pytest.mark.slow
def test_a_stop_that_lost_steps_is_a_fault(shards: Path, tmp_path: Path) -> None:
    worker = start(launch(shards, tmp_path, 2, "--epochs", "1000"), TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    wait_until(lambda: len(losses(tmp_path)) >= 2 and len(rank_pids(worker)) == 2, worker)
    (tmp_path / "checkpoints").write_text("no folder")  # so that nothing can be saved
    worker.send_signal(signal.SIGTERM)
    output = worker.communicate()[0]
    assert worker.returncode == 1, output


@pytest.mark.parametrize(
    "options", ["--batch-size 0", pytest.param("--parallel 2014 --data.crop 500", marks=pytest.mark.slow)]
)
def test_a_wrong_call_is_2_and_said_once(shards: Path, tmp_path: Path, options: str) -> None:
    status, output = run(launch(shards, tmp_path, 2, *options.split()))
    assert status == 2, output
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1, output
