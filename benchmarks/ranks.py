"""One process against two on the same cores, and a pair that exchanges pictures against one that decodes them twice.

    python benchmarks/ranks.py SHARDS [--batch-size 128] [--rounds 5]

Training: pictures from the shards through the compiled step, by one process and by two in each layout. Pictures: what
it takes until both processes of a pair have all of a batch, without training. All sides keep their processes and take
turns of several batches, because pictures that DALI has ready cost a turn nothing; the cores are shared out among a
side's processes.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final

import torch
import torch.distributed as dist
import tyro

from model.alexnet import AlexNet, ModelConfig, Precision
from model.optim import MomentumSGD, OptimConfig
from model.parallel import Layout, make_parallel
from model.step import StepControls, StepInputs, TrainingState, compiled_train_step
from pipeline.host.cpus import usable_cores
from pipeline.host.memory import keep_freed_memory
from pipeline.load.batch_loader import BatchLoader, central_crop
from pipeline.load.config import DataConfig
from pipeline.manifest import load_mean

TRAINING: Final[dict[str, Layout | None]] = {
    "1 process": None,
    "2 processes, tower": "tower",
    "2 processes, data": "data",
    "2 processes, 2014": "2014",
}
EXCHANGED, TWICE = "pictures exchanged", "pictures decoded twice"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shards: Annotated[Path, tyro.conf.Positional]
    """Folder that python -m pipeline.shard made."""
    batch_size: int = 128
    """Global."""
    rounds: int = 5
    turn: int = 4
    """Batches of a turn; of pictures alone ten times as many."""
    precision: Precision = "bfloat16"
    threads: int = 2
    """CPU threads of each side, over all of its processes; DALI has as many of its own."""


def work_of(side: str, rank: int, options: Options) -> Callable[[], object]:
    """A rank's part of a batch: train on it, or have its pictures."""
    layout = TRAINING.get(side, "tower")
    ranks = 2 if layout else 1
    torch.set_num_threads(options.threads // ranks)
    config = DataConfig(shards=options.shards, threads=options.threads // ranks)
    parallel = make_parallel(layout, rank, ranks)
    loader = BatchLoader(config) if side == TWICE else BatchLoader(config, rank=rank, world_size=ranks)
    batches = loader.train(options.batch_size)
    if side == TWICE:
        return lambda: next(batches)
    if side == EXCHANGED:
        return lambda: parallel.gather_conv_inputs(*next(batches))
    model = AlexNet(ModelConfig(precision=options.precision), placement=parallel.placement)
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
    mean = torch.from_numpy(central_crop(load_mean(loader.root, loader.dataset), config.crop))
    training = TrainingState(model, optimizer, mean, torch.tensor(True), parallel)
    controls, step = StepControls(torch.full((2,), 0.001), torch.zeros(2)), compiled_train_step()
    return lambda: step(training, controls, StepInputs(*next(batches)))


def serve(connection: Connection, side: str, rank: int, ranks: int, meeting: str, options: Options) -> None:
    """A rank's process: warm up, then do its part of a turn and tell the seconds a batch, whenever asked to."""
    keep_freed_memory()
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    work = work_of(side, rank, options)
    for _ in range(3):
        work()
    connection.send(None)
    while connection.recv():
        start = time.perf_counter()
        for _ in range(turn_of(side, options)):
            work()
        connection.send((time.perf_counter() - start) / turn_of(side, options))


def turn_of(side: str, options: Options) -> int:
    """Batches of a turn."""
    return options.turn if side in TRAINING else 10 * options.turn


def measure(sides: list[str], options: Options, folder: Path) -> dict[str, list[float]]:
    """Seconds of each batch, until a side's last process has done its part; the sides take turns."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, list[Connection]] = {}
    for number, side in enumerate(sides):
        ranks = 2 if TRAINING.get(side, "tower") else 1
        pipes = [context.Pipe() for _ in range(ranks)]
        for rank, (_, theirs) in enumerate(pipes):
            arguments = (theirs, side, rank, ranks, str(folder / str(number)), options)
            context.Process(target=serve, args=arguments, daemon=True).start()
        connections[side] = [ours for ours, _ in pipes]
        for connection in connections[side]:
            connection.recv()
        print(f"{side}: warmed up", flush=True)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, ends in connections.items():
            for connection in ends:
                connection.send(True)
            seconds[side].append(max(connection.recv() for connection in ends))
    for connection in (end for ends in connections.values() for end in ends):
        connection.send(False)
    return seconds


def report(seconds: dict[str, list[float]], options: Options) -> None:
    """A line a side; ratios to the first."""
    base = statistics.median(next(iter(seconds.values())))
    print(f"{'':24} {'images/s, median':>16} {'range':>17} {'ratio':>6}")
    for side, times in seconds.items():
        middle, low, high = (options.batch_size / t for t in (statistics.median(times), max(times), min(times)))
        print(f"{side:24} {middle:16,.1f} {low:8,.1f}-{high:8,.1f} {base * middle / options.batch_size:6.2f}")


def main() -> None:
    """Measure and print the tables."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        print(f"torch {torch.__version__}, {usable_cores()} cores, batch {options.batch_size}, n = {options.rounds}")
        report(measure(list(TRAINING), options, Path(folder)), options)
    with tempfile.TemporaryDirectory() as folder:
        report(measure([TWICE, EXCHANGED], options, Path(folder)), options)


if __name__ == "__main__":
    main()
