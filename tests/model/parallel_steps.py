"""Training steps and a validation step by one rank of several; what test_parallel.py starts with torchrun.

    torchrun … parallel_steps.py OUT LAYOUT BACKEND-DTYPE[-NETWORK] …

Each rank writes OUT/RUN/rank-N.safetensors for each of these runs: one start of the processes serves
several, because starting them takes longer than their steps. Alone it is the same steps in one process.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.alexnet import ModelConfig
from model.network import make_network
from model.optim import MomentumSGD, OptimConfig
from model.parallel import Layout, Parallel, choose_layout, make_parallel
from model.step import (
    StepControls,
    StepInputs,
    TrainingState,
    TrainStep,
    compiled_train_step,
    compute_gradients,
    eval_step,
    train_step,
    training_loss,
)
from pipeline.load.order import rank_slice
from service.training.ranks import join_ranks

BATCH, CLASSES, CROP = 10, 7, 67  # neither the batch nor the classes divide evenly
# In float32 the first step alone: the others begin with weights that rounding has led apart, and training leads them
# further, as far as there are steps. In float64 the same is too small to matter.
STEPS = {"float64": 6, "float32": 1}
MODERN = OptimConfig(trust_ratio=0.01, label_smoothing=0.1, average_decay=0.9)
ACT, END = 2, 4  # the step from which on rank 0 is told to act, for one step, and the last rank to end the run
# With conv6 the towers talk once more; without, they do what they do here and no more.
CONFIG = ModelConfig(fc_width=64, init="he", pixel_std=58.0, precision="float32", conv6=True)
NETWORKS = {
    "paper": CONFIG,
    "silent": replace(CONFIG, talk=False, inverted_dropout=False),
    "shallow": replace(CONFIG, conv6=False, without="conv3", pool_size=2, activation="logistic"),
    "column": replace(CONFIG, columns=1),
    "modern": replace(CONFIG, batch_norm=True),  # and what a modern recipe adds to the update
    "cifar": ModelConfig(layout="cifar", cifar="13pct", init="he", pixel_std=58.0),
}
FIRST = 2**33 - 5  # positions that need more than 32 bits


def picture(position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, colour shift and label of a position."""
    generator = torch.Generator().manual_seed(position)
    pixels = torch.randint(0, 256, (CROP, CROP, 3), dtype=torch.uint8, generator=generator)
    return (
        pixels,
        torch.randn(3, generator=generator) * 10,
        torch.randint(0, CLASSES, (), generator=generator),
    )


def examples(first: int, rank: int, ranks: int) -> StepInputs:
    """A rank's part of the global batch that begins at `first`, as the loader hands it over."""
    mine, rows = rank_slice(BATCH, rank, ranks), -(-BATCH // ranks)
    positions = range(first + mine.start, first + mine.start + rows)
    pictures, offsets, labels = (torch.stack(column) for column in zip(*map(picture, positions), strict=True))
    weights = (torch.arange(rows) < mine.stop - mine.start) / BATCH
    return StepInputs(pictures, offsets, torch.full((rows,), 0.9), labels, torch.tensor(positions), weights)


def gradients(training: TrainingState, batch: StepInputs) -> dict[str, Tensor]:
    """Of the loss of a batch, by name."""
    loss, _ = training_loss(training, batch)
    arrived = training.parallel.all_reduce_gradients(compute_gradients(loss, training))
    return {f"gradient.{name}": gradient for name, gradient in arrived.items()}


def freshly_compiled(backend: str) -> TrainStep:
    """The compiled step, and torch's counts of its graphs at none; `torch._dynamo` is imported by its first use."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return compiled_train_step(backend)


def steps(parallel: Parallel, backend: str, dtype: str, network: str = "paper") -> dict[str, Tensor]:
    """What this rank finds: losses, gradients, weights, velocities, averages, counts."""
    numbers: torch.dtype = getattr(torch, dtype)
    model = make_network(
        NETWORKS[network],
        classes=CLASSES,
        crop=CROP,
        seed=2**40 + 1,
        placement=parallel.placement,
    ).to(numbers)
    optim = MODERN if network == "modern" else OptimConfig()
    optimizer = MomentumSGD(optim, dict(model.named_parameters()))
    rates = torch.tensor([1.0, 1.0, 0.3] if network == "modern" else [0.01, 0.01])
    mean = torch.full((CROP, CROP, 3), 110.0, dtype=numbers)
    training = TrainingState(model, optimizer, mean, torch.tensor(True), parallel)
    batches = [examples(FIRST + step * BATCH, parallel.rank, parallel.world_size) for step in range(STEPS[dtype])]
    found = gradients(training, batches[0])
    step = train_step if backend == "eager" else freshly_compiled(backend)
    results = []
    for number, batch in enumerate(batches):
        told = [parallel.rank == parallel.world_size - 1 and number >= END, parallel.rank == 0 and number == ACT]
        results.append(step(training, StepControls(rates, torch.tensor(told).float()), batch))
    found |= {name: torch.stack([result[i] for result in results]) for i, name in enumerate(results[0]._fields)}
    found |= {f"weight.{name}": w.detach() for name, w in optimizer.parameters.items()}
    found |= {f"velocity.{name}": v for name, v in optimizer.velocities.items()}
    found |= {f"average.{name}": a for name, a in optimizer.averages.items()}
    counting = batches[0]._replace(weights=batches[0].weights * BATCH)
    found["validation"] = eval_step(training, torch.tensor([float(parallel.rank == 0), 1.0]), counting)
    if backend != "eager":
        counted = torch._dynamo.utils.counters
        found["graphs"] = torch.tensor([counted["stats"]["unique_graphs"], sum(counted["graph_break"].values())])
    return {name: value.contiguous() for name, value in found.items()}


def main(out: Path, layout: Layout, runs: list[str]) -> None:
    with join_ranks("cpu", patience_seconds=120) as ranks:
        parallel = make_parallel(choose_layout(layout, ranks.world_size), ranks.rank, ranks.world_size, ranks.patience)
        for run in runs:
            (out / run).mkdir(exist_ok=True)
            save_file(steps(parallel, *run.split("-")), out / run / f"rank-{ranks.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast(Layout, sys.argv[2]), sys.argv[3:])
