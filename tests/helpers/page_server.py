"""The status page with made answers behind it: what the worker would say, changeable while a browser looks on."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from paths import ROOT
from pictures import encoded, photo

PAGE = ROOT / "service/web/page.html"
NOW = 1_795_203_999.0
TOKEN = "0123456789abcdef-alice"
DROPS = ((23, 0.01, 0.001), (31, 0.001, 0.0001))  # epoch, old and new rate

Json = dict[str, Any]


def content_security_policy(page: str) -> str:
    """The contract's policy, and Trusted Types besides: a sink for markup would throw."""

    def hashes(tag: str) -> str:
        parts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'" for p in parts)

    own = f"script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' data:; connect-src 'self'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"


def rate_event(step: int, epoch: float, old: float, new: float, **changes: Any) -> Json:
    """A learning-rate event of the events list."""
    rates = {"old": {"base": old, "conv1": old}, "new": {"base": new, "conv1": new}}
    base = {"kind": "learning-rate", "step": step, "epoch": epoch, "time": NOW - 86400 * (35 - epoch) / 5}
    return base | rates | {"author": "alice", "reason": "error stopped improving", "manual": True} | changes


def training(**changes: Any) -> Json:
    """/api/status in the middle of a run of the paper's recipe."""
    events = [rate_event(10009 * at, float(at), old, new) for at, old, new in DROPS]
    pause = {"step": 250500, "epoch": 25.03, "author": "bob", "reason": "power works in the machine room"}
    events[1:1] = [
        {"kind": kind, "time": NOW - 172800 + wait, **pause} for kind, wait in (("pause", 0), ("resume", 5400))
    ]
    kept = [{"step": s, "time": NOW - 240 - 790 * i, "bytes": 490_123_456} for i, s in enumerate((346000, 345000))]
    versions = {"torch": "2.13.0", "python": "3.11.7"}
    run = {
        "recipe": "paper",
        "out": "/runs/paper",
        "batch_size": 128,
        "epochs": 90,
        "ranks": 2,
        "towers": 2,
        "layout": "tower",
    }
    speed = {"images_per_second": 1213.4, "data_wait_ratio": 0.0123, "mfu": 0.412}
    state = {"loss": 1.3956, "gradient_norm": 1.2345, "learning_rate": 0.0001}
    status = {
        "run": run | {"device": "gpu", "versions": versions},
        "rank": 0,
        "phase": "training",
        "paused": False,
        "health": {"status": "ok", "phase": "training", "seconds_since_progress": 0.1, "limit_seconds": 600.0},
        **{"step": 346308, "total_steps": 900810, "epoch": 34.6, "samples_per_epoch": 1281167, "progress": 0.38444},
        **{"eta_seconds": 58490.0, "restarts": 1, "started": NOW - 400000, "now": NOW},
        **speed,
        **state,
        "history": [history_row(epoch) for epoch in range(1, 35)],
        "events": events,
        "checkpoints": {"attempts": 347, "failures": 0, "last_seconds": 1.24, "last_bytes": 490_123_456, "kept": kept},
        **{"filters_step": 346000, "proposal": None, "control": True, "alerts": []},
    }
    return status | changes


def starting() -> Json:
    """/api/status before the first step: nearly nothing is known."""
    known = ("run", "rank", "paused", "started", "now", "control", "alerts")
    health = {"status": "ok", "phase": "starting", "seconds_since_progress": 3.0, "limit_seconds": 3000.0}
    unknown = dict.fromkeys(("step", "epoch", "progress", "eta_seconds", "loss", "learning_rate", "filters_step"))
    return {name: training()[name] for name in known} | unknown | {"phase": "starting", "health": health}


def level(epoch: float) -> float:
    """A loss that falls, and falls again where the rate does."""
    drops = sum(0.55 * (1 - np.exp(-(epoch - at))) for at, _, _ in DROPS if epoch > at)
    return float(2.9 + 4.0 * np.exp(-epoch / 2.2) - 0.012 * epoch - drops)


def history_row(epoch: int) -> Json:
    """A validation whose error follows the loss."""
    loss = level(epoch) - 0.2 + 0.03 * np.sin(epoch * 2.3)
    top1 = float(np.clip(0.17 * loss + 0.06 + 0.004 * np.sin(epoch * 1.7), 0, 0.999))
    return {"epoch": epoch, "step": 10009 * epoch, "loss": float(loss), "top1": top1, "top5": 0.62 * top1**1.35}


def curve(until: float = 34.6, points: int = 900) -> Json:
    """/api/curve up to an epoch."""
    epochs = np.linspace(until / points, until, points)
    noise = np.random.default_rng(0).normal(0, 0.06, points)
    losses = [round(level(epoch) + each, 4) for epoch, each in zip(epochs, noise, strict=True)]
    return {"step": [round(10009 * e) for e in epochs], "epoch": [round(e, 4) for e in epochs], "loss": losses}


LABELS = ("tench, Tinca tinca", "goldfish", "great white shark", "tiger shark", "hammerhead", "electric ray", "cock")


def pictures(count: int = 16, labels: tuple[str, ...] = LABELS) -> Json:
    """/api/pictures."""
    jpegs = [base64.b64encode(encoded(photo(i, 112, 112))).decode() for i in range(count)]
    many = [(labels[i % len(labels)], f"n0144{i:04d}", jpeg) for i, jpeg in enumerate(jpegs)]
    return {"step": 346300, "pictures": [{"label": a, "class": b, "jpeg": c} for a, b, c in many]}


class PageServer:
    """Serves the page and what its attributes hold; `asked` lists the controls' requests as they came."""

    def __init__(self) -> None:
        self.port = 0
        self.reset()

    def reset(self) -> None:
        """A run in the middle of training, and controls that succeed."""
        self.status: Json = training()
        self.curve: Json = curve()
        self.pictures: Json = pictures()
        self.answers: dict[str, tuple[int, Json]] = {}
        self.hold = threading.Event()  # controls are answered when it is set
        self.hold.set()
        self.faults = 0  # so many requests for the status are answered by 503
        self.asked: list[tuple[str, str, Json]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator["PageServer"]:
        """Answer while the block runs, on the same port each time."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.hold.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def get(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body of a page's request."""
        if path == "/":
            return 200, "text/html; charset=utf-8", PAGE.read_bytes()
        if path == "/filters.png":
            return 200, "image/png", (ROOT / "docs" / "filters.png").read_bytes()
        if path == "/api/status" and self.faults:
            self.faults -= 1
            return 503, "application/json", b'{"error": "the worker does not answer"}'
        value = {"/api/status": self.status, "/api/curve": self.curve, "/api/pictures": self.pictures}.get(path)
        return (200 if value else 404), "application/json", json.dumps(value or {"error": "nothing here"}).encode()

    def post(self, action: str, authorization: str, body: Json) -> tuple[int, Json]:
        """A control's answer: a refusal of other tokens, else what `answers` holds."""
        self.asked.append((action, authorization, body))
        self.hold.wait()
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "the token is not one of the worker's, expected a line of --token-file; check it"}
        event = {"kind": action, "step": 346309, "epoch": 34.6, "time": NOW, "author": "alice", "manual": True}
        return self.answers.get(action, (200, {"event": event, "checkpoint": "step-00346309"}))


def _handler(owner: PageServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, content_type, body = owner.get(self.path.partition("?")[0])
            policy = content_security_policy(body.decode()) if content_type.startswith("text/html") else ""
            self._answer(code, content_type, body, {"Content-Security-Policy": policy} if policy else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, answer = owner.post(self.path.removeprefix("/api/"), self.headers.get("Authorization", ""), body)
            self._answer(code, "application/json", json.dumps(answer).encode(), {})

        def _answer(self, code: int, content_type: str, body: bytes, extra: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
