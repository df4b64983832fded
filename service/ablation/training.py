"""Runs by workers of their own, processes of service.train, so that a run resumes, logs and ends as any other."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.files import make_folders
from pipeline.host.cpus import usable_cores
from pipeline.progress import Advance
from service.ablation.measures import history_of, is_finished
from service.ablation.plan import PlannedRun
from service.run.checkpoint import checkpoints
from service.run.log import LOG_FILE

LOOK_SECONDS: Final = 1.0  # between looks at what the workers have logged
LAST_BYTES: Final = 4096  # of a log: some lines
DIVERGED: Final = "expected finite numbers"  # of the last line of a run whose loss or gradient was not finite
FRAME: Final = " │╭╮╰╯─"  # about what tyro says of a wrong option


@dataclass(frozen=True, kw_only=True)
class Work:
    """How runs are trained, whichever they are."""

    shards: str | Path
    samples: int  # training pictures in them
    jobs: int = 1  # runs at a time
    options: tuple[str, ...] = ()  # of service.train, that change no result: --device, --no-compile


def train(
    runs: Sequence[PlannedRun],
    work: Work,
    advance: Advance,
    is_enough: Callable[[PlannedRun], bool] = lambda run: False,
) -> list[str]:
    """Train what is not finished; returns a line for each run that ended with a fault, which ends no other.

    advance: told of steps as they are done. is_enough: asked before a run starts and after each of its checkpoints;
    where it says so the run is stopped, saved. Where this ends early, so do the workers, saved.
    """
    waiting, faults = deque[PlannedRun](), []
    done: dict[PlannedRun, int] = {}
    asked: dict[PlannedRun, Path | None] = {}  # after which checkpoint
    for run in runs:
        finished = is_finished(history_of(run), run.epochs) or is_enough(run)
        done[run] = run.steps(work.samples) if finished else min(_last(run)[0], run.steps(work.samples))
        advance(done[run], before=True)
        if not finished:
            waiting.append(run)
    workers: dict[PlannedRun, subprocess.Popen[bytes]] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < work.jobs:
                run = waiting.popleft()
                workers[run] = start(run, work)
            _wait(next(iter(workers.values())))
            more, remarks = 0, []
            for run, worker in list(workers.items()):
                status, (step, epoch) = worker.poll(), _last(run)
                newest = next(iter(checkpoints(run.folder)), None)
                enough = newest != asked.get(run) and is_enough(run)
                asked[run] = newest
                if enough:
                    worker.terminate()
                    worker.wait()
                    status = 0
                # A resume does again what came after its checkpoint, which the bar has counted already.
                step = run.steps(work.samples) if enough else min(step, run.steps(work.samples))
                more, done[run] = more + max(0, step - done[run]), max(step, done[run])
                remarks.append(f"{run.name}, epoch {epoch:.1f} of {run.until}")
                if status is not None:
                    del workers[run]
                    if status:
                        faults.append(f"{run.folder} ended with status {status}: {last_line(run)} ({output_of(run)})")
            advance(more, "; ".join(remarks))
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.wait()
    return faults


def start(run: PlannedRun, work: Work) -> subprocess.Popen[bytes]:
    """The run's worker; what it says goes into a file beside its folder."""
    make_folders(output_of(run).parent)
    with output_of(run).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "service.train", *run.arguments(work.shards), *work.options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | threads_of(work.jobs),
        )


def threads_of(jobs: int) -> dict[str, str]:
    """The variables by which so many workers share the cores; a single one takes what it finds."""
    return {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}


def output_of(run: PlannedRun) -> Path:
    """The file with what the run's worker said when it was last started."""
    return run.folder.with_name(f"{run.folder.name}.txt")


def has_diverged(run: PlannedRun) -> bool:
    """Whether the run's worker ended because its numbers were not finite, as of a learning rate that is too high."""
    return output_of(run).exists() and DIVERGED in last_line(run)


def last_line(run: PlannedRun) -> str:
    """Of what the worker said, without a frame about it; the file's name where it said nothing."""
    said = output_of(run).read_text(encoding="utf-8", errors="replace")
    lines = (line.strip(FRAME) for line in reversed(said.split("\n")))
    return next((line for line in lines if line), str(output_of(run)))


def _last(run: PlannedRun) -> tuple[int, float]:
    """The last step that a run has logged, and the epochs done after it; zeros before its first step."""
    with suppress(OSError), (run.folder / LOG_FILE).open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - LAST_BYTES))
        for line in reversed(log.read().splitlines()):
            with suppress(ValueError, KeyError, TypeError):  # the first is cut off, the last may be under way
                record = json.loads(line)
                return int(record["step"]), float(record["epoch"])
    return 0, 0.0


def _wait(worker: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        worker.wait(LOOK_SECONDS)
