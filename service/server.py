"""Starts the HTTP server's process, keeps it alive, and answers its questions beside the training loop."""

import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server, socket
from typing import Any, Final, NamedTuple

from pipeline.command import InputError
from service.desk import Desk, Refused
from service.events import Act

RESTART_SECONDS: Final = 1.0  # before a server that died is started again


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    type: str  # of the body
    body: bytes


def json_answer(value: Any, status: int = 200) -> Answer:
    """A JSON body; numbers are finite."""
    return Answer(status, "application/json", json.dumps(value, allow_nan=False).encode())


def listen(host: str, port: int) -> socket:
    """A listening socket; port 0 takes a free one; InputError when it cannot be had."""
    try:
        return create_server((host, port), family=AF_INET6 if ":" in host else AF_INET, backlog=1024)
    except (OSError, OverflowError) as error:  # the latter of a number that is no port
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host} port {port} cannot be used ({reason}), expected a free one; set --port or --host"
        ) from error


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


class Server:
    """The HTTP server of a worker; it takes a core's idle moments, and the loop's never."""

    def __init__(
        self,
        listener: socket,
        get: Callable[[str], Answer],
        desk: Desk,
        *,
        token_file: Path | None,
        tls: tuple[Path, Path] | None,
        say: Callable[[str], None],
    ):
        """get: answers the GET of a path; any thread may call it."""
        self._listener, self._get, self._desk, self._say = listener, get, desk, say
        self._settings = {
            "listener": listener.fileno(),
            "token_file": token_file and str(token_file),
            "tls": tls and [str(path) for path in tls],
        }
        self._closing, self._sending = threading.Event(), threading.Lock()
        self._start()
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self._thread.start()

    def _start(self) -> None:
        self._channel, theirs = Pipe()
        inherited = self._listener.fileno(), theirs.fileno()
        settings = json.dumps({**self._settings, "channel": theirs.fileno()})
        # A session of its own: a terminal's Ctrl-C is meant for the worker, which may still be asked how it ends.
        arguments = [sys.executable, "-m", "service.api", settings]
        self._process = subprocess.Popen(
            arguments, pass_fds=inherited, start_new_session=True, stdin=subprocess.DEVNULL
        )
        theirs.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            channel = self._channel
            try:
                while True:
                    self._answer(channel, json.loads(channel.recv_bytes()))
            except (EOFError, OSError):
                pass
            if self._closing.wait(RESTART_SECONDS):
                return
            status = self._process.wait()
            self._say(f"the HTTP server ended with {status}, expected it to go on; it is started again")
            self._start()

    def _answer(self, channel: Connection, question: dict[str, Any]) -> None:
        send = partial(self._send, channel, question["id"])
        if "get" in question:
            send(self._got(question["get"]))
            return
        try:
            self._desk.ask(Act(**question["act"])).add_done_callback(lambda done: send(answer_of(done)))
        except Refused as error:
            send(json_answer({"error": str(error)}, error.status))

    def _got(self, path: str) -> Answer:
        try:
            return self._get(path)
        except Exception as error:  # one resource's fault must not take the others with it, nor the training
            self._say(f"GET {path} failed ({error!r}), expected an answer; report this")
            return json_answer({"error": f"{path} failed ({error!r}), expected an answer; see the worker's log"}, 500)

    def _send(self, channel: Connection, number: int, answer: Answer) -> None:
        head = json.dumps({"id": number, "status": answer.status, "type": answer.type})
        try:
            with self._sending:
                channel.send_bytes(head.encode())
                channel.send_bytes(answer.body)
        except OSError:
            pass  # it has died; whoever asked has lost the connection

    def close(self) -> None:
        """Let answers that are under way arrive, and end the process."""
        self._closing.set()
        try:
            with self._sending:
                self._channel.send_bytes(b"null")
        except OSError:
            pass
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(timeout=5)
        self._channel.close()
        self._listener.close()


def answer_of(done: "Future[dict[str, Any]]") -> Answer:
    """What the loop has made of an act."""
    error = done.exception()
    if error is None:
        return json_answer(done.result())
    return json_answer({"error": str(error)}, error.status if isinstance(error, Refused) else 503)
