"""/metrics and /healthz on loopback, served beside the training loop."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.command import InputError
from service.metrics import Metrics

HOST = "127.0.0.1"
COMPILE_FACTOR = 5  # compiling may take this many times as long as any other progress


class Heart:
    """Liveness by progress: how long ago the worker last got something done, and how long it may take."""

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock, self._limit = clock, limit_seconds
        self.beat("starting", COMPILE_FACTOR)

    def beat(self, phase: str, patience: float = 1.0) -> None:
        """Something was done; the next thing may take `patience` times the usual limit."""
        self._last = (self._clock(), phase, self._limit * patience)

    def status(self) -> dict[str, object]:
        """ok or stalled, the phase, and the age of the last progress in seconds against its limit."""
        at, phase, limit = self._last
        age = self._clock() - at
        word = "ok" if age <= limit else "stalled"
        return {"status": word, "phase": phase, "seconds_since_progress": round(age, 3), "limit_seconds": limit}


def application(metrics: Metrics, heart: Heart) -> Starlette:
    """The worker's HTTP application."""

    async def healthz(request: Request) -> Response:
        status = heart.status()
        return JSONResponse(status, 200 if status["status"] == "ok" else 503)

    async def exposition(request: Request) -> Response:
        body, content_type = metrics.exposition()
        return Response(body, media_type=content_type)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", exposition)])


def listen(port: int) -> socket.socket:
    """A listening loopback socket; port 0 takes a free one; InputError when the port is taken."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:  # the latter of a number that is no port
        reason = getattr(error, "strerror", error)
        raise InputError(f"port {port} cannot be used ({reason}), expected a free one; set --port") from error


@contextmanager
def serving(app: Starlette, listener: socket.socket) -> Iterator[None]:
    """Serve `app` from a thread while the block runs."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # Not server.run(): it would install its own signal handlers where it can, and the loop's stop is the worker's.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="api", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        listener.close()
