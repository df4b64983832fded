"""The worker's HTTP server: page, metrics, health, status and control, in a process of its own.

What clients do here, however many and however slow, never takes time from the training loop: this process asks the
worker over a pipe, at most a few times a second for each page, and answers everyone from that. `service.server`
starts it, and starts it again if it dies.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from service.httpd import Edge, serve
from service.tokens import author_of

WORKER_SECONDS: Final = 5.0  # that the worker may take to answer what needs no act
ACT_SECONDS: Final = 60.0  # after these an act is still pending, and its client is told so
FAILURES_PER_SECOND: Final = 10  # wrong tokens that are compared at all
PAGE: Final = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Resource:
    """What a GET answers, and for how many seconds the same to everyone."""

    path: str
    seconds: float
    kind: str
    what: str


RESOURCES: Final = (
    Resource("/metrics", 0.25, "text/plain", "Prometheus's exposition of this rank."),
    Resource("/healthz", 0.25, "application/json", "Liveness by progress: 503 when nothing was done for too long."),
    Resource("/readyz", 0.25, "application/json", "Readiness: 503 until the first step is done."),
    Resource("/api/status", 0.25, "application/json", "Where the run stands, and what has happened to it."),
    Resource("/api/curve", 2.0, "application/json", "The training loss in at most about 1,000 points."),
    Resource("/api/pictures", 2.0, "application/json", "Pictures that are trained on; 404 when there are none yet."),
    Resource("/filters.png", 2.0, "image/png", "conv1's filters as of the last checkpoint; 404 before it."),
    Resource("/api/targets", 1.0, "application/json", "All ranks' addresses, for Prometheus's http_sd."),
)


class Worker:
    """The worker at the other end of the pipe."""

    def __init__(self, channel: Connection):
        self._channel, self._waiting, self._number = channel, dict[int, asyncio.Future[Response]](), 0
        self._kept: dict[str, tuple[float, Response]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def listen(self, ended: Callable[[], None]) -> None:
        """Take the worker's answers from now on; `ended` is called when it wants no more questions."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._receive, args=(loop, ended), name="worker", daemon=True).start()

    def _receive(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
        try:
            while head := json.loads(self._channel.recv_bytes()):
                response = Response(self._channel.recv_bytes(), head["status"], media_type=head["type"])
                loop.call_soon_threadsafe(self._answered, head["id"], response)
        except (EOFError, OSError):
            os._exit(0)  # it is gone; its port is wanted by whoever takes its place
        loop.call_soon_threadsafe(ended)

    def _answered(self, number: int, response: Response) -> None:
        future = self._waiting.pop(number, None)
        if future and not future.done():
            future.set_result(response)

    async def ask(self, question: dict[str, Any], seconds: float) -> Response:
        """The worker's answer; TimeoutError where it takes longer, OSError where it is gone."""
        self._number = number = self._number + 1
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._channel.send_bytes(json.dumps({"id": number, **question}).encode())
        return await asyncio.wait_for(future, seconds)

    async def get(self, resource: Resource) -> Response:
        """A resource, asked for anew when it is too old, and only once for all who wait for it."""
        async with self._locks.setdefault(resource.path, asyncio.Lock()):
            at, response = self._kept.get(resource.path, (0.0, Response()))
            if time.monotonic() - at >= resource.seconds:
                try:
                    response = await self.ask({"get": resource.path}, WORKER_SECONDS)
                except OSError:  # a TimeoutError is one
                    why = f"the worker did not answer within {WORKER_SECONDS:g} s, expected it to; see its log"
                    response = JSONResponse({"error": why, "status": "stalled", "phase": "unresponsive"}, 503)
                self._kept[resource.path] = time.monotonic(), response
            return Response(response.body, response.status_code, media_type=response.media_type)


class Reason(BaseModel):
    """Why an operator acts; recorded with the event."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reason: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")] = ""


class Rate(Reason):
    """A new learning rate."""

    rate: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Factor(Reason):
    """What the current learning rate is multiplied by."""

    factor: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


@dataclass
class Guard:
    """Who may act: bearers of a token in the file, which is read anew for each act."""

    token_file: Path | None
    failures: list[float] = field(default_factory=list)

    async def author(self, given: HTTPAuthorizationCredentials | None) -> str:
        """The operator's name; HTTPException where the token is missing or wrong, or control is off."""
        if self.token_file is None:
            raise HTTPException(403, "control is off, expected a token file; start the worker with --token-file")
        if given is None:
            raise unknown("no token")
        now = time.monotonic()
        self.failures = [at for at in self.failures if now - at < 1.0]
        if len(self.failures) >= FAILURES_PER_SECOND:
            raise HTTPException(
                429, "too many wrong tokens, expected the right one; wait a second", {"Retry-After": "1"}
            )
        name = author_of(self.token_file, given.credentials)
        if name is None:
            self.failures.append(now)
            raise unknown("no such token")
        return name


def unknown(what: str) -> HTTPException:
    """Nobody who may act."""
    remedy = "send Authorization: Bearer TOKEN with a token of the worker's --token-file"
    return HTTPException(401, f"{what}, expected a known one; {remedy}", {"WWW-Authenticate": "Bearer"})


ERRORS: Final = {
    400: "The body cannot be read.",
    401: "No token, or a wrong one.",
    403: "Control is off.",
    409: "Not now, or not here.",
    413: "Too large.",
    422: "The body is wrong.",
    429: "Too much at once.",
    503: "Applied, but the checkpoint failed; or the worker does not answer.",
}


ACTS: Final = {
    "checkpoint": "Save now.",
    "pause": "Save, and wait until resumed or stopped.",
    "resume": "Go on after a pause.",
    "stop": "Save and end the run; the same command goes on with it later.",
}


class Problem(BaseModel):
    """What was wrong, what was expected, and what to do."""

    error: str


def problem(status: int, message: str, headers: Any = None) -> JSONResponse:
    """An error's one line."""
    return JSONResponse({"error": message}, status, headers)


async def operator(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
) -> str:
    """The name of whoever asks."""
    return await request.app.state.guard.author(given)


Author = Annotated[str, Depends(operator)]


def application(worker: Worker, token_file: Path | None) -> FastAPI:
    """The routes."""
    app = FastAPI(title="AlexNet trainer", version="1", docs_url=None, redoc_url=None)
    app.state.guard = Guard(token_file)
    for resource in RESOURCES:
        add_resource(app, worker, resource)
    errors: dict[int | str, dict[str, Any]] = {code: {"description": d, "model": Problem} for code, d in ERRORS.items()}
    errors[202] = {"description": f"Not done within {ACT_SECONDS:g} s; it will be."}

    async def act(kind: str, author: str, body: Reason | None) -> Response:
        fields = body.model_dump() if body else {}
        try:
            return await worker.ask({"act": {"kind": kind, "author": author, **fields}}, ACT_SECONDS)
        except TimeoutError:
            return JSONResponse({"pending": True}, 202)
        except OSError:
            return problem(409, "the run has just ended, expected it to go on; start it again")

    def acting(kind: str) -> Callable[..., Awaitable[Response]]:
        async def handler(author: Author, body: Reason | None = None) -> Response:
            return await act(kind, author, body)

        return handler

    for kind, what in ACTS.items():
        options: dict[str, Any] = {"methods": ["POST"], "operation_id": kind, "summary": what, "responses": errors}
        app.add_api_route(f"/api/{kind}", acting(kind), **options)

    @app.post("/api/learning-rate", responses=errors, operation_id="learning-rate")
    async def learning_rate(author: Author, body: Rate | Factor) -> Response:
        """Set the learning rate; from then on the schedule no longer does."""
        return await act("learning-rate", author, body)

    add_page(app)
    add_errors(app)
    return app


def add_resource(app: FastAPI, worker: Worker, resource: Resource) -> None:
    """A GET that the worker answers."""

    async def handler() -> Response:
        return await worker.get(resource)

    described: dict[int | str, dict[str, Any]] = {200: {"content": {resource.kind: {}}}}
    for code in (404, 503):
        described[code] = {"description": "Not yet, or not well.", "content": {"application/json": {}}}
    app.add_api_route(
        resource.path,
        handler,
        response_class=Response,
        summary=resource.what,
        operation_id=resource.path.strip("/"),
        responses=described,
    )


def add_page(app: FastAPI) -> None:
    """The status page at /, which may run its own script and style alone."""
    html = PAGE.read_text()

    def allowed(tag: str) -> str:
        parts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{each}'" for each in hashes)

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}

    @app.get("/", response_class=Response, summary="The status page.", responses={200: {"content": {"text/html": {}}}})
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=headers)


def add_errors(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(StarletteHTTPException)
    async def of_http(request: Request, error: StarletteHTTPException) -> Response:
        unreadable = "the body cannot be read, expected JSON in UTF-8; see /openapi.json"
        message = unreadable if error.status_code == 400 else f"{error.detail}"
        return problem(error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        return problem(422, f"{' or '.join(found)}; see /openapi.json")


def main() -> None:
    """Serve as the worker says: file descriptors of the listening sockets and of the pipe, and files."""
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the worker, after which this ends
        signal.signal(number, signal.SIG_IGN)
    settings = json.loads(sys.argv[1])
    worker = Worker(Connection(settings["channel"]))
    app = application(worker, Path(settings["token_file"]) if settings["token_file"] else None)
    listener = socket.socket(fileno=settings["listener"])
    asyncio.run(serve(Edge(app), listener, settings["tls"], worker.listen))


if __name__ == "__main__":
    main()
