"""uvicorn, with the bounds that it lacks: on slow, silent and too many connections, on handshakes and on bodies."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS: Final = 10.0  # from a connection's start to the last byte of its request
ANSWER_SECONDS: Final = 75.0  # until the response is ready; more than api.py's wait for an act
READ_SECONDS: Final = 10.0  # for the client to read what it is sent
HANDSHAKE_SECONDS: Final = 5.0
CONNECTIONS: Final = 512  # beyond these the oldest is dropped, first of those that have sent no whole request
BODY_BYTES: Final = 16 * 1024


class LimitedProtocol(H11Protocol):
    """A connection for one request, dropped when any part of it takes too long."""

    asked = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn's own
        super().connection_made(transport)
        self.made = time.monotonic()
        self._within(REQUEST_SECONDS)
        if len(self.connections) > CONNECTIONS:
            others = [each for each in self.connections if isinstance(each, LimitedProtocol) and each is not self]
            oldest = min(others, key=lambda each: (each.asked, each.made))
            self.connections.discard(oldest)  # now: connection_lost is called only in the event loop's next turn
            oldest.transport.abort()

    def _within(self, seconds: float) -> None:
        """Set the deadline anew: the connection is dropped after so many seconds unless this is called again."""
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.asked and self.cycle is not None and not self.cycle.more_body:
            self.asked = True
            self._within(ANSWER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._within(READ_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._within(ANSWER_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._within(READ_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline:
            self._deadline.cancel()


class LimitsMiddleware:
    """Refuses bodies over BODY_BYTES, with Content-Length or without, before the application sees them.

    Every response closes its connection, so that each request has its deadlines, and must not be cached.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marks = [
                    (b"connection", b"close"),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
                message = {**message, "headers": [*message.get("headers", ()), *marks]}
            await send(message)

        body, more = b"", True
        while more and len(body) <= BODY_BYTES:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client is gone
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > BODY_BYTES:
            error = f"the body is over {BODY_BYTES} bytes, expected fewer; shorten it"
            return await JSONResponse({"error": error}, 413)(scope, receive, send_marked)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send_marked)


class LimitedServer(uvicorn.Server):
    """uvicorn's server on an existing socket, with a time limit on TLS handshakes and without signal handlers."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {"ssl": self.config.ssl, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        make = partial(LimitedProtocol, self.config, self.server_state, {})
        options = tls if self.config.ssl else {}
        self.servers = [await loop.create_server(make, sock=each, backlog=1024, **options) for each in sockets or []]
        self.started = True


def ignore_accept_errors(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log the event loop's errors, but not each failed accept when a flood has taken all files: those are retried."""
    if "socket.accept()" not in context["message"]:
        loop.default_exception_handler(context)


async def serve(
    app: ASGIApp, listener: socket.socket, tls: list[str] | None, begin: Callable[[Callable[[], None]], None]
) -> None:
    """Serve until ended; begin: called once in the event loop, with the function that ends it."""
    certificate, key = tls or (None, None)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=2,
    )
    server = LimitedServer(config)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.get_running_loop().set_exception_handler(ignore_accept_errors)

    def end() -> None:
        server.should_exit = True

    begin(end)
    await server.serve([listener])
