"""The queue of operators' acts that wait for the training loop; a future for each carries the response back."""

import threading
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from service.run.events import Act

MAX_PENDING: Final = 16  # acts that may wait


class Refused(Exception):
    """An act was refused, or failed; status: the HTTP status code."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class ControlRequest(NamedTuple):
    """An act, and the future for its response; only on rank 0 does a client wait for that."""

    act: Act
    response: Future[dict[str, Any]]


class ControlQueue:
    """Takes acts from any thread, and hands them to the training loop's thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[ControlRequest] = []
        self._open: list[ControlRequest] = []  # not yet answered
        self._closed = ""

    @property
    def waiting(self) -> bool:
        """Whether an act waits for the loop."""
        return bool(self._waiting)

    def submit(self, act: Act) -> Future[dict[str, Any]]:
        """Queue an act; the future has its response, or Refused. Refused at once when the queue is full or closed."""
        request = ControlRequest(act, Future())
        with self._changed:
            if self._closed:
                raise Refused(409, self._closed)
            self._open = [each for each in self._open if not each.response.done()]
            if len(self._open) >= MAX_PENDING:
                raise Refused(429, f"{MAX_PENDING} acts are waiting, expected fewer; try again when they are done")
            self._open.append(request)
            self._waiting.append(request)
            self._changed.notify()
        return request.response

    def take(self, timeout_seconds: float = 0.0) -> list[ControlRequest]:
        """Remove and return the acts that wait; where there are none, wait so long for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, timeout_seconds)
            taken, self._waiting = self._waiting, []
            return taken

    def close(self, why: str) -> None:
        """Refuse all acts that are not answered yet, and all later ones."""
        with self._changed:
            self._closed = self._closed or why
            left, self._open, self._waiting = self._open, [], []
        for request in left:
            if not request.response.done():
                request.response.set_exception(Refused(409, why))
