"""Runs by workers of their own, processes of service.train, so that a run resumes, logs and ends as any other."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.host.cpus import usable_cores
from pipeline.progress import Advance
from service.ablation.measures import is_finished
from service.ablation.plan import PlannedRun
from service.run.log import LOG_FILE

LOOK_SECONDS: Final = 1.0  # between looks at what the workers have logged
LAST_BYTES: Final = 4096  # of a log: some lines
FRAME: Final = " │╭╮╰╯─"


def train(runs: Sequence[PlannedRun], *, jobs: int, epochs: int, advance: Advance) -> list[str]:
    """Train what is not finished, `jobs` runs at a time; returns a line for each run that ended with a fault.

    advance: told of each epoch that is done. Where this ends early, so do the workers, saved.
    """
    waiting, faults = deque[PlannedRun](), []
    done = dict.fromkeys(runs, 0)
    for run in runs:
        done[run] = min(int(epochs_of(run.folder)), epochs)
        advance(done[run], before=True)
        if not is_finished(run, epochs):
            waiting.append(run)
    workers: dict[PlannedRun, subprocess.Popen[bytes]] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                run = waiting.popleft()
                workers[run] = start(run, jobs)
            _wait(next(iter(workers.values())))
            for run, worker in list(workers.items()):
                status, now = worker.poll(), min(int(epochs_of(run.folder)), epochs)
                advance(now - done[run], name_of(run))
                done[run] = now
                if status is not None:
                    del workers[run]
                    if status:
                        faults.append(f"{name_of(run)} ended with status {status}: {last_line(run)} ({output_of(run)})")
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.wait()
    return faults


def start(run: PlannedRun, jobs: int) -> subprocess.Popen[bytes]:
    """The run's worker; what it says goes into a file beside its folder."""
    output_of(run).parent.mkdir(parents=True, exist_ok=True)
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}
    with output_of(run).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "service.train", *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**threads, **os.environ},
        )


def name_of(run: PlannedRun) -> str:
    """For people."""
    return f"{run.variant}, seed {run.seed}"


def output_of(run: PlannedRun) -> Path:
    """The file with what the run's worker said when it was last started."""
    return run.folder.with_name(f"{run.folder.name}.txt")


def last_line(run: PlannedRun) -> str:
    """Of what the worker said, without a frame about it; the file's name where it said nothing."""
    lines = (
        line.strip(FRAME) for line in reversed(output_of(run).read_text(encoding="utf-8", errors="replace").split("\n"))
    )
    return next((line for line in lines if line), str(output_of(run)))


def epochs_of(folder: Path) -> float:
    """Epochs that a run has logged, read from the end of its log; 0 before its first step."""
    with suppress(OSError), (folder / LOG_FILE).open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - LAST_BYTES))
        for line in reversed(log.read().splitlines()):
            with suppress(ValueError, KeyError, TypeError):  # the first is cut off, and not all are of steps
                return float(json.loads(line)["epoch"])
    return 0.0


def _wait(worker: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        worker.wait(LOOK_SECONDS)
