"""The step's speed and profile, training with the loader, and what a checkpoint makes the loop wait."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from model.alexnet import Precision
from model.step import StepInputs, TrainStep, compiled_train_step

from .context import Context, Figure, Found, seconds_each, wait_for
from .step import Bench, config_of, noise


def bench_of(
    context: Context, precision: Precision, size: int, step: TrainStep, deterministic: bool = False
) -> tuple[Bench, StepInputs]:
    """A network, and a batch on its device as the loader hands it over."""
    config = config_of(precision, fc_width=context.fc_width)
    bench = Bench(config, context.device, step, context.crop, deterministic=deterministic)
    return bench, bench.on_device(noise(size, context.crop, dtype=torch.float16 if context.cuda else torch.uint8))


def rate_figure(context: Context, what: str, batch_size: int, work: Callable[[], Any]) -> Figure:
    return Figure(f"{what}batch {batch_size}", "images/s", [batch_size / s for s in seconds_each(context, work)])


def step_speed(context: Context, precision: Precision, deterministic: bool = False) -> Found:
    """Of the compiled step alone, on pictures that are on the device; deterministic: as a run of that option."""
    figures = []
    for size, graphs in itertools.product(context.batch_sizes, (False, True) if context.cuda else (False,)):
        torch._dynamo.reset()
        bench, batch = bench_of(context, precision, size, compiled_train_step(graphs=graphs), deterministic)
        name = "CUDA graphs, " if graphs else ""
        figures.append(rate_figure(context, name, size, lambda bench=bench, batch=batch: bench.run(batch)))
    return Found(figures=figures)


def profile(context: Context, precision: Precision, steps: int = 10) -> Found:
    """Host and device time of a step, launches, and the kernels that take longest."""
    figures, said = [], []
    for size in context.batch_sizes:
        torch._dynamo.reset()
        bench, batch = bench_of(context, precision, size, compiled_train_step())
        whole = [seconds * 1e3 for seconds in seconds_each(context, lambda bench=bench, batch=batch: bench.run(batch))]
        host = [_host_ms(context, bench, batch) for _ in range(20)]
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if context.cuda else [ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                bench.run(batch)
            wait_for(context)
        kernels, launches = kernels_of(profiler, steps)
        figures += [
            Figure(f"time, batch {size}", "ms", whole),
            Figure(f"host's time, batch {size}", "ms", host),
            Figure(f"kernels' time, batch {size}", "ms", [sum(kernels.values())]),
            Figure(f"kernels and copies, batch {size}", "a step", [launches]),
        ]
        longest = sorted(kernels.items(), key=lambda item: -item[1])[:12]
        said.append(f"batch {size}: " + ", ".join(f"{name[:60]} {ms:.3f} ms" for name, ms in longest))
    return Found("; ".join(said), figures)


def kernels_of(profiler: torch.profiler.profile, steps: int) -> tuple[dict[str, float], float]:
    """Milliseconds a step by the name of a kernel or copy, and how many of them a step has."""
    on_device = [e for e in profiler.events() or () if e.device_type.name == "CUDA" and not e.is_user_annotation]
    milliseconds: dict[str, float] = defaultdict(float)
    for event in on_device:
        milliseconds[event.name] += event.time_range.elapsed_us() / 1e3 / steps
    return milliseconds, len(on_device) / steps


def _host_ms(context: Context, bench: Bench, batch: StepInputs) -> float:
    """Until the call returns, of a device that has nothing else to do."""
    wait_for(context)
    start = time.perf_counter()
    bench.run(batch)
    return (time.perf_counter() - start) * 1e3


def whole(context: Context, decoder: str) -> Found:
    """Training: the loader's batches through the compiled step."""
    from .loader import loader_of

    precision: Precision = "bfloat16" if context.cuda else "float32"
    figures = []
    for size in context.batch_sizes:
        torch._dynamo.reset()
        bench, _ = bench_of(context, precision, size, compiled_train_step())
        batches = loader_of(context, context.squares, decoder, lends=True, crop=context.crop).train(size)
        work = lambda bench=bench, batches=batches: bench.run(StepInputs(*next(batches)))  # noqa: E731
        figures.append(rate_figure(context, f"{precision}, ", size, work))
        batches.close()
    return Found(figures=figures)


def checkpoint_pause(context: Context, rounds: int = 5) -> Found:
    """How long the loop waits for a snapshot of all weights and velocities, and until the host has it."""
    from service.training.snapshot import Snapshots

    bench = Bench(config_of("float32"), context.device, compiled_train_step())
    snapshots = Snapshots(bench.training.model, bench.training.optimizer)
    pauses, whole = [], []
    for _ in range(rounds):
        wait_for(context)
        start = time.perf_counter()
        fetch = snapshots.take()
        pauses.append((time.perf_counter() - start) * 1e3)
        fetch()
        whole.append((time.perf_counter() - start) * 1e3)
    figures = [Figure("pause of the loop", "ms", pauses), Figure("until the host has it", "ms", whole)]
    return Found(figures=figures)
