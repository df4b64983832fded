"""The worker pool that `--executor` names: processes of this host, or the workers of a Dask cluster."""

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from pipeline.command import InputError
from pipeline.executors.pool import LocalPool, WorkerPool

LOCAL: Final = "local"
_DASK: Final = "dask://"
_CONNECT_SECONDS: Final = 10
_ANSWER_SECONDS: Final = 5
_LOST: Final = "the Dask scheduler was lost, expected to run to the end; start it, then run the same again"


@dataclass
class DaskPool:
    """The workers of a cluster."""

    client: Any
    size: int
    waiting: bool = False  # for a worker to join, as a notice has said

    def give_up_reason(self, error: Exception) -> str:
        """Dask itself gives a dead worker's task to others, and cancels all of them when it loses the scheduler."""
        if isinstance(error, CancelledError):
            return _LOST
        if type(error).__name__ == "KilledWorker":  # by name: Dask may not be installed
            return f"the workers died that tried ({error}), expected memory for it; mend that, run the same again"
        return ""

    def lost_reason(self) -> str:
        """A client that closed because it could not reconnect to the scheduler never answers.

        A cluster may have no workers for a while; that is no failure, but a notice says so.
        """
        if self.client.status in ("closing", "closed"):
            return _LOST
        workerless = self._is_workerless()
        if workerless and not self.waiting:
            sys.stderr.write("notice: the Dask scheduler has no workers; waiting for some\n")
        self.waiting = workerless
        return ""

    def _is_workerless(self) -> bool:
        with suppress(Exception):  # the scheduler may be away for a moment
            return not self.client.sync(self.client.scheduler.identity, callback_timeout=_ANSWER_SECONDS)["workers"]
        return False

    def start(self) -> Executor:
        """The cluster's concurrent.futures interface."""
        # Not pure: a task that failed is to be done again, not remembered.
        return self.client.get_executor(pure=False)

    def stop(self, executor: Executor) -> None:
        """Cancel tasks not yet started; started ones do no harm, as files appear complete and with the same bytes."""
        with suppress(Exception):  # a client without its scheduler cannot cancel; the reason to stop matters more
            executor.shutdown(wait=False)


@contextmanager
def open_pool(executor: str, workers: int) -> Iterator[WorkerPool]:
    """The pool that `--executor` names; InputError when it is not available."""
    if executor == LOCAL:
        yield LocalPool(workers)
        return
    address = _dask_address(executor)
    try:
        from distributed import Client  # an optional extra
    except ImportError as error:
        raise InputError(
            f"--executor {executor} needs Dask, expected it installed; pip install -e '.[dask]'"
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address} within {_CONNECT_SECONDS} s, expected one; start: dask scheduler"
        ) from error
    logging.disable(logging.ERROR)  # a lost scheduler is reported in one line, not in libraries' tracebacks
    try:
        with client:
            counted: Any = client.nthreads()  # typed as what its asynchronous form returns
            threads = sum(counted.values())
            if not threads:
                raise InputError(
                    f"the Dask scheduler at {address} has no workers, expected some; start: dask worker {address}"
                )
            yield DaskPool(client, threads)
    finally:
        logging.disable(logging.NOTSET)


def is_executor(executor: str) -> bool:
    """Whether `--executor` has a form that is understood."""
    return executor == LOCAL or (executor.startswith(_DASK) and executor[len(_DASK) :].rpartition(":")[2].isdigit())


def _dask_address(executor: str) -> str:
    return f"tcp://{executor.removeprefix(_DASK)}"
