"""Images/s of our compiled training step and of the same network run eagerly in fp32 NCHW, interleaved in one run.

    python benchmarks/step.py [--batch-size 128] [--rounds 5]

The eager side is what a reader of the paper writes first: two towers, `F.local_response_norm`, `F.max_pool2d`, channels
first, `torch.optim.SGD`, the default executor. Both sides take the same synthetic pictures and do the same arithmetic.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from model.alexnet import AlexNet, ModelConfig, Precision
from model.optim import Momentum, OptimConfig
from model.step import Examples, compiled_train_step


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
    )


def ours(precision: Precision, examples: Examples) -> Callable[[], Tensor]:
    """Our step, compiled."""
    model = AlexNet(ModelConfig(precision=precision))
    optimizer = Momentum(OptimConfig(), dict(model.named_parameters()))
    mean, rates, healthy = torch.full((224, 224, 3), 110.0), torch.full((2,), 0.001), torch.tensor(True)
    step = compiled_train_step()
    return lambda: step(model, optimizer, mean, rates, healthy, examples).loss


def eager(examples: Examples) -> Callable[[], Tensor]:
    """The same network in plain eager fp32."""
    model = AlexNet(ModelConfig(precision="float32"))
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0005)

    def half(t: Any, x: Tensor) -> Tensor:
        for conv in (t.conv1, t.conv2):
            x = F.max_pool2d(F.local_response_norm(F.relu(conv(x)), 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)
        return x

    def tail(t: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(t.conv5(F.relu(t.conv4(F.relu(t.conv3(x)))))), 3, 2).flatten(1)

    def step() -> Tensor:
        towers: list[Any] = list(model.towers.values())
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


def measure(steps: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, one of each a round, after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        step()
        print(f"{name}: warmed up in {time.perf_counter() - start:.0f} s", flush=True)
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    examples = synthetic(options.batch_size)
    steps = {"eager fp32 NCHW": eager(examples)}
    steps |= {f"compiled {precision}": ours(precision, examples) for precision in options.precisions}
    seconds = measure(steps, options.rounds)
    base = statistics.median(seconds["eager fp32 NCHW"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch_size}")
    print(f"{'':24} {'images/s median':>16} {'range':>16} {'ratio':>6}   n = {options.rounds}")
    for name, times in seconds.items():
        low, high = options.batch_size / max(times), options.batch_size / min(times)
        middle = statistics.median(times)
        print(f"{name:24} {options.batch_size / middle:16.1f} {low:8.1f}-{high:7.1f} {base / middle:6.2f}")


if __name__ == "__main__":
    main()
