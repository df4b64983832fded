"""The worker's response to each GET, in any phase and from any thread."""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from model.parallel import Layout
from service.run.checkpoint import step_of
from service.run.config import Run
from service.run.filters import filters_png
from service.telemetry.heartbeat import Heartbeat
from service.telemetry.metrics import Metrics
from service.telemetry.preview import preview_json
from service.training.ranks import Ranks
from service.training.worker import Worker
from service.web.server_process import HttpResponse, json_response
from service.web.status import run_facts, status

LAST_SCRAPE_SECONDS: Final = 20.0  # that a finished run waits at most for its last scrape


def not_yet(what: str) -> HttpResponse:
    """404 for what is not there yet."""
    return json_response({"error": f"there are no {what} yet, expected some soon; ask again later"}, 404)


class Responses:
    """The responses of a worker, by path; `worker` is None until it is set up."""

    def __init__(
        self, run: Run, ranks: Ranks, layout: Layout | None, device: str, metrics: Metrics, heartbeat: Heartbeat
    ):
        self.worker: Worker | None = None
        self.targets: list[str] = []
        self._run, self._ranks, self._metrics, self._heartbeat = run, ranks, metrics, heartbeat
        self._facts, self._started = run_facts(run, ranks.world_size, layout, device), time.time()
        self._filters: tuple[Path, bytes] | None = None
        self._scrapes: deque[float] = deque(maxlen=2)
        self._scraped = threading.Event()
        self._by_path: dict[str, Callable[[], HttpResponse]] = {
            "/metrics": self._exposition,
            "/healthz": self._health,
            "/readyz": self._ready,
            "/api/status": lambda: json_response(self._status()),
            "/api/curve": self._curve,
            "/api/pictures": self._pictures,
            "/filters.png": self._filters_png,
            "/api/targets": lambda: json_response([{"targets": self.targets}]),
        }

    def __call__(self, path: str) -> HttpResponse:
        """The response to GET path."""
        return self._by_path[path]()

    def _exposition(self) -> HttpResponse:
        body, kind = self._metrics.exposition()
        self._scrapes.append(time.monotonic())
        self._scraped.set()
        return HttpResponse(200, kind, body)

    def wait_for_last_scrape(self) -> None:
        """Let Prometheus see how the run has ended: wait for its next scrape, two of its intervals at most."""
        if len(self._scrapes) < 2:
            return
        self._scraped.clear()
        before, last = self._scrapes
        self._scraped.wait(min(LAST_SCRAPE_SECONDS, last + 2 * (last - before) - time.monotonic()))

    def _health(self) -> HttpResponse:
        found = self._heartbeat.health()
        return json_response(found, 200 if found["status"] == "ok" else 503)

    def _ready(self) -> HttpResponse:
        ready = self.worker is not None and self.worker.latest is not None
        return json_response({"ready": ready, "phase": self._heartbeat.phase}, 200 if ready else 503)

    def _status(self) -> dict[str, Any]:
        control = self._ranks.is_leader and self._run.token_file is not None
        found = status(self._facts, self._heartbeat, self._metrics, self.worker, control, self._started)
        good = self.worker and self.worker.writer.last_good
        step = step_of(good) if good else None
        return {**found, "rank": self._ranks.rank, "filters_step": step}

    def _curve(self) -> HttpResponse:
        return json_response(self.worker.curve.columns()) if self.worker else not_yet("losses")

    def _pictures(self) -> HttpResponse:
        """The pictures captured after the last request; this request makes the training loop capture new ones."""
        if not self.worker or not (latest := self.worker.preview.latest):
            return not_yet("pictures")
        self.worker.preview.requested = True
        return json_response(preview_json(latest, self.worker.loader.dataset.classes))

    def _filters_png(self) -> HttpResponse:
        good = self.worker and self.worker.writer.last_good
        if not good:
            return not_yet("filters")
        if not self._filters or self._filters[0] != good:
            try:
                self._filters = good, filters_png(good)
            except OSError:  # it is on the disk of rank 0's host
                return not_yet("filters")
        return HttpResponse(200, "image/png", self._filters[1])
