"""Images/s of our compiled training step and of the same network run eagerly in fp32 NCHW, interleaved in one run.

    python benchmarks/step.py [--batch-size 128] [--rounds 5]

The eager side is what a reader of the paper writes first: two towers, `F.local_response_norm`, `F.max_pool2d`, channels
first, `torch.optim.SGD`. Both sides take the same synthetic pictures and do the same arithmetic. Each runs in a process
of its own and they take turns, ours set up as service.train sets up its process (freed memory is kept); a second eager
side has that too, so that the gain can be told apart.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from model.alexnet import AlexNet, ModelConfig, Precision, Tower
from model.optim import Momentum, OptimConfig
from model.step import Controls, Examples, Training, compiled_train_step
from pipeline.memory import keep_freed_memory

EAGER = "eager fp32 NCHW"
EAGER_KEPT = "eager fp32 NCHW, freed memory kept"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    batch_size: int = 128
    rounds: int = 5
    precisions: tuple[Precision, ...] = ("float32", "mixed", "bfloat16")
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""


def synthetic(batch_size: int, crop: int = 224) -> Examples:
    generator = torch.Generator().manual_seed(0)
    return Examples(
        torch.randint(0, 256, (batch_size, crop, crop, 3), dtype=torch.uint8, generator=generator),
        torch.zeros(batch_size, 3),
        torch.ones(batch_size),
        torch.randint(0, 1000, (batch_size,), generator=generator),
        torch.arange(batch_size),
        torch.full((batch_size,), 1 / batch_size),
    )


def ours(precision: Precision, examples: Examples) -> Callable[[], Tensor]:
    """Our step, compiled."""
    model = AlexNet(ModelConfig(precision=precision))
    optimizer = Momentum(OptimConfig(), dict(model.named_parameters()))
    training = Training(model, optimizer, torch.full((224, 224, 3), 110.0), torch.tensor(True))
    controls = Controls(torch.full((2,), 0.001), torch.tensor(0.0))
    step = compiled_train_step()
    return lambda: step(training, controls, examples).loss


def eager(examples: Examples) -> Callable[[], Tensor]:
    """The same network in plain eager fp32."""
    model = AlexNet(ModelConfig(precision="float32"))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0005)

    def half(t: Tower, x: Tensor) -> Tensor:
        for conv in (t.conv1, t.conv2):
            x = F.max_pool2d(F.local_response_norm(F.relu(conv(x)), 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)
        return x

    def tail(t: Tower, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(t.conv5(F.relu(t.conv4(F.relu(t.conv3(x)))))), 3, 2).flatten(1)

    def step() -> Tensor:
        towers = list(model.held().values())
        x = examples.pictures.permute(0, 3, 1, 2).float().contiguous() - 110.0
        x = torch.cat([half(t, x) for t in towers], 1)
        x = torch.cat([tail(t, x) for t in towers], 1)
        x = F.dropout(torch.cat([F.relu(t.fc6(x)) for t in towers], 1))
        x = F.dropout(torch.cat([F.relu(t.fc7(x)) for t in towers], 1))
        loss = F.cross_entropy(torch.cat([t.fc8(x) for t in towers], 1), examples.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def serve(connection: Connection, side: str, options: Options) -> None:
    """A side's process: warm up, then do and time a step whenever asked to."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if side != EAGER:
        keep_freed_memory()
    examples = synthetic(options.batch_size)
    precision = cast(Precision, side.removeprefix("compiled "))
    step = eager(examples) if side in (EAGER, EAGER_KEPT) else ours(precision, examples)
    step()
    step()
    connection.send(torch.get_num_threads())
    while connection.recv():
        start = time.perf_counter()
        step()
        connection.send(time.perf_counter() - start)


def measure(sides: list[str], options: Options) -> dict[str, list[float]]:
    """Seconds of each step: the sides take turns, one step of each a round."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for side in sides:
        connections[side], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, side, options), daemon=True).start()
        print(f"{side}: warmed up, {connections[side].recv()} threads", flush=True)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, connection in connections.items():
            connection.send(True)
            seconds[side].append(connection.recv())
    for connection in connections.values():
        connection.send(False)
    return seconds


def main() -> None:
    """Measure and print the table."""
    options = tyro.cli(Options, description=__doc__)
    sides = [EAGER, EAGER_KEPT, *(f"compiled {precision}" for precision in options.precisions)]
    seconds = measure(sides, options)
    base = statistics.median(seconds[EAGER])
    print(f"torch {torch.__version__}, batch {options.batch_size}, n = {options.rounds}")
    print(f"{'':34} {'images/s, median':>16} {'range':>15} {'ratio':>6}")
    for side, times in seconds.items():
        middle, low, high = (options.batch_size / t for t in (statistics.median(times), max(times), min(times)))
        print(f"{side:34} {middle:16.1f} {low:7.1f}-{high:7.1f} {base * middle / options.batch_size:6.2f}")


if __name__ == "__main__":
    main()
