"""Every Prometheus metric of the worker: name, unit, help."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from pipeline.command import output_of
from service.run.events import KINDS, describe_change
from service.run.log import StepRecord
from service.telemetry.gpu import gpu_state
from service.telemetry.heartbeat import Heartbeat

STEP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PHASES: Final = ("data_wait", "compute", "checkpoint_copy")
REPLACED: Final = ("damaged",)  # why a sample may be replaced
LATEST_EVENTS: Final = 20  # events with a series of their own; few, because each adds a new series


class Metrics:
    """The worker's series, in a registry of its own; all of them exist from the start, so that none is ever absent."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry
        self._of_steps(registry)
        self._of_the_run(registry)
        self._of_the_machine(registry)
        build = Info("trainer_build", "Versions that this process runs.", registry=registry)
        build.info({"torch": torch.__version__, "python": platform.python_version()})

    def _of_steps(self, registry: CollectorRegistry) -> None:
        self.samples = Counter("trainer_samples", "Pictures trained on by this process.", registry=registry)
        self.steps = Counter("trainer_steps", "Training steps done by this process.", registry=registry)
        self.step_seconds = Histogram(
            "trainer_step_seconds", "Time of a step by phase.", ["phase"], buckets=STEP_BUCKETS, registry=registry
        )
        for phase in PHASES:
            self.step_seconds.labels(phase)
        self.epoch = Gauge("trainer_epoch", "Epochs done, fractional.", registry=registry)
        self.progress = Gauge(
            "trainer_progress_ratio", "Share of the run that is done; NaN before that is known.", registry=registry
        )
        self.rate = Gauge("trainer_samples_per_second", "Pictures a second, over about ten seconds.", registry=registry)
        self.data_wait = Gauge(
            "trainer_data_wait_ratio",
            "Share of time spent waiting for data, over about ten seconds.",
            registry=registry,
        )
        self.mfu = Gauge(
            "trainer_mfu_ratio",
            "Model FLOP utilisation: arithmetic done over that of the stated peak; NaN where none is stated.",
            registry=registry,
        )
        self.loss = Gauge("trainer_loss", "Training loss of the last step that was read.", registry=registry)
        self.gradient_norm = Gauge("trainer_gradient_norm", "L2 norm of the gradient of that step.", registry=registry)
        self.learning_rate = Gauge("trainer_learning_rate", "Learning rate of the current step.", registry=registry)
        self.error = Gauge(
            "trainer_validation_error_ratio", "Validation error of the last epoch.", ["top"], registry=registry
        )
        at_first = (self.epoch, self.progress, self.loss, self.gradient_norm, self.learning_rate, self.mfu)
        for unknown in (*at_first, *(self.error.labels(top) for top in ("1", "5"))):
            unknown.set(float("nan"))  # 0 would look like a measured value

    def _of_the_run(self, registry: CollectorRegistry) -> None:
        self.checkpoint_attempts = Counter("trainer_checkpoint_attempts", "Checkpoints begun.", registry=registry)
        self.checkpoint_failures = Counter("trainer_checkpoint_failures", "Checkpoints that failed.", registry=registry)
        self.checkpoint_seconds = Gauge(
            "trainer_checkpoint_duration_seconds", "Time that the last checkpoint took to write.", registry=registry
        )
        self.checkpoint_bytes = Gauge(
            "trainer_checkpoint_size_bytes", "Size of the last checkpoint that succeeded.", registry=registry
        )
        self.checkpoints_bytes = Gauge(
            "trainer_checkpoints_size_bytes",
            "Size of all checkpoints in the run's folder, of those that cannot be removed too.",
            registry=registry,
        )
        self.unremoved = Gauge(
            "trainer_checkpoints_unremoved", "Old checkpoints that could not be removed.", registry=registry
        )
        self.checkpoint_time = Gauge(
            "trainer_checkpoint_last_success_timestamp_seconds", "When a checkpoint last succeeded.", registry=registry
        )
        self.nonfinite = Counter(
            "trainer_nonfinite_steps",
            "Steps with a loss or gradient not finite, or a loss beyond the limit.",
            registry=registry,
        )
        self.restarts = Gauge("trainer_restarts", "Resumes of this run so far.", registry=registry)
        self.events = Counter("trainer_events", "Acts upon the run by kind.", ["kind"], registry=registry)
        for kind in KINDS:
            self.events.labels(kind)
        self.replaced = Counter(
            "trainer_samples_replaced",
            "Samples for which another stood in, by reason: damaged bytes are not what was sharded.",
            ["reason"],
            registry=registry,
        )
        for reason in REPLACED:
            self.replaced.labels(reason)
        self.progress_time = Gauge(
            "trainer_last_progress_timestamp_seconds", "When anything was last done.", registry=registry
        )
        self.progress_limit = Gauge(
            "trainer_progress_limit_seconds", "How long the next thing may take at most.", registry=registry
        )
        self.paused = Gauge("trainer_paused", "1 while an operator has the run pause.", registry=registry)
        self.drop_proposed = Gauge(
            "trainer_drop_proposed",
            "1 while the validation error has stopped improving and the learning rate is the operator's to lower.",
            registry=registry,
        )
        self.latest_events: Iterable[Mapping[str, Any]] = ()
        registry.register(_EventTimes(self))
        self.failed_writes: dict[str, Callable[[], int]] = {"console": failed_prints, "log": int, "events": int}
        registry.register(_FailedWrites(self.failed_writes))

    def _of_the_machine(self, registry: CollectorRegistry) -> None:
        self._folder: Path | None = None
        self._gpu: int | None = None
        self.disk = Gauge(
            "trainer_disk_bytes",
            "The file system of the run's folder: its size and what is free; NaN on ranks that do not write there.",
            ["state"],
            registry=registry,
        )
        self.gpu_utilization = Gauge(
            "trainer_gpu_utilization_ratio",
            "Share of the last sampling period in which the GPU worked; NaN without NVML.",
            registry=registry,
        )
        self.gpu_temperature = Gauge(
            "trainer_gpu_temperature_celsius", "Temperature of the GPU; NaN without NVML.", registry=registry
        )
        self.device_memory = Gauge(
            "trainer_device_memory_bytes",
            "Memory of this process on its device: in use now, at most so far, and reserved; 0 without one.",
            ["state"],
            registry=registry,
        )
        ProcessCollector(registry=registry)  # the host's side: resident memory, processor time, open files

    def watch(self, heartbeat: Heartbeat, folder: Path | None, gpu: int | None) -> None:
        """Set what each scrape reads: the heartbeat, the run's folder, and the GPU (torch's device index)."""
        self.progress_time.set_function(lambda: heartbeat.last_time)
        self.progress_limit.set_function(lambda: heartbeat.limit_seconds)
        self._folder, self._gpu = folder, gpu

    def observe_step(self, record: StepRecord, pictures: int) -> None:
        """Record a finished step; pictures: how many of its pictures this process trained on."""
        self.steps.inc()
        self.samples.inc(pictures)
        self.epoch.set(record.epoch)
        self.loss.set(record.loss)
        self.gradient_norm.set(record.gradient_norm)
        self.learning_rate.set(record.learning_rate)
        self.data_wait.set(record.data_wait_ratio)

    def refresh(self) -> None:
        """Update the gauges that the training loop does not set: device memory, disk and GPU."""
        for state, size in device_memory(self._gpu).items():
            self.device_memory.labels(state).set(size)
        for state, size in disk_space(self._folder).items():
            self.disk.labels(state).set(size)
        gpu = gpu_state(self._gpu)
        self.gpu_utilization.set(gpu.utilization)
        self.gpu_temperature.set(gpu.celsius)

    def exposition(self) -> tuple[bytes, str]:
        """The text that Prometheus scrapes, and its content type."""
        self.refresh()
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def values(self) -> dict[str, float]:
        """Current values by metric name and label values, such as "trainer_disk_bytes free"."""
        self.refresh()
        samples = (sample for family in self.registry.collect() for sample in family.samples)
        return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


class _EventTimes(Collector):
    """Times of the latest events, with author and reason as labels, for the annotations of a Grafana dashboard."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "trainer_event_timestamp_seconds",
            f"When the latest {LATEST_EVENTS} acts upon the run happened.",
            labels=["kind", "step", "author", "reason", "change"],
        )
        times = {}  # of events that differ only in time, the last one
        for event in list(self._metrics.latest_events)[-LATEST_EVENTS:]:
            labels = event["kind"], event["step"], event["author"], event.get("reason", ""), describe_change(event)
            times[tuple(map(str, labels))] = event.get("time", 0)
        for labels, at in times.items():
            family.add_metric(labels, at)
        yield family


class _FailedWrites(Collector):
    """Writes of lines that failed, counted where they are made."""

    def __init__(self, counts: Mapping[str, Callable[[], int]]):
        self._counts = counts

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(
            "trainer_failed_writes",
            "Writes that failed, of lines to the console, which are lost, and to log and events, which wait for room.",
            labels=["to"],
        )
        for to, count in self._counts.items():
            family.add_metric([to], count())
        yield family


def failed_prints() -> int:
    """Writes to this process's standard streams that failed."""
    return sum(output.lost for stream in (sys.stdout, sys.stderr) if (output := output_of(stream)))


def disk_space(folder: Path | None) -> dict[str, float]:
    """Bytes of the file system that holds a folder; NaN without one."""
    try:
        usage = shutil.disk_usage(folder) if folder else None
    except OSError:
        usage = None
    return {"size": usage.total, "free": usage.free} if usage else {"size": float("nan"), "free": float("nan")}


def device_memory(gpu: int | None) -> dict[str, int]:
    """Bytes that this process has on a GPU, by state; zeros without one."""
    if gpu is None:
        return {"allocated": 0, "peak": 0, "reserved": 0}
    return {
        "allocated": torch.cuda.memory_allocated(gpu),
        "peak": torch.cuda.max_memory_allocated(gpu),
        "reserved": torch.cuda.memory_reserved(gpu),
    }
