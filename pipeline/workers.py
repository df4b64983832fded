"""Run a pure function over many tasks in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from pipeline.command import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def results_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Iterable[Result]]:
    """The results of `function` in the order of `tasks`; a worker's error is raised, and leaving early stops them all.

    `function` and `tasks` must pickle, unless there is one worker: then it is this process. InputError when the system
    kills a worker.
    """
    if workers == 1 or not tasks:
        yield map(function, tasks)
        return
    # Spawned, not forked: a caller may have threads, and a fork would copy the locks that they hold.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_follow_parent)
    try:
        # Not executor.map: it cancels what is left, and Python 3.11's executor trips over that when its workers go.
        futures = deque(executor.submit(function, task) for task in tasks)
        yield (futures.popleft().result() for _ in tasks)
    except BaseException as error:
        for worker in multiprocessing.active_children():
            worker.kill()
        executor.shutdown(wait=False)  # a worker may have died with a queue's lock: waiting could be for ever
        if isinstance(error, BrokenProcessPool):
            raise InputError("a worker was killed, expected memory for all of them; give fewer --workers") from error
        raise
    executor.shutdown()


def _follow_parent() -> None:
    # Ctrl-C reaches the whole group: the parent decides. A parent that is killed cannot, and its workers would wait for
    # work for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
