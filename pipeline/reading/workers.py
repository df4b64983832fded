"""Threads that wait for a store, many at once; and waiting for what they do, which ends when the process does.

They are daemons, unlike those of concurrent.futures, which Python joins before it exits. Those that wait here for a
sample may be such ones: once the process is ending, they give up soon. So a store that hangs keeps no process alive.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from functools import cache
from itertools import count
from queue import PriorityQueue
from typing import Final, TypeVar

THREADS: Final = 64  # requests in flight: at 18 kB and 30 ms each, about 40 MB/s
SPARE: Final = 8  # threads more, for what is asked for a second time because the first request is slow
LAST_SECONDS: float = 2.0  # that a process which is ending still waits for the store
_LOOK_SECONDS: Final = 1.0  # between looks at whether it is
_T = TypeVar("_T")
_last_moment = float("inf")  # until when a process that is ending waits for all that it still reads


class Urgency(IntEnum):
    """What is done first: the lowest."""

    WAITED_FOR = 0  # by somebody
    AHEAD = 1  # of when it is needed
    SPARE = 2  # it will be needed, nobody knows when


class Workers:
    """Does work in threads: by its urgency, and what is as urgent in its order."""

    def __init__(self, threads: int):
        self._work: PriorityQueue[tuple[Urgency, int, Callable[[], None]]] = PriorityQueue()
        self._numbers = count()
        for _ in range(threads):
            threading.Thread(target=self._run, daemon=True, name="fetch").start()

    def do(self, work: Callable[[], None], urgency: Urgency) -> None:
        """Have `work`, which raises nothing, done."""
        self._work.put((urgency, next(self._numbers), work))

    def _run(self) -> None:
        while True:
            self._work.get()[2]()


def workers() -> Workers:
    """This process's threads for first requests."""
    return _workers(os.getpid(), "first", THREADS)


def spare_workers() -> Workers:
    """This process's threads for second requests."""
    return _workers(os.getpid(), "second", SPARE)


def outcome(coming: "Future[_T]", seconds: float = float("inf")) -> _T:
    """What comes; TimeoutError where it does not within `seconds`, RuntimeError where the process is ending before."""
    deadline = time.monotonic() + seconds
    while True:
        rest = min(deadline, _last_moment) - time.monotonic()
        try:
            return coming.result(timeout=max(0.0, min(rest, _LOOK_SECONDS)))
        except TimeoutError:
            if coming.done():
                return coming.result()
        if rest > _LOOK_SECONDS:
            _look_for_end()
        elif deadline <= _last_moment:
            raise TimeoutError
        else:
            raise RuntimeError("the process is ending, and waits for the store no longer")


def _look_for_end() -> None:
    """Set the last moment once Python has begun to join its threads; sys.is_finalizing tells when they have ended."""
    global _last_moment
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:  # "cannot schedule new futures after interpreter shutdown"
            _last_moment = min(_last_moment, time.monotonic() + LAST_SECONDS)


@cache
def _workers(_process: int, _use: str, threads: int) -> Workers:
    return Workers(threads)  # a forked process inherits none
