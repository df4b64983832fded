"""Threads that wait for a store, many at once.

They are daemons, unlike those of concurrent.futures: a process that ends does not wait for a store that hangs.
"""

import os
import threading
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from itertools import count
from queue import PriorityQueue
from typing import Final

THREADS: Final = 64  # requests in flight: at 18 kB and 30 ms each, about 40 MB/s
SPARE: Final = 8  # threads more, for what is asked for a second time because the first request is slow


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
    return _workers(os.getpid(), THREADS)


def spare_workers() -> Workers:
    """This process's threads for second requests."""
    return _workers(os.getpid(), SPARE)


@cache
def _workers(_process: int, threads: int) -> Workers:
    return Workers(threads)  # a forked process inherits none
