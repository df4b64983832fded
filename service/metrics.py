"""Every Prometheus metric of the worker: name, unit, help."""

import platform
from typing import Final

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

STEP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PHASES: Final = ("data_wait", "compute", "checkpoint_copy")
EVENT_KINDS: Final = ("learning-rate",)


class Metrics:
    """The worker's series, in a registry of its own; all of them exist from the start, so that none is ever absent."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry
        self.samples = Counter("trainer_samples", "Pictures trained on by this process.", registry=registry)
        self.steps = Counter("trainer_steps", "Training steps done by this process.", registry=registry)
        self.step_seconds = Histogram(
            "trainer_step_seconds", "Time of a step by phase.", ["phase"], buckets=STEP_BUCKETS, registry=registry
        )
        for phase in PHASES:
            self.step_seconds.labels(phase)
        self.epoch = Gauge("trainer_epoch", "Epochs done, fractional.", registry=registry)
        self.progress = Gauge("trainer_progress_ratio", "Share of the run that is done.", registry=registry)
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
        self.mfu.set(float("nan"))
        self.loss = Gauge("trainer_loss", "Training loss of the last step that was read.", registry=registry)
        self.gradient_norm = Gauge("trainer_gradient_norm", "L2 norm of the gradient of that step.", registry=registry)
        self.learning_rate = Gauge("trainer_learning_rate", "Learning rate of the current step.", registry=registry)
        self.error = Gauge(
            "trainer_validation_error_ratio", "Validation error of the last epoch.", ["top"], registry=registry
        )
        for top in ("1", "5"):
            self.error.labels(top).set(float("nan"))
        self.attempts = Counter("trainer_checkpoint_attempts", "Checkpoints begun.", registry=registry)
        self.failures = Counter("trainer_checkpoint_failures", "Checkpoints that failed.", registry=registry)
        self.checkpoint_seconds = Gauge(
            "trainer_checkpoint_duration_seconds", "Time that the last checkpoint took to write.", registry=registry
        )
        self.checkpoint_bytes = Gauge(
            "trainer_checkpoint_size_bytes", "Size of the last checkpoint that succeeded.", registry=registry
        )
        self.checkpoint_time = Gauge(
            "trainer_checkpoint_last_success_timestamp_seconds", "When a checkpoint last succeeded.", registry=registry
        )
        self.nonfinite = Counter(
            "trainer_nonfinite_steps", "Steps with a loss or gradient not finite.", registry=registry
        )
        self.restarts = Gauge("trainer_restarts", "Resumes of this run so far.", registry=registry)
        self.events = Counter("trainer_events", "Acts upon the run by kind.", ["kind"], registry=registry)
        for kind in EVENT_KINDS:
            self.events.labels(kind)
        self.device_memory = Gauge(
            "trainer_device_memory_bytes",
            "Memory of this process on its device: in use now, at most so far, and reserved; 0 without one.",
            ["state"],
            registry=registry,
        )
        ProcessCollector(registry=registry)  # the host's side: resident memory, processor time, open files
        build = Info("trainer_build", "Versions that this process runs.", registry=registry)
        build.info({"torch": torch.__version__, "python": platform.python_version()})

    def exposition(self) -> tuple[bytes, str]:
        """The text that Prometheus scrapes, and its content type."""
        for state, size in device_memory().items():
            self.device_memory.labels(state).set(size)
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def device_memory() -> dict[str, int]:
    """Bytes of this process on its GPU by state."""
    if not torch.cuda.is_initialized():
        return {"allocated": 0, "peak": 0, "reserved": 0}
    return {
        "allocated": torch.cuda.memory_allocated(),
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
    }
