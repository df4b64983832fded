"""Checkpoints written in the background; the training loop pays only for a copy."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model.parallel import Parallel
from service.run.checkpoint import (
    FOLDER,
    RunState,
    Tensors,
    describe_unremoved,
    prune_checkpoints,
    save_checkpoint,
    tower_file,
    write_latest,
)
from service.run.log import JsonLog
from service.telemetry.metrics import Metrics
from service.training.ranks import Ranks


class CheckpointClock:
    """When a checkpoint is due by time: so long after the last one was begun, or after the start."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        """seconds: between checkpoints; 0: never due."""
        self._seconds, self._now = seconds or math.inf, now
        self.restart()

    def due(self) -> bool:
        """Whether the time is over."""
        return self._now() - self._start >= self._seconds

    def restart(self) -> None:
        """A checkpoint is begun, whatever for: the next is due after the whole time again."""
        self._start = self._now()


class BackgroundSaver:
    """One thread that writes checkpoints; to submit one while another is being written waits for that."""

    def __init__(self, write: Callable[[RunState, Tensors], bool]):
        """write: writes a checkpoint, of tensors on the host, and returns whether it succeeded."""
        self._write = write
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[bool] | None = None

    def submit(self, state: RunState, fetch: Callable[[], Tensors]) -> None:
        """Write this checkpoint, after the one that may still be under way; `fetch` runs in the saver's thread."""
        self.wait()
        self._pending = self._executor.submit(lambda: self._write(state, fetch()))

    def wait(self) -> bool:
        """Wait for the last save; returns whether it succeeded."""
        return self._pending.result() if self._pending else True

    def when_done(self, tell: Callable[[Future[bool]], None]) -> None:
        """Call `tell` with the last save's future once it is done: from the saver's thread, or at once."""
        assert self._pending, "nothing was submitted"
        self._pending.add_done_callback(tell)

    def close(self) -> bool:
        """Wait and end the thread; returns whether the last save succeeded."""
        succeeded = self.wait()
        self._executor.shutdown()
        return succeeded


class CheckpointWriter:
    """Writes the whole network's checkpoints into a run's folder, and removes old ones; on rank 0 alone."""

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        metrics: Metrics,
        *,
        files: Mapping[str, bytes] | None = None,
        keep: int,
        resumed_from: Path | None,
        say: Callable[[str], None],
        logs: Sequence[JsonLog] = (),
        collect: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    ):
        """files: others that every checkpoint holds, by name; logs: whose lines are to be durable before it is;
        collect: adds those of other processes' towers.
        """
        self.last_good, self.failed = resumed_from, ""  # failed: why the last save did, or empty
        self._unremoved: set[Path] = set()  # old checkpoints that are still there because they cannot be removed
        self._folder, self._run, self._files, self._metrics = folder, run, files, metrics
        self._say, self._collect, self._logs = say, collect, logs
        self._keep, self._resumed_from = keep, resumed_from
        self._verified: set[Path] = set()

    def __call__(self, state: RunState, tensors: Tensors) -> bool:
        """Write one. A full or failing disk ends no training: it is counted and printed; the last good one stays."""
        self._metrics.checkpoint_attempts.inc()
        start = time.monotonic()
        for log in self._logs:  # what a resume keeps of them it cannot make again
            log.sync()
        try:
            self.last_good = save_checkpoint(self._folder, state, self._collect(tensors), self._run, self._files)
        except OSError as error:
            self._metrics.checkpoint_failures.inc()
            self.failed = (
                f"checkpoint of step {state.step} failed ({error}); kept: {self.last_good or 'none'}; "
                "make room or mend the disk"
            )
            self._say(self.failed)
            return False
        self.failed = ""
        self._metrics.checkpoint_seconds.set(time.monotonic() - start)
        self._metrics.checkpoint_time.set_to_current_time()
        try:
            self._tidy(self.last_good)
        except OSError as error:
            self._say(f"checkpoint of step {state.step} is saved, but its folder cannot be tidied ({error})")
        return True

    def _tidy(self, newest: Path) -> None:
        """What comes after a save that has succeeded, and cannot make it fail: remove old ones, count bytes."""
        _, unremoved = prune_checkpoints(self._folder, self._keep, self._resumed_from, self._verified)
        for path, error in unremoved.items():
            if path not in self._unremoved:  # each is told once
                self._say(describe_unremoved(path, error))
        self._unremoved = set(unremoved)
        self._metrics.unremoved.set(len(unremoved))
        self._metrics.checkpoint_bytes.set(_size(newest))
        self._metrics.checkpoints_bytes.set(_size(self._folder / FOLDER))
        write_latest(newest)  # the last: it needs room, which the removals may have made


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def collect_towers(ranks: Ranks, parallel: Parallel, tensors: Tensors) -> Tensors:
    """On rank 0: the files of both towers; tower 1's comes from rank 1 where a pair shares the network."""
    if not parallel.pair:
        return tensors
    return tensors | {tower_file(1): ranks.receive_from(1)}


def must_copy_tensors(ranks: Ranks, parallel: Parallel) -> bool:
    """Whether a checkpoint needs this rank's tensors: rank 0 writes, and may lack the tower that rank 1 holds."""
    return ranks.is_leader or (parallel.pair is not None and ranks.rank == 1)


def send_tower(ranks: Ranks, tensors: Tensors) -> bool:
    """On the other ranks: send rank 0 the tower that it lacks; ranks whose tensors are not needed send nothing."""
    if tensors:
        ranks.send_to_leader(tensors[tower_file(1)])
    return True
