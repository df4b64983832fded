"""What metrics cost: all updates of a step, and a scrape, as shares of a training step's time and of a scrape interval.

    python benchmarks/instrumentation.py [--step-seconds 0.8] [--rounds 30]

Without --step-seconds a step is measured here: ours, compiled, batch 128, on the GPU where there is one.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import tyro
from prometheus_client import CollectorRegistry

from pipeline.host.memory import keep_freed_memory
from roofline import seconds_of
from service.run.log import StepRecord
from service.telemetry.heartbeat import Heartbeat
from service.telemetry.metrics import LATEST_EVENTS, Metrics
from step import Device, ours

UPDATES: Final = 1000  # in a round: one is too short for the clock
STEPS: Final = 9
SCRAPE_SECONDS: Final = 10.0  # between scrapes, as in docker/prometheus/prometheus.yml
RECORD: Final = StepRecord(
    step=1, epoch=0.1, loss=6.9, gradient_norm=1.0, learning_rate=0.01, images_per_second=160.0, data_wait_ratio=0.01
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    step_seconds: float = 0.0
    """Of a training step; 0 measures one here."""
    batch_size: int = 128
    """Of the step that is measured."""
    rounds: int = 30


def update(metrics: Metrics, heartbeat: Heartbeat) -> None:
    """All that service.training.worker tells of a step."""
    metrics.step_seconds.labels("data_wait").observe(0.001)
    metrics.step_seconds.labels("compute").observe(0.8)
    metrics.observe_step(RECORD, 128)
    metrics.progress.set(0.1)
    metrics.rate.set(160.0)
    metrics.mfu.set(0.5)
    heartbeat.beat("training")


def timed(work: Callable[[], object], rounds: int, repeats: int = 1) -> list[float]:
    """Seconds of one in each round."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        found.append((time.perf_counter() - start) / repeats)
    return found


def watched() -> tuple[Metrics, Heartbeat]:
    """Metrics with as many events as are ever shown."""
    metrics, heartbeat = Metrics(CollectorRegistry()), Heartbeat(600.0)
    metrics.watch(heartbeat, None, None)
    event = {"kind": "checkpoint", "author": "alice", "reason": "before the maintenance", "time": 1795203900.0}
    metrics.latest_events = [{**event, "step": step} for step in range(LATEST_EVENTS)]
    return metrics, heartbeat


def step_seconds(options: Options) -> list[float]:
    """Of a training step, as stated or as measured."""
    if options.step_seconds:
        return [options.step_seconds]
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    work = ours("paper", "bfloat16", options.batch_size, device)
    for _ in range(3):
        work()
    return [seconds_of(work, device) for _ in range(STEPS)]


def line(name: str, seconds: Sequence[float], whole: float, of: str) -> str:
    """A row of the table."""
    middle, low, high = (value * 1e6 for value in (statistics.median(seconds), min(seconds), max(seconds)))
    share = f"{middle / 1e6 / whole:.5%} of {of}" if of else ""
    return f"{name:28} {len(seconds):4} {middle:14,.1f} {f'{low:,.1f}-{high:,.1f}':>24}  {share}"


def main() -> None:
    """Measure and print the table."""
    options = tyro.cli(Options, description=__doc__)
    metrics, heartbeat = watched()
    updates = timed(lambda: update(metrics, heartbeat), options.rounds, UPDATES)
    scrapes = timed(metrics.exposition, options.rounds)
    size, series = len(metrics.exposition()[0]), metrics.exposition()[0].count(b"\n")
    steps = step_seconds(options)
    step = statistics.median(steps)
    print(f"{'':28} {'n':>4} {'median, us':>14} {'range':>24}  share")
    print(line("a training step", steps, step, ""))
    print(line("all metrics of a step", updates, step, "the step"))
    print(line("the same, of a step of 1 ms", updates, 0.001, "that"))
    print(line("a scrape", scrapes, SCRAPE_SECONDS, f"{SCRAPE_SECONDS:g} s, the time between scrapes"))
    print(f"an exposition has {series} lines, {size:,} bytes")


if __name__ == "__main__":
    main()
