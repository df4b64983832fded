"""A store on this host, by HTTP, that is slow, fails, breaks off and lies: for processes of their own."""

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOW_OFTEN = 0.15  # of each request to fail in some way


class Handler(BaseHTTPRequestHandler):
    """Files below `folder`, whole or a range of bytes; what goes wrong is drawn from `draws`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *given: object, folder: Path, draws: random.Random, lock: threading.Lock):
        self.folder, self.draws, self.lock = folder, draws, lock
        super().__init__(*given)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        with self.lock:
            fault = self.draws.choice(("slow", "error", "breaks off", "lies"))
            fault = fault if self.draws.random() < HOW_OFTEN else ""
        data, status = path.read_bytes(), 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            data, status = data[first : last + 1], 206
        if fault == "slow":
            time.sleep(0.2)
        elif fault == "error":
            self.send_error(503)
            return
        elif fault == "lies" and path.suffix == ".tar":  # of what has checksums
            data = bytes(len(data))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "breaks off" else data)
        self.close_connection = fault == "breaks off"


@contextmanager
def faulty_store(folder: Path, seed: int) -> Iterator[str]:
    """Its URL."""
    handler = partial(Handler, folder=folder, draws=random.Random(seed), lock=threading.Lock())
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
