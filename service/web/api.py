"""The worker's HTTP server: page, metrics, health, status and control, in a process of its own.

What clients do here, however many and however slow, never takes time from the training loop: this process asks the
worker over a pipe, at most a few times a second for each path, and serves all clients from those responses.
`service.web.server_process` starts it, and starts it again if it dies.
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
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.command import EXIT_DONE, InputError, printable, run_command
from service.run.limits import HIGHEST_RATE
from service.web.tokens import author_of
from service.web.uvicorn_limits import LimitsMiddleware, serve
from service.web.worker_client import ENDPOINTS, Endpoint, WorkerClient

ACT_SECONDS: Final = 60.0  # longest wait for an act; after it the client gets 202 and the act stays pending
FAILURES_PER_SECOND: Final = 10  # wrong tokens; more get 429
# No control characters, and none that are invisible or change the direction of writing: the text goes into logs.
PRINTED: Final = r"^[^\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]*$"
PAGE: Final = Path(__file__).with_name("page.html")


class Reason(BaseModel):
    """Why an operator acts; recorded with the event."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reason: Annotated[str, Field(max_length=200, pattern=PRINTED)] = ""


class Rate(Reason):
    """A new learning rate."""

    rate: Annotated[float, Field(ge=0, le=HIGHEST_RATE, allow_inf_nan=False)]


class Factor(Reason):
    """What the current learning rate is multiplied by."""

    factor: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


@dataclass
class Authenticator:
    """Checks bearer tokens against the token file, which is read again for each act."""

    token_file: Path | None
    is_leader: bool = True
    failures: list[float] = field(default_factory=list)

    def author(self, given: HTTPAuthorizationCredentials | None) -> str:
        """The operator's name; HTTPException where the token is missing or wrong, or control is off."""
        if not self.is_leader:
            raise HTTPException(
                409, "this is not rank 0, expected rank 0 to be asked; /api/targets has its address first"
            )
        if self.token_file is None:
            raise HTTPException(403, "control is off, expected a token file; start the worker with --token-file")
        if given is None:
            raise unauthorized("no token")
        try:
            name = author_of(self.token_file, given.credentials.strip())
        except InputError as error:
            say(f"error: {error}")
            what = "the token file is not as it must be"
            raise HTTPException(503, f"{what}, expected tokens with mode 600; see the worker's log") from error
        if name is not None:
            return name  # not limited, however many wrong tokens others send
        now = time.monotonic()
        self.failures = [at for at in self.failures if now - at < 1.0]
        if len(self.failures) >= FAILURES_PER_SECOND:
            say(f"notice: more than {FAILURES_PER_SECOND} wrong tokens a second are sent to the port; they are refused")
            why = "too many wrong tokens, expected the right one; wait a second"
            raise HTTPException(429, why, {"Retry-After": "1"})
        self.failures.append(now)
        raise unauthorized("no such token")


@cache
def say(message: str) -> None:
    """Print a line into the worker's log (stderr), each once."""
    sys.stderr.write(f"{message}\n")


def unauthorized(what: str) -> HTTPException:
    """HTTP 401, with what to send instead."""
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


def error_response(status: int, message: str, headers: Any = None) -> JSONResponse:
    """An error response: one line, as JSON; of what a request held, nothing that cannot be printed."""
    return JSONResponse({"error": printable(message)}, status, headers)


async def operator(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
) -> str:
    """Dependency of the routes for acts: the name of the operator whose token the request has."""
    return request.app.state.authenticator.author(given)


Author = Annotated[str, Depends(operator)]


def create_app(worker: WorkerClient, authenticator: Authenticator) -> FastAPI:
    """The application with all its routes."""
    app = FastAPI(title="AlexNet trainer", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.authenticator = authenticator
    for resource in ENDPOINTS:
        add_endpoint(app, worker, resource)
    errors: dict[int | str, dict[str, Any]] = {code: {"description": d, "model": Problem} for code, d in ERRORS.items()}
    errors[202] = {"description": f"Not done within {ACT_SECONDS:g} s; it will be."}

    async def act(kind: str, author: str, body: Reason | None) -> Response:
        fields = body.model_dump() if body else {}
        try:
            return await worker.act({"kind": kind, "author": author, **fields}, ACT_SECONDS)
        except TimeoutError:
            return JSONResponse({"pending": True}, 202)
        except OSError:
            return error_response(409, "the run has just ended, expected it to go on; start it again")

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
    app.add_middleware(tolerant)
    return app


def tolerant(app: ASGIApp) -> ASGIApp:
    """Middleware: the application sees each request as its sender means it."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await app(as_meant(scope) if scope["type"] == "http" else scope, receive, send)

    return handle


def as_meant(scope: Scope) -> Scope:
    """A request without what clients get wrong.

    Monitors and load balancers send HEAD: it is answered as GET, and uvicorn sends no body. A path may end with a
    slash. A body is JSON whatever it is said to be: curl says that it is a form. (No page elsewhere gains by that, for
    a browser lets none send the token.)
    """
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    json_headers = [*headers, (b"content-type", b"application/json")]
    return {**scope, "method": method, "path": scope["path"].rstrip("/") or "/", "headers": json_headers}


def add_endpoint(app: FastAPI, worker: WorkerClient, endpoint: Endpoint) -> None:
    """Add a GET route that the worker answers."""

    async def handler() -> Response:
        return await worker.get(endpoint)

    described: dict[int | str, dict[str, Any]] = {200: {"content": {endpoint.media_type: {}}}}
    for code in (404, 503):
        described[code] = {"description": "Not yet, or not well.", "content": {"application/json": {}}}
    app.add_api_route(
        endpoint.path,
        handler,
        response_class=Response,
        summary=endpoint.summary,
        operation_id=endpoint.path.strip("/"),
        responses=described,
    )


def add_page(app: FastAPI) -> None:
    """Add the status page at /; its Content-Security-Policy allows only its own script and style."""
    html = PAGE.read_text(encoding="utf-8")

    def allowed(tag: str) -> str:
        parts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{each}'" for each in hashes)

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}

    @app.get("/", response_class=Response, summary="The status page.", responses={200: {"content": {"text/html": {}}}})
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=headers)


def add_errors(app: FastAPI) -> None:
    """Make every error response {"error": one line}."""

    @app.exception_handler(StarletteHTTPException)
    async def of_http(request: Request, error: StarletteHTTPException) -> Response:
        path = request.scope["path"]
        what = {
            400: "the body cannot be read, expected JSON in UTF-8",
            404: f"there is no {path}, expected a path of this server",
            405: f"{path} does not take {request.method}, expected {(error.headers or {}).get('Allow')}",
        }.get(error.status_code)
        return error_response(
            error.status_code, f"{what}; see /openapi.json" if what else f"{error.detail}", error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        no_json = [each["ctx"]["error"] for each in error.errors() if each["type"] == "json_invalid"]
        if no_json:
            found = [f"the body is no JSON ({no_json[0]}), expected JSON in UTF-8"]
        return error_response(422, f"{' or '.join(found)}; see /openapi.json")


def main() -> int:
    """Serve with the worker's settings (JSON): file descriptors of the listening socket and the pipe, and paths."""
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the worker; this process ends after it
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)  # training has priority on the processor
    settings = json.loads(sys.argv[1])
    worker = WorkerClient(Connection(settings["channel"]))
    token_file = settings["token_file"]
    app = create_app(worker, Authenticator(Path(token_file) if token_file else None, settings["is_leader"]))
    listener = socket.socket(fileno=settings["listener"])
    asyncio.run(serve(LimitsMiddleware(app), listener, settings["tls"], worker.listen))
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
