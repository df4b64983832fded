"""Prometheus metrics of a sharding run: every metric's name, unit and help."""

import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app, start_http_server
from prometheus_client.process_collector import ProcessCollector

from pipeline.command import InputError
from pipeline.host.address import host_and_port
from pipeline.source.listing import Picture
from pipeline.write.record import ShardResult

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class ShardMetrics:
    """The metrics of one run, in a registry of their own."""

    def __init__(self, planned: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gauge("shard_planned_pictures", "Pictures of the source.").set(planned)
        self.pictures = self._counter("shard_pictures_total", "Pictures done, those of an earlier run too.")
        self.rejected = self._counter("shard_rejected_pictures_total", "Pictures left out because they do not decode.")
        self.source_bytes = self._counter("shard_source_bytes_total", "Bytes of the source's pictures that are done.")
        self.written_bytes = self._counter("shard_written_bytes_total", "Bytes of finished tars.")
        self.shards = self._counter("shard_shards_total", "Shards done, those of an earlier run too.")
        self.resumed = self._counter("shard_resumed_shards_total", "Shards that an earlier run had made.")
        self.start = self._gauge("shard_start_timestamp_seconds", "When the run began, Unix time.")
        self.start.set_to_current_time()

    def observe(self, pictures: tuple[Picture, ...], made: ShardResult, before: bool) -> None:
        """Count a shard that is done; `before`: by an earlier run."""
        self.pictures.inc(len(pictures))
        self.source_bytes.inc(sum(picture.bytes for picture in pictures))
        self.rejected.inc(len(made.rejects))
        self.written_bytes.inc(made.shard.bytes if made.shard else 0)
        self.shards.inc()
        self.resumed.inc(before)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, registry=self.registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(name, help, registry=self.registry)


@contextmanager
def serve_metrics(metrics: ShardMetrics, host: str, port: int | None) -> Iterator[None]:
    """Serve the metrics over HTTP while the block runs, where there is a port; 0 takes a free one, and names it."""
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except (OSError, socket.gaierror) as error:
        raise InputError(f"--metrics-port {port} of {host} cannot be served ({error}); give another, or 0") from error
    server.set_app(_answering_head(make_wsgi_app(metrics.registry)))
    sys.stderr.write(f"metrics: http://{host_and_port(host, server.server_port)}/metrics\n")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answering_head(app: "WSGIApplication") -> "WSGIApplication":
    """Answers HEAD, which monitors send, as GET without its body."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return app(environ, start_response)
        started: list[Any] = []

        def hold_back(*head: Any) -> Callable[[bytes], None]:
            started.extend(head)
            return lambda data: None

        body = b"".join(app({**environ, "REQUEST_METHOD": "GET"}, hold_back))
        status, headers, *_ = started
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return []

    return answer
