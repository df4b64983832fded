"""A worker that has stalled: where each of its threads is, in a file; and its end, where it does not go on.

Time in which the process was stopped (SIGSTOP, docker pause) is no stall, unless it was six times the limit and more.
Whatever supervises it (torchrun, Docker, Slurm) then starts it again from the last checkpoint; a process that hangs for
ever it would never know of.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from pipeline.command import EXIT_FAULTS
from service.telemetry.heartbeat import Heartbeat

ENDS: Final = 3  # times the heartbeat's limit without progress
LOOKS: Final = 8  # within the limit
MOST_SECONDS: Final = 15.0  # between looks


class Watchdog:
    """A thread that looks at the heartbeat; a stall it tells at the limit, and ends the process at ENDS times that."""

    def __init__(self, heartbeat: Heartbeat, file: Path, say: Callable[[str], None]):
        """file: to which the stacks are added."""
        self._heartbeat, self._file, self._say = heartbeat, file, say
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it: nothing ends the process any more."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        stalled = 0.0  # seconds, as far as this thread has seen them: of a process that was stopped none have gone by
        told, last = False, time.monotonic()
        while not self._closed.wait(self._between_looks):
            now, limit = time.monotonic(), self._heartbeat.limit_seconds
            if self._heartbeat.health()["status"] == "ok":
                stalled, told = 0.0, False
            else:
                stalled += min(now - last, 2 * self._between_looks)
            last = now
            # Where the interpreter itself hangs, or the disk, so does this thread; faulthandler's needs neither.
            with suppress(RuntimeError):  # no memory for that thread: this one goes on
                faulthandler.dump_traceback_later(2 * ENDS * limit, exit=True)
            if stalled and not told:
                self._tell(f"it is ended {(ENDS - 1) * limit:g} s from now unless it goes on")
                told = True
            if stalled >= (ENDS - 1) * limit:
                self._tell("it is ended; start it again, and it goes on from its last checkpoint")
                os._exit(EXIT_FAULTS)
        faulthandler.cancel_dump_traceback_later()

    @property
    def _between_looks(self) -> float:
        return min(self._heartbeat.limit_seconds / LOOKS, MOST_SECONDS)

    def _tell(self, what: str) -> None:
        health = self._heartbeat.health()
        age, phase, limit = (health[name] for name in ("seconds_since_progress", "phase", "limit_seconds"))
        where = f"stacks of all threads: {self._file}"
        heading = f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, process {os.getpid()}, {age:.0f} s while {phase}"
        try:
            with self._file.open("ab") as stacks:
                stacks.write(f"{heading}\n".encode())
                stacks.flush()
                faulthandler.dump_traceback(stacks, all_threads=True)
                if dist.is_initialized():
                    stacks.write(f"Last exchanges of this rank: {_flight_record()}\n".encode())
                stacks.write(b"\n")
        except (OSError, MemoryError) as error:  # such as a full disk, which may be why
            reason = error.strerror if isinstance(error, OSError) else "no memory"
            where = f"{self._file} cannot be written ({reason}), so stacks are above"
            faulthandler.dump_traceback(all_threads=True)
        self._say(f"no progress for {age:.0f} s while {phase}, expected some within {limit:g} s; {what}; {where}")


def _flight_record() -> str:
    """torch's flight recorder: what this rank exchanged with others, as JSON; why not, where it has none."""
    try:
        return torch._C._distributed_c10d._dump_fr_trace_json().decode()  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, RuntimeError, UnicodeDecodeError) as error:  # another version of torch
        return f"none ({error})"
