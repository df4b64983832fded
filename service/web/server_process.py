"""Starts the HTTP server's process, keeps it alive, and answers its requests beside the training loop."""

import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from socket import socket
from typing import Any, Final, NamedTuple

from pipeline.command import InputError
from service.run.events import Act
from service.training.control_queue import ControlQueue, Refused

RESTART_SECONDS: Final = 0.5  # delay before a server that died is started again; doubled each time that it dies soon
MAX_RESTART_SECONDS: Final = 60.0  # the longest such delay
CLOSE_SECONDS: Final = 5.0


class HttpResponse(NamedTuple):
    """The response that a client gets."""

    status: int
    type: str  # of the body
    body: bytes


def json_response(value: Any, status: int = 200) -> HttpResponse:
    """A response with a JSON body; its numbers must be finite."""
    return HttpResponse(status, "application/json", json.dumps(value, allow_nan=False).encode())


def check_tls(certificate: Path, key: Path) -> None:
    """InputError where the files are not a certificate and its key."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        files = f"{certificate} and {key}"
        remedy = "set --tls-certificate and --tls-key"
        raise InputError(
            f"{files} cannot be used ({error}), expected a PEM certificate and its key; {remedy}"
        ) from error


class ServerProcess:
    """A worker's HTTP server: its process, a thread that answers its requests, and one that sends the responses."""

    def __init__(
        self,
        listener: socket,
        get: Callable[[str], HttpResponse],
        control_queue: ControlQueue,
        *,
        token_file: Path | None,
        is_leader: bool,
        tls: tuple[Path, Path] | None,
        say: Callable[[str], None],
    ):
        """get: answers the GET of a path; any thread may call it. is_leader: whether acts are taken here."""
        self._listener, self._get, self._control_queue, self._say = listener, get, control_queue, say
        self._settings = {
            "listener": listener.fileno(),
            "token_file": token_file and str(token_file),
            "is_leader": is_leader,
            "tls": tls and [str(path) for path in tls],
        }
        self._closing = threading.Event()
        self._responses: SimpleQueue[tuple[Connection, bytes, bytes] | None] = SimpleQueue()
        self._start()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._send)]
        for thread in self._threads:
            thread.start()

    def _start(self) -> None:
        self._channel, theirs = Pipe()
        inherited = self._listener.fileno(), theirs.fileno()
        settings = json.dumps({**self._settings, "channel": theirs.fileno()})
        # A session of its own: a terminal's Ctrl-C is meant for the worker, which clients may still ask how it ends.
        arguments = [sys.executable, "-m", "service.web.api", settings]
        try:
            self._process = subprocess.Popen(
                arguments, pass_fds=inherited, start_new_session=True, stdin=subprocess.DEVNULL
            )
        finally:
            theirs.close()

    def _serve(self) -> None:
        wait = RESTART_SECONDS
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                while True:
                    self._handle_request(self._channel, json.loads(self._channel.recv_bytes()))
            except (EOFError, OSError):
                pass
            wait = (
                RESTART_SECONDS
                if time.monotonic() - began > MAX_RESTART_SECONDS
                else min(2 * wait, MAX_RESTART_SECONDS)
            )
            if self._closing.wait(wait):
                return
            self._say(f"the HTTP server ended with {self._process.wait()}, expected it to go on; it is started again")
            try:
                self._start()
            except (
                OSError
            ) as error:  # perhaps no memory, which ended the last one too; the channel is closed, so it is tried again
                self._say(f"the HTTP server cannot be started ({error}), expected it to; it is tried again")

    def _handle_request(self, channel: Connection, request: dict[str, Any]) -> None:
        def send(answer: HttpResponse) -> None:
            head = json.dumps({"id": request["id"], "status": answer.status, "type": answer.type})
            self._responses.put((channel, head.encode(), answer.body))

        if "get" in request:
            send(self._get_response(request["get"]))
            return
        try:
            self._control_queue.submit(Act(**request["act"])).add_done_callback(lambda done: send(act_response(done)))
        except Refused as error:
            send(json_response({"error": str(error)}, error.status))

    def _get_response(self, path: str) -> HttpResponse:
        try:
            return self._get(path)
        except Exception as error:  # an error in one resource must not end the others, nor training
            self._say(f"GET {path} failed ({error!r}), expected an answer; report this")
            return json_response({"error": f"{path} failed ({error!r}), expected an answer; see the worker's log"}, 500)

    def _send(self) -> None:
        """Send queued responses, so that no other thread, the training loop's included, waits for a slow server."""
        while item := self._responses.get():
            channel, *parts = item
            try:
                for part in parts:
                    channel.send_bytes(part)
            except OSError:
                pass  # the server has died, and its clients have lost their connections

    def close(self) -> None:
        """Send the responses that are queued, and end the process."""
        self._closing.set()
        self._responses.put((self._channel, b"null", b""))
        self._responses.put(None)
        try:
            self._process.wait(timeout=CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=CLOSE_SECONDS)
        self._channel.close()
        self._listener.close()


def act_response(done: "Future[dict[str, Any]]") -> HttpResponse:
    """The response to an act that is done or refused."""
    try:
        return json_response(done.result())
    except Exception as error:  # whatever the error, a client waits for a response
        return json_response({"error": str(error)}, error.status if isinstance(error, Refused) else 500)
