"""What a checkpoint of the paper's network costs: the loop's pause, the time until it is durable, and memory.

    python benchmarks/checkpoint.py [--folders /dev/shm .] [--slow 50] [--rounds 5]

Each round saves once into each folder, and once into the last one as if its disk took `slow` MB/s, which is made by
waiting in each flush. The pause is what the training loop waits for: the copy of weights and velocities. Memory is the
most that the process had (VmHWM) above what it had before the first save, in units of what is saved. Then steps of
batch 128 in float32 are timed, eager.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

import torch
import tyro
from prometheus_client import CollectorRegistry

from model.alexnet import ModelConfig
from model.network import make_network
from model.optim import MomentumSGD, OptimConfig
from model.step import StepControls, StepInputs, TrainingState, train_step
from pipeline import files
from pipeline.files import fsync_file, make_folders
from service.results.table import markdown
from service.run.checkpoint import RunState
from service.telemetry.metrics import Metrics
from service.training.checkpoint_writer import BackgroundSaver, CheckpointWriter
from service.training.snapshot import Snapshots

CLASSES, CROP, BATCH = 1000, 224, 128  # of the paper
MEGABYTE: Final = 1e6


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure what a checkpoint costs."""

    folders: tuple[Path, ...] = (Path("/dev/shm"), Path("."))
    """Where to save: memory, and a disk."""
    slow: float = 50.0
    """MB/s of a slow disk, which is made by waiting."""
    rounds: int = 5
    step: bool = True
    """Time the step too, which takes seconds."""


@dataclass(frozen=True)
class Cost:
    """Of one save."""

    pause: float  # seconds
    durable: float  # seconds, from when the pause began
    memory: int  # bytes


@contextmanager
def flushes_at(rate: float) -> Iterator[None]:
    """Flushes of files take as long as on a disk of so many bytes a second."""

    def flush(descriptor: int) -> bool:
        time.sleep(Path(f"/proc/self/fd/{descriptor}").stat().st_size / rate)
        return fsync_file(descriptor)

    with mock.patch.object(files, "fsync_file", flush):
        yield


def memory(which: str) -> int:
    """Bytes of memory: VmRSS, now, or VmHWM, the most since the peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{which}:"))


def saved(snapshots: Snapshots, saver: BackgroundSaver, step: int, before: int) -> Cost:
    """One save, as the worker does it; before: bytes that the process had before the first."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.monotonic()
    saver.wait()
    saver.submit(RunState(step=step), snapshots.take())
    pause = time.monotonic() - start
    assert saver.wait()
    return Cost(pause, time.monotonic() - start, memory("VmHWM") - before)


def timed_step(training: TrainingState) -> float:
    """Seconds of a step of the paper's batch."""
    pictures = torch.randint(0, 256, (BATCH, CROP, CROP, 3), dtype=torch.uint8)
    labels, positions = torch.randint(0, CLASSES, (BATCH,)), torch.arange(BATCH)
    weights = torch.full((BATCH,), 1 / BATCH)
    inputs = StepInputs(pictures, torch.zeros(BATCH, 3), torch.ones(BATCH), labels, positions, weights)
    start = time.monotonic()
    train_step(training, StepControls(torch.tensor([0.0, 0.0]), torch.zeros(3)), inputs)
    return time.monotonic() - start


def main() -> None:
    """Print a table: by place, pause, time until it is durable, and memory; then the step."""
    options = tyro.cli(Options)
    model = make_network(ModelConfig(precision="float32"), classes=CLASSES, crop=CROP, seed=0)
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
    training = TrainingState(model, optimizer, torch.zeros(CROP, CROP, 3), torch.tensor(True))
    size = sum(each.nbytes for each in (*model.parameters(), *optimizer.velocities.values()))
    snapshots, before = Snapshots(model, optimizer), memory("VmRSS")
    places = {str(folder): (folder, 0.0) for folder in options.folders}
    places[f"{options.folders[-1]}, {options.slow:g} MB/s"] = options.folders[-1], options.slow * MEGABYTE
    costs: dict[str, list[Cost]] = {name: [] for name in places}
    for number in range(options.rounds + 1):
        for name, (folder, rate) in places.items():
            with tempfile.TemporaryDirectory(dir=folder) as run:
                make_folders(Path(run))
                metrics = Metrics(CollectorRegistry())
                writer = CheckpointWriter(Path(run), {}, metrics, keep=2, resumed_from=None, say=print)
                saver = BackgroundSaver(writer)
                if rate:
                    with flushes_at(rate):
                        cost = saved(snapshots, saver, number + 1, before)
                else:
                    cost = saved(snapshots, saver, number + 1, before)
                saver.close()
            if number:  # the first is to be warm
                costs[name].append(cost)
    steps = [timed_step(training) for _ in range(options.rounds + 1)] if options.step else []
    rows = []
    for name, found in costs.items():
        pauses, durable = [each.pause for each in found], [each.durable for each in found]
        most = [each.memory / size for each in found]
        rows.append(
            (name, *(f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (pauses, durable, most)))
        )
    print(f"a checkpoint of {size / MEGABYTE:,.0f} MB, {options.rounds} rounds: median (range)\n")
    print(markdown(("where", "pause, s", "durable after, s", "memory, times its size"), rows, 1))
    if steps:
        print(f"\na step of {BATCH}: {statistics.median(steps[1:]):.2f} s")


if __name__ == "__main__":
    main()
