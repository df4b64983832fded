"""What clients cost: scrape latency and training speed, alone and while others are idle, slow or flooding.

A worker of the demo's network trains for real; the scenes are interleaved, so that what the machine does besides falls
on all alike. Scrapes are one after the other, each on a connection of its own.
"""

import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

IDLE, SLOW, FLOOD = 200, 50, 4


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Measure the worker's HTTP server under load."""

    seconds: float = 6.0
    """Of each scene in each round."""
    rounds: int = 5


def get(port: int, path: str) -> bytes:
    """A body on a connection of its own."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return answer.read()


def steps(port: int) -> int:
    return json.loads(get(port, "/api/status")).get("step", 0)  # none while the worker is set up


@contextmanager
def nobody(port: int) -> Iterator[None]:
    yield


@contextmanager
def idle(port: int) -> Iterator[None]:
    """Connections that say nothing."""
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


@contextmanager
def slow(port: int) -> Iterator[None]:
    """Requests whose headers never end."""
    with ExitStack() as stack:
        for _ in range(SLOW):
            each = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
        yield


def hammer(port: int) -> None:
    """Request after request, without end."""
    while True:
        get(port, "/metrics")


def spin(port: int) -> None:
    """Work that asks nobody anything."""
    while True:
        pass


@contextmanager
def processes(work: Callable[[int], None], port: int) -> Iterator[None]:
    """Some that do nothing but this."""
    clients = [multiprocessing.Process(target=work, args=(port,), daemon=True) for _ in range(FLOOD)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.kill()
            client.join()


SCENES: dict[str, Callable[[int], AbstractContextManager[None]]] = {
    "alone": nobody,
    f"{IDLE} idle": idle,
    f"{SLOW} slow": slow,
    f"{FLOOD} flooding": partial(processes, hammer),
    f"{FLOOD} spinning": partial(processes, spin),
}


def measured(port: int, seconds: float) -> tuple[list[float], float]:
    """Scrape latencies, and training steps a second meanwhile."""
    latencies, first, began = [], steps(port), time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        get(port, "/metrics")
        latencies.append(time.monotonic() - now)
        time.sleep(0.05)  # a scrape now and then, as Prometheus makes them
    return latencies, (steps(port) - first) / (time.monotonic() - began)


def worker(folder: Path) -> "tuple[subprocess.Popen[str], int]":
    """A worker on generated pictures, once it has compiled; its port."""
    python = [sys.executable, "-m"]
    subprocess.run([*python, "pipeline.sample", folder / "sample"], check=True, stderr=subprocess.DEVNULL)
    shards = ["pipeline.shard", folder / "sample", "--out", folder / "shards", "--size", "128"]
    subprocess.run([*python, *shards], check=True, stderr=subprocess.DEVNULL)
    options = ["--data.shards", folder / "shards", "--out", folder / "run", "--port", "0", "--epochs", "100000"]
    trains = [*python, "service.train", "demo", *options]
    process = subprocess.Popen(trains, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    port = next(int(line.split("/,")[0].rpartition(":")[2]) for line in process.stderr if "serving" in line)
    while steps(port) < 5:
        time.sleep(0.5)
    return process, port


def main() -> None:
    """Print a table: by scene, scrape latency and training speed beside that without clients."""
    options = tyro.cli(ServerOptions)
    found: dict[str, list[tuple[list[float], float]]] = {name: [] for name in SCENES}
    with tempfile.TemporaryDirectory() as folder:
        process, port = worker(Path(folder))
        try:
            for _ in range(options.rounds):
                for name, scene in SCENES.items():
                    with scene(port):
                        found[name].append(measured(port, options.seconds))
        finally:
            process.terminate()
            process.communicate()
    print("| clients | scrapes | latency, median ms | 99% ms | most ms | training, steps/s | of that alone |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, runs in found.items():
        latencies = sorted(1000 * latency for run, _ in runs for latency in run)
        late = latencies[int(0.99 * (len(latencies) - 1))]
        shares = [run[1] / alone[1] for run, alone in zip(runs, found["alone"], strict=True)]
        speed, share = statistics.median(run[1] for run in runs), statistics.median(shares)
        numbers = f"{statistics.median(latencies):.1f} | {late:.1f} | {latencies[-1]:.1f} | {speed:.2f}"
        print(f"| {name} | {len(latencies)} | {numbers} | {share:.2f} ({min(shares):.2f} to {max(shares):.2f}) |")


if __name__ == "__main__":
    main()
