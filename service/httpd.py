"""uvicorn, with the bounds that it lacks: on slow, silent and too many connections, on handshakes and on bodies."""

import asyncio
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS: Final = 10.0  # from a request's first byte, or the connection's start, to its last byte
CONNECTION_SECONDS: Final = 600.0  # of a connection in all
HANDSHAKE_SECONDS: Final = 5.0
CONNECTIONS: Final = 512  # more than these, and the one that has been silent for longest is dropped
BODY_BYTES: Final = 16 * 1024
HEAD_BYTES: Final = 16 * 1024


class Protocol(H11Protocol):
    """A connection that is dropped when it says nothing, too little or too slowly."""

    _receiving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn's own
        super().connection_made(transport)
        self.made = time.monotonic()
        self._lifetime = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        self._time_request()
        silent = [c for c in self.connections if isinstance(c, Protocol) and c.silent]
        if len(self.connections) > CONNECTIONS and silent:
            min(silent, key=lambda connection: connection.made).transport.abort()

    @property
    def silent(self) -> bool:
        """Whether nobody waits for an answer here."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_request()

    def _time_request(self) -> None:
        """Bound the time that a request takes to arrive; one that is there has as long as its answer takes."""
        arriving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if arriving and self._receiving is None:
            self._receiving = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)
        elif not arriving and self._receiving:
            self._receiving.cancel()
            self._receiving = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lifetime.cancel()
        if self._receiving:
            self._receiving.cancel()


class Edge:
    """Refuses bodies over BODY_BYTES, announced or not, before the application sees them; says to keep no answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marks = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
                message = {**message, "headers": [*message.get("headers", ()), *marks]}
            await send(message)

        body, more = b"", True
        while more and len(body) <= BODY_BYTES:
            message = await receive()
            if message["type"] != "http.request":
                return  # gone
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > BODY_BYTES:
            error = f"the body is over {BODY_BYTES} bytes, expected fewer; shorten it"
            return await JSONResponse({"error": error}, 413, {"Connection": "close"})(scope, receive, send_marked)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send_marked)


class Server(uvicorn.Server):
    """uvicorn's, on a socket that is there, with a bound on TLS handshakes; signals are left alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {"ssl": self.config.ssl, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        make = partial(Protocol, self.config, self.server_state, {})
        options = tls if self.config.ssl else {}
        self.servers = [await loop.create_server(make, sock=each, backlog=1024, **options) for each in sockets or []]
        self.started = True


async def serve(
    app: ASGIApp, listener: socket.socket, tls: list[str] | None, begin: Callable[[Callable[[], None]], None]
) -> None:
    """Serve until told to end; begin: called in the loop, with what to call then."""
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
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=2,
    )
    server = Server(config)

    def end() -> None:
        server.should_exit = True

    begin(end)
    await server.serve([listener])
