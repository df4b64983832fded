"""What is not the work goes wrong and the work goes on: a disk without room, nobody who reads, a closed terminal."""

import json
import resource
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from processes import command, losses, start, torchrun, wait_until
from service.run.checkpoint import FOLDER, newest_checkpoint

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def address(worker: subprocess.Popen[str]) -> str:
    """Where a worker says that it serves."""
    assert worker.stdout
    lines = iter(worker.stdout.readline, "")
    return next(line.split()[1].rstrip(",") for line in lines if line.startswith("serving "))


def alerts(url: str) -> list[tuple[str, str]]:
    """The alerts of the page, with their severities, sorted; up to a second old, as the server keeps a status."""
    with urllib.request.urlopen(f"{url}api/status") as response:
        return sorted((each["name"], each["severity"]) for each in json.load(response)["alerts"])


def counted(url: str, to: str) -> float:
    """How many writes have failed, as Prometheus sees it."""
    with urllib.request.urlopen(f"{url}metrics") as response:
        lines = response.read().decode().splitlines()
    return next(
        float(line.split()[-1]) for line in lines if line.startswith(f'trainer_failed_writes_total{{to="{to}"}}')
    )


def all_are_saved(out: Path) -> bool:
    """Whether the newest checkpoint has every step of the log, and the log has every step."""
    newest = newest_checkpoint(out, print)
    return newest is not None and list(losses(out)) == list(range(1, newest.state.step + 1))


def test_neither_a_full_disk_nor_a_console_without_a_reader_ends_a_run(shards: Path, tmp_path: Path) -> None:
    """A file may have 4,096 bytes until the test gives more; the console's reader goes; then the terminal is closed."""
    # No bytecode either: a Python of today writes half of it where there is no room, and takes it for whole.
    words = [
        "env",
        "--default-signal=HUP",
        "PYTHONDONTWRITEBYTECODE=1",
        "bash",
        "-c",
        'ulimit -S -f 4; exec "$@"',
        "bash",
    ]
    limited = [*words, *command(shards, tmp_path / "run", "--epochs", "100000")]
    worker = start([*limited, "--checkpoint-every", "20"])
    url = address(worker)
    wait_until(lambda: counted(url, "log") > 0, worker)
    wait_until(lambda: ("TrainerCheckpointFailing", "critical") in alerts(url), worker)  # they are larger than that
    wait_until(lambda: ("TrainerWritesFailing", "warning") in alerts(url), worker)
    assert not (tmp_path / "run" / FOLDER / "LATEST").exists()
    assert worker.stdout
    worker.stdout.close()
    wait_until(lambda: counted(url, "console") > 0, worker)  # each epoch prints a line
    wait_until(lambda: ("TrainerConsoleLost", "info") in alerts(url), worker)
    seen = len(losses(tmp_path / "run"))
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, UNLIMITED)  # there is room again
    wait_until(lambda: len(losses(tmp_path / "run")) > seen + 20, worker)
    wait_until(lambda: (tmp_path / "run" / FOLDER / "LATEST").exists(), worker)
    wait_until(lambda: alerts(url) == [("TrainerConsoleLost", "info")], worker)
    worker.send_signal(signal.SIGHUP)
    assert worker.wait(60) == 129 and all_are_saved(tmp_path / "run")


@pytest.mark.slow
def test_nohup_keeps_a_run_alive(shards: Path, tmp_path: Path) -> None:
    words = ["env", "--ignore-signal=HUP", *command(shards, tmp_path, "--epochs", "100000")]
    worker = start(words)
    wait_until(lambda: len(losses(tmp_path)) > 1, worker)
    worker.send_signal(signal.SIGHUP)
    seen = len(losses(tmp_path))
    wait_until(lambda: len(losses(tmp_path)) > seen + 5, worker)
    worker.terminate()
    output = worker.communicate()[0]
    assert worker.returncode == 143 and "stopped by SIGTERM" in output and all_are_saved(tmp_path)


def launch(shards: Path, out: Path) -> list[str]:
    """Two ranks, by the launcher."""
    python, _, _, *arguments = command(shards, out, "--epochs", "100000", "--device", "cpu")
    return [python, "-m", "service.launch", "--nproc-per-node", "2", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("nohup", [False, True], ids=["", "nohup"])
@pytest.mark.parametrize("by", ["launcher", "torchrun"])
def test_ranks_save_when_the_terminal_closes(shards: Path, tmp_path: Path, by: str, nohup: bool) -> None:
    """Under nohup the launcher's go on; torchrun's save, since torchrun takes no heed of nohup."""
    ours = (
        launch(shards, tmp_path) if by == "launcher" else torchrun(command(shards, tmp_path, "--epochs", "100000"), 2)
    )
    worker = start(["env", "--ignore-signal=HUP" if nohup else "--default-signal=HUP", *ours])
    wait_until(lambda: len(losses(tmp_path)) > 1, worker)
    worker.send_signal(signal.SIGHUP)
    if by == "launcher" and nohup:
        seen = len(losses(tmp_path))
        wait_until(lambda: len(losses(tmp_path)) > seen + 5, worker)
        worker.terminate()
    output = worker.communicate(timeout=120)[0]
    assert worker.returncode == {"launcher": 143 if nohup else 129, "torchrun": 1}[by], output
    assert "saved" in output and all_are_saved(tmp_path)
