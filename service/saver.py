"""Checkpoints written beside the training loop, which pays only for the copy off the device."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from service.checkpoint import State, Tensors, prune, save
from service.metrics import Metrics


class Saver:
    """One writer thread; a save that is asked for while another runs waits for it."""

    def __init__(
        self,
        folder: Path,
        run: dict[str, Any],
        metrics: Metrics,
        *,
        keep: int,
        resumed_from: Path | None,
        say: Callable[[str], None],
    ):
        self.last_good = resumed_from
        self._folder, self._run, self._metrics, self._say = folder, run, metrics, say
        self._keep, self._resumed_from = keep, resumed_from
        self._verified: set[Path] = set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[bool] | None = None

    def submit(self, state: State, tensors: Tensors) -> None:
        """Write this checkpoint, after the one that may still be under way."""
        self.wait()
        self._pending = self._executor.submit(self._save, state, tensors)

    def wait(self) -> bool:
        """Wait for the writer; whether its last save succeeded."""
        return self._pending.result() if self._pending else True

    def close(self) -> bool:
        """Wait and end the thread; whether the last save succeeded."""
        succeeded = self.wait()
        self._executor.shutdown()
        return succeeded

    def _save(self, state: State, tensors: Tensors) -> bool:
        """A full disk or a failing one ends no training: it is counted, said, and the last good checkpoint stays."""
        self._metrics.attempts.inc()
        start = time.monotonic()
        try:
            self.last_good = save(self._folder, state, tensors, self._run)
            prune(self._folder, self._keep, self._resumed_from, self._verified)
        except OSError as error:
            self._metrics.failures.inc()
            self._say(
                f"checkpoint of step {state.step} failed ({error}); kept: {self.last_good}; make room or mend the disk"
            )
            return False
        self._metrics.checkpoint_seconds.set(time.monotonic() - start)
        self._metrics.checkpoint_time.set_to_current_time()
        return True
