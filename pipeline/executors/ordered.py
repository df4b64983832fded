"""Run a pure function over many tasks, in processes or on a cluster: results in order, failures tried again.

Tasks are taken from their iterable as workers come free, so any number of them costs the memory of a few.
"""

import errno
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pipeline.command import InputError
from pipeline.executors.pool import WorkerPool

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS: Final = 3
_TASKS_A_WORKER: Final = 3  # one at work, and more, so that none waits for the slowest
_POLL_SECONDS: Final = 5.0  # how often a pool is asked whether it is still there, while a result is waited for
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # trying again does not make room


@contextmanager
def results_in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], pool: WorkerPool
) -> Iterator[Iterator[tuple[Task, Result]]]:
    """Each task with the result of `function`, in the order of `tasks`; leaving early stops all work.

    A task that fails, or whose worker dies, is tried again, ATTEMPTS times in all; then InputError gives the reason.
    An InputError or a full disk is raised at once. `function` and `tasks` must pickle, unless the pool's size is 1.
    Results must be small, less than a pipe takes at once: if a worker is killed while it sends a larger one, half of it
    arrives and the rest is waited for without end.
    """
    work = _TaskQueue(function, iter(tasks), pool)
    try:
        yield work.results()
    except BaseException:
        pool.stop(work.executor)
        raise
    work.executor.shutdown()


@dataclass
class _Attempt(Generic[Task]):
    task: Task
    future: Future[Any]
    number: int = 1


class _TaskQueue(Generic[Task, Result]):
    def __init__(self, function: Callable[[Task], Result], tasks: Iterator[Task], pool: WorkerPool):
        self.function, self.tasks, self.pool = function, tasks, pool
        self.executor = pool.start()
        self.attempts: deque[_Attempt[Task]] = deque()
        self.max_pending = 1 if pool.size == 1 else pool.size * _TASKS_A_WORKER

    def results(self) -> Iterator[tuple[Task, Result]]:
        while self._fill():
            first = self.attempts[0]
            try:
                result = self._result(first)
            except BrokenExecutor:
                self._restart()
            except Exception as error:
                if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno in _FULL):
                    raise
                if reason := self.pool.give_up_reason(error):
                    raise InputError(f"{first.task} could not be made: {reason}") from error
                self._retry([first], error)
            else:
                self.attempts.popleft()
                yield first.task, result

    def _result(self, one: _Attempt[Task]) -> Result:
        while not wait([one.future], _POLL_SECONDS).done:
            if reason := self.pool.lost_reason():
                raise InputError(f"{one.task} could not be made: {reason}")
        return one.future.result()

    def _fill(self) -> bool:
        while len(self.attempts) < self.max_pending and (task := next(self.tasks, None)) is not None:
            self.attempts.append(_Attempt(task, self._submit(task)))
        return bool(self.attempts)

    def _submit(self, task: Task) -> Future[Result]:
        try:
            return self.executor.submit(self.function, task)
        except BrokenExecutor as error:  # a worker has just died: this task is lost as those are that it had
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    def _restart(self) -> None:
        # The executor and all its tasks are lost; which of them killed the worker is unknown.
        self.pool.stop(self.executor)
        self.executor = self.pool.start()
        lost = [one for one in self.attempts if not one.future.done() or one.future.exception() is not None]
        # Tasks start in order: those after the first few had not started, so this does not count as one of their tries.
        begun, others = lost[: self.pool.size], lost[self.pool.size :]
        self._retry(begun, RuntimeError("a worker died; was there memory for all of them?"))
        for one in others:
            one.future = self._submit(one.task)

    def _retry(self, tries: list[_Attempt[Task]], error: Exception) -> None:
        reason = str(error) or type(error).__name__
        sys.stderr.write(f"notice: {tries[0].task}, try {tries[0].number} of {ATTEMPTS}: {reason}\n")
        for one in tries:
            if one.number == ATTEMPTS:
                raise InputError(
                    f"{one.task} failed {ATTEMPTS} times ({reason}), expected to be made; mend that, run the same again"
                ) from error
            one.number += 1
            one.future = self._submit(one.task)
