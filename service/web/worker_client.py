"""The HTTP server's client of the worker: sends requests over a pipe, and caches the responses for all clients."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from fastapi.responses import JSONResponse, Response

WORKER_SECONDS: Final = 5.0  # that the worker may take to answer a GET
MAX_PENDING: Final = 64  # requests that may wait for the worker


@dataclass(frozen=True)
class Endpoint:
    """A path to GET, and for how many seconds its response is cached for all clients."""

    path: str
    cache_seconds: float
    media_type: str
    summary: str


ENDPOINTS: Final = (
    Endpoint("/metrics", 0.25, "text/plain", "Prometheus's exposition of this rank."),
    Endpoint("/healthz", 0.25, "application/json", "Liveness by progress: 503 when nothing was done for too long."),
    Endpoint("/readyz", 0.25, "application/json", "Readiness: 503 until the first step is done."),
    Endpoint("/api/status", 0.25, "application/json", "Where the run stands, and what has happened to it."),
    Endpoint("/api/curve", 2.0, "application/json", "The training loss in at most about 1,000 points."),
    Endpoint("/api/pictures", 2.0, "application/json", "Pictures that are trained on; 404 when there are none yet."),
    Endpoint("/filters.png", 2.0, "image/png", "conv1's filters as of the last checkpoint; 404 before it."),
    Endpoint("/api/targets", 1.0, "application/json", "All ranks' addresses, for Prometheus's http_sd."),
)


class WorkerClient:
    """The worker at the other end of the pipe."""

    def __init__(self, channel: Connection):
        self._channel, self._waiting, self._number = channel, dict[int, asyncio.Future[Response]](), 0
        self._cache: dict[str, tuple[float, Response]] = {}
        self._in_flight: dict[str, asyncio.Future[Response]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def listen(self, ended: Callable[[], None]) -> None:
        """Receive the worker's responses from now on; `ended` is called when it takes no more requests."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._receive, args=(loop, ended), name="worker", daemon=True).start()

    def _receive(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        try:
            while head := json.loads(self._channel.recv_bytes()):
                response = Response(self._channel.recv_bytes(), head["status"], media_type=head["type"])
                loop.call_soon_threadsafe(self._resolve, head["id"], response)
        except (EOFError, OSError):
            os._exit(0)  # the worker is gone, and the worker that replaces it needs its port
        loop.call_soon_threadsafe(ended)

    def _resolve(self, number: int, response: Response) -> None:
        future = self._waiting.pop(number, None)
        if future and not future.done():
            future.set_result(response)

    def _send_request(self, request: dict[str, Any]) -> asyncio.Future[Response]:
        self._number = number = self._number + 1
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._channel.send_bytes(json.dumps({"id": number, **request}).encode())
        return future

    async def act(self, act: dict[str, Any], seconds: float) -> Response:
        """The worker's response to an act; TimeoutError where it takes longer, OSError where it is gone."""
        if (
            len(self._waiting) >= MAX_PENDING
        ):  # the worker does not answer: the pipe must not fill, or no client would get a response
            return JSONResponse({"error": f"{MAX_PENDING} questions are waiting, expected fewer; try again later"}, 429)
        return await asyncio.wait_for(asyncio.shield(self._send_request({"act": act})), seconds)

    async def get(self, endpoint: Endpoint) -> Response:
        """A resource, from the cache unless that is too old; asks the worker only once at a time for each."""
        async with self._locks.setdefault(endpoint.path, asyncio.Lock()):
            at, response = self._cache.get(endpoint.path, (0.0, Response()))
            if time.monotonic() - at >= endpoint.cache_seconds:
                try:
                    asked = self._in_flight.get(endpoint.path)
                    if asked is None or asked.done():
                        asked = self._in_flight[endpoint.path] = self._send_request({"get": endpoint.path})
                    response = await asyncio.wait_for(asyncio.shield(asked), WORKER_SECONDS)
                except OSError:  # a TimeoutError is one
                    why = f"the worker did not answer within {WORKER_SECONDS:g} s, expected it to; see its log"
                    response = JSONResponse({"error": why, "status": "stalled", "phase": "unresponsive"}, 503)
                self._cache[endpoint.path] = time.monotonic(), response
            return Response(response.body, response.status_code, media_type=response.media_type)
