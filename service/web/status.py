"""The content of /api/status, which the page shows: plain values, null where a number is not known."""

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from model.parallel import Layout
from service.run.checkpoint import MANIFEST, checkpoints, step_of
from service.run.config import Run
from service.run.events import proposed_rate_drop
from service.run.log import EVENTS_FILE, LOG_FILE
from service.telemetry.heartbeat import Heartbeat
from service.telemetry.metrics import REPLACED, Metrics
from service.training.worker import Worker

DATA_WAIT_HIGH: Final = 0.2  # share of time; as in docker/prometheus/rules.yml
DISK_CHECKPOINTS: Final = 3  # that must still fit


def finite_or_none(value: float | None) -> float | None:
    """A number, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def run_facts(run: Run, world_size: int, layout: Layout | None, device: str) -> dict[str, Any]:
    """The facts about a run that do not change."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    sizes = {"batch_size": run.batch_size, "epochs": run.epochs, "ranks": world_size}
    return {
        "recipe": run.recipe,
        "out": str(run.out),
        **sizes,
        "towers": 1 if run.model.layout == "torchvision" else run.model.columns,
        "layout": layout,
        "device": device,
        "versions": versions,
    }


def run_progress(worker: Worker) -> dict[str, Any]:
    """Where a run stands, and what has happened to it."""
    state, latest, samples = worker.state, worker.latest, worker.samples
    rate = latest.images_per_second if latest else 0.0
    measured = state.evaluation
    left = (worker.total_steps - state.step) * worker.run.batch_size
    numbers = {
        "data_wait_ratio": latest and latest.data_wait_ratio,
        "loss": latest and latest.loss,
        "gradient_norm": latest and latest.gradient_norm,
        "images_per_second": rate or None,
        "eta_seconds": left / rate if rate else None,
        "mfu": rate / worker.peak_pictures_per_second,
    }
    return {
        "paused": worker.paused,
        "step": state.step,
        "total_steps": worker.total_steps,
        "epoch": state.position / samples,
        "samples_per_epoch": samples,
        "progress": state.step / worker.total_steps,
        "learning_rate": worker.rates.base,
        "restarts": state.restarts,
        "precision": worker.run.model.precision,
        "history": [{**asdict(entry), "loss": finite_or_none(entry.loss)} for entry in state.history],
        "evaluation": asdict(measured) if measured and measured.step == state.step else None,
        "events": list(state.events),
        "proposal": proposed_rate_drop(worker.run.optim, state, worker.rates.base),
        **{name: finite_or_none(value) for name, value in numbers.items()},
    }


def kept_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """The checkpoints in a run's folder, newest first."""
    found = []
    for path in checkpoints(folder):
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            written = (path / MANIFEST).stat().st_mtime
        except OSError:
            continue  # just being removed
        found.append({"step": step_of(path), "time": written, "bytes": size})
    return found


def checkpoint_status(values: Mapping[str, float], folder: Path) -> dict[str, Any]:
    """Attempts, failures and sizes of checkpoints, and those kept; rank 0 alone writes them."""
    return {
        "attempts": int(values["trainer_checkpoint_attempts_total"]),
        "failures": int(values["trainer_checkpoint_failures_total"]),
        "last_seconds": values["trainer_checkpoint_duration_seconds"] or None,
        "last_bytes": values["trainer_checkpoint_size_bytes"] or None,
        "kept": kept_checkpoints(folder),
    }


def alert(name: str, severity: str, summary: str) -> dict[str, str]:
    """An alert, with the name and severity that it has in Prometheus's rules."""
    return {"name": name, "severity": severity, "summary": summary}


def alerts(
    health: Mapping[str, Any],
    values: Mapping[str, float],
    progress: Mapping[str, Any],
    failed: str,
    unwritten: Mapping[str, str],
) -> list[dict[str, str]]:
    """What is wrong as far as the worker itself can see; Prometheus's rules see more.

    failed: the last save's error; unwritten: why a file's lines wait, by its name.
    """
    found = []
    if health["status"] != "ok":
        age, limit = health["seconds_since_progress"], health["limit_seconds"]
        words = f"{health['phase']}: nothing was done for {age:,.0f} s, expected something within {limit:,.0f} s"
        found.append(alert("TrainerStalled", "critical", words))
    if failed:
        found.append(alert("TrainerCheckpointFailing", "critical", failed))
    for name, why in unwritten.items():
        found.append(alert("TrainerWritesFailing", "warning", f"{name} cannot be written ({why}); its lines wait"))
    if lost := values["trainer_failed_writes_total console"]:
        found.append(alert("TrainerConsoleLost", "info", f"{lost:,.0f} writes to the console failed: nobody reads it"))
    if unremoved := values["trainer_checkpoints_unremoved"]:
        words = f"{unremoved:,.0f} old checkpoints cannot be removed; the worker's log says why"
        found.append(alert("TrainerCheckpointsUnremoved", "warning", words))
    free, size = values["trainer_disk_bytes free"], values["trainer_checkpoint_size_bytes"]
    if size and free < DISK_CHECKPOINTS * size:
        words = (
            f"{free / 1e9:,.2f} GB are free, expected room for {DISK_CHECKPOINTS} checkpoints of {size / 1e9:,.2f} GB"
        )
        found.append(alert("TrainerDiskFilling", "warning", words))
    wait = progress.get("data_wait_ratio")
    if wait and wait > DATA_WAIT_HIGH and health["phase"] == "training":
        words = f"{wait:.0%} of the time goes to waiting for data, expected less than {DATA_WAIT_HIGH:.0%}"
        found.append(alert("TrainerDataWaitHigh", "warning", words))
    if replaced := sum(values[f"trainer_samples_replaced_total {reason}"] for reason in REPLACED):
        found.append(alert("TrainerSamplesReplaced", "warning", f"{replaced:,.0f} samples were damaged and replaced"))
    if suggested := progress.get("proposal"):
        found.append(alert("TrainerPlateau", "info", suggested["reason"]))
    return found


def status(
    facts: Mapping[str, Any],
    heartbeat: Heartbeat,
    metrics: Metrics,
    worker: Worker | None,
    control: bool,
    started: float,
) -> dict[str, Any]:
    """All of /api/status; worker: None while it is being set up."""
    health, values = heartbeat.health(), metrics.values()
    stands = run_progress(worker) if worker else {"paused": False}
    failed = worker.writer.failed if worker else ""
    logs = {LOG_FILE: worker.log, EVENTS_FILE: worker.events} if worker else {}
    unwritten = {name: log.fault for name, log in logs.items() if log.fault}
    return {
        "run": facts,
        "phase": health["phase"],
        "health": health,
        "started": started,
        "now": time.time(),
        "control": control,
        "checkpoints": checkpoint_status(values, Path(facts["out"])),
        "alerts": alerts(health, values, stands, failed, unwritten),
        **stands,
    }
