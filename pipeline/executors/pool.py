"""Worker pools: what runs the tasks, here processes of this host, or this process itself."""

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.command import InputError
from pipeline.files import limit_remedy


class WorkerPool(Protocol):
    """What runs the tasks, through executors that it starts and stops."""

    @property
    def size(self) -> int:
        """How many tasks at a time."""
        ...

    def give_up_reason(self, error: Exception) -> str:
        """Why a task that failed with `error` must not be tried again; empty if it may be."""
        ...

    def lost_reason(self) -> str:
        """Why no result will come any more; empty while one may."""
        ...

    def start(self) -> Executor:
        """A new executor, the first, or in place of one whose workers died."""
        ...

    def stop(self, executor: Executor) -> None:
        """Stop at once what it is doing."""
        ...


@dataclass(frozen=True)
class LocalPool:
    """Processes of this host; with size 1 tasks run in this process."""

    size: int

    def give_up_reason(self, error: Exception) -> str:
        """Nothing: a worker that died is replaced."""
        return ""

    def lost_reason(self) -> str:
        """Nothing: the executor sees that itself."""
        return ""

    def start(self) -> Executor:
        """Spawned, not forked: a caller may have threads, and a fork would copy the locks that they hold.

        InputError where the system does not let them start.
        """
        if self.size == 1:
            return _SameProcess()
        with _starting():
            return _Processes(self.size, multiprocessing.get_context("spawn"), initializer=_follow_parent)

    def stop(self, executor: Executor) -> None:
        """Kill the workers; a dead worker may hold a queue's lock, so waiting for them might never end."""
        for worker in multiprocessing.active_children():
            worker.kill()
        executor.shutdown(wait=False)


class _Processes(ProcessPoolExecutor):
    """Its processes start as tasks are submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _starting():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _starting() -> Iterator[None]:
    """What an OSError means while worker processes start, and the semaphores are made that they share."""
    try:
        yield
    except OSError as error:
        if more_files := limit_remedy(error):
            expected, remedy = "a few open files for each", f"{more_files}, or give fewer --workers"
        elif error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EPIPE):  # the last: one was killed as it started
            expected, remedy = "memory and a process for each", "make room (free, ulimit -u), or give fewer --workers"
        else:
            mount = "mount -t tmpfs tmpfs /dev/shm; Docker: --shm-size"
            expected, remedy = "/dev/shm to take semaphores", f"mount it or make room ({mount}), or give --workers 1"
        reason = error.strerror or error
        raise InputError(f"worker processes cannot be started ({reason}), expected {expected}; {remedy}") from error


class _SameProcess(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _follow_parent() -> None:
    # Ctrl-C reaches the whole process group, but only the parent acts on it. A parent that is killed cannot stop its
    # workers, which would wait for work for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
