import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.command import InputError
from pipeline.executors.ordered import ATTEMPTS, results_in_order
from pipeline.executors.pool import LocalPool


class Job(NamedTuple):
    """A number to double, after so many failures, which are counted in files."""

    number: int
    folder: Path
    failures: int = 0
    fatal: bool = False

    def __str__(self) -> str:
        return f"job {self.number}"


def double(job: Job) -> tuple[int, int]:
    """Twice the number, and the process that says so; fails or dies as the job says."""
    tried = len(list(job.folder.glob(f"{job.number}-*")))
    if tried < job.failures:
        (job.folder / f"{job.number}-{tried}").touch()
        if job.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError(f"failure {tried + 1}")
    return 2 * job.number, os.getpid()


def wrong(job: Job) -> int:
    (job.folder / f"{job.number}-{len(os.listdir(job.folder))}").touch()
    raise InputError("the call was wrong")


def full(job: Job) -> int:
    (job.folder / f"{job.number}-{len(os.listdir(job.folder))}").touch()
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(tmp_path: Path, workers: int) -> None:
    jobs = [Job(number, tmp_path) for number in range(20)]
    with results_in_order(double, jobs, LocalPool(workers)) as results:
        made = list(results)
    assert [job for job, _ in made] == jobs
    assert [result for _, (result, _) in made] == [2 * number for number in range(20)]
    assert {pid == os.getpid() for _, (_, pid) in made} == {workers == 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_are_taken_as_they_are_needed(tmp_path: Path, workers: int) -> None:
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield Job(number, tmp_path)

    with results_in_order(double, jobs(), LocalPool(workers)) as results:
        next(results)
        assert taken <= 3 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_fails_is_tried_again(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(number, tmp_path, failures=ATTEMPTS - 1 if number == 2 else 0) for number in range(5)]
    with results_in_order(double, jobs, LocalPool(workers)) as results:
        assert [result for _, (result, _) in results] == [0, 2, 4, 6, 8]
    notices = capsys.readouterr().err.splitlines()
    assert notices == [f"notice: job 2, try {n} of {ATTEMPTS}: failure {n}" for n in range(1, ATTEMPTS)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_fails_three_times_ends_the_run_with_its_reason(tmp_path: Path, workers: int) -> None:
    jobs = [Job(number, tmp_path, failures=99 if number == 3 else 0) for number in range(100)]
    done = []
    with (
        pytest.raises(InputError, match=r"^job 3 failed 3 times \(failure 3\), expected"),
        results_in_order(double, jobs, LocalPool(workers)) as results,
    ):
        done.extend(result for _, (result, _) in results)
    assert done == [0, 2, 4]
    assert len(os.listdir(tmp_path)) == ATTEMPTS


def test_a_dead_worker_has_its_tasks_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job(number, tmp_path, failures=2 if number == 4 else 0, fatal=True) for number in range(12)]
    with results_in_order(double, jobs, LocalPool(2)) as results:
        assert [result for _, (result, _) in results] == [2 * number for number in range(12)]
    assert "a worker died" in capsys.readouterr().err
    assert len(os.listdir(tmp_path)) == 2


def test_a_task_that_kills_its_worker_three_times_ends_the_run(tmp_path: Path) -> None:
    jobs = [Job(number, tmp_path, failures=99 if number == 1 else 0, fatal=True) for number in range(8)]
    with (
        pytest.raises(InputError, match=r"failed 3 times \(a worker died; was there memory"),
        results_in_order(double, jobs, LocalPool(2)) as results,
    ):
        list(results)
    assert len(os.listdir(tmp_path)) == ATTEMPTS


@pytest.mark.parametrize(("function", "error"), [(wrong, InputError), (full, OSError)])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_trying_again_cannot_mend_is_raised_at_once(
    tmp_path: Path, function: Callable[[Job], int], error: type[Exception], workers: int
) -> None:
    with pytest.raises(error), results_in_order(function, [Job(0, tmp_path)], LocalPool(workers)) as results:
        list(results)
    assert len(os.listdir(tmp_path)) == 1


def test_leaving_early_leaves_no_worker_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        results_in_order(double, [Job(number, tmp_path) for number in range(50)], LocalPool(2)) as results,
    ):
        next(results)
        raise KeyboardInterrupt
    deadline = time.monotonic() + 30
    while multiprocessing.active_children():
        assert time.monotonic() < deadline
        time.sleep(0.01)


FEW_FILES = """
import multiprocessing, os, resource
from pipeline.command import InputError
from pipeline.executors.ordered import results_in_order
from pipeline.executors.pool import LocalPool

with LocalPool(2).start():  # so that what multiprocessing keeps open has been opened
    pass
lowest = os.dup(0)
os.close(lowest)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in (0, 3, 6, 9):
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
    try:
        with results_in_order(abs, range(60), LocalPool(20)) as results:
            list(results)
    except InputError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for worker in multiprocessing.active_children():
        worker.join()
"""


def test_too_few_open_files_for_the_workers_is_said_and_leaves_none_behind() -> None:
    """From no file left at all to enough for a first worker."""
    done = subprocess.run([sys.executable, "-c", FEW_FILES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("worker processes cannot be started (Too many open files)") and "ulimit -n" in line
