"""A small network with all that a training step needs, and how near two ways to take a step must be."""

import torch
from torch import Tensor

from model.alexnet import AlexNet, ModelConfig
from model.optim import MomentumSGD, OptimConfig
from model.step import (
    StepControls,
    StepInputs,
    StepResult,
    TrainingState,
    TrainStep,
    train_step,
)

CROP = 67
TOLD = torch.zeros(2)
CONFIG = ModelConfig(fc_width=64, init="he", pixel_std=58.0, precision="float32")


def examples(batch_size: int = 8, first: int = 0, classes: int = 10) -> StepInputs:
    generator = torch.Generator().manual_seed(first)
    return StepInputs(
        torch.randint(0, 256, (batch_size, CROP, CROP, 3), dtype=torch.uint8, generator=generator),
        torch.randn(batch_size, 3, generator=generator),
        torch.ones(batch_size),
        torch.randint(0, classes, (batch_size,), generator=generator),
        torch.arange(first, first + batch_size),
        torch.full((batch_size,), 1 / batch_size),
    )


def counting(batch: StepInputs) -> StepInputs:
    """As in validation: each picture counts one."""
    return batch._replace(weights=torch.ones(len(batch.labels)))


# All that a modern recipe adds to the update.
MODERN = OptimConfig(
    lr=3.0,
    decay_biases=False,
    schedule="cosine",
    warmup_epochs=2,
    trust_ratio=0.01,
    label_smoothing=0.1,
    average_decay=0.9,
)


class Bench:
    """A network, its velocities and averages, and the tensors around a step."""

    def __init__(self, config: ModelConfig = CONFIG, optim: OptimConfig | None = None) -> None:
        self.model = AlexNet(config, classes=10, crop=CROP, seed=1)
        self.optimizer = MomentumSGD(optim or OptimConfig(), dict(self.model.named_parameters()))
        self.mean = torch.full((CROP, CROP, 3), 110.0)
        self.training = TrainingState(self.model, self.optimizer, self.mean, torch.tensor(True))

    def run(self, step, batch: StepInputs, lr: float = 0.01, averaging: float = 0.1) -> StepResult:
        rates = [lr, lr, averaging] if self.optimizer.averages else [lr, lr]
        return step(self.training, StepControls(torch.tensor(rates), TOLD), batch)

    def tensors(self) -> list[Tensor]:
        return [t.detach().clone() for t in self._state()]

    @torch.no_grad()
    def become(self, other: "Bench") -> None:
        """Take another one's weights, velocities and averages."""
        for mine, theirs in zip(self._state(), other._state(), strict=True):
            mine.copy_(theirs)

    def _state(self) -> list[Tensor]:
        optimizer = self.optimizer
        return [*optimizer.parameters.values(), *optimizer.velocities.values(), *optimizer.averages.values()]


# Of a step from the same weights; after several, training has led rounding apart as far as there were steps. The order
# of sums is another, of some thousand terms in each of eight layers: 2^-24 each in float32, 2^-8 in bfloat16, of which
# the sums themselves are float32. The loss has no edges, so it errs by no more. A gradient does: a unit within rounding
# of ReLU's edge, or of another in a pooling's window, may go the other way, and moves it by its share.
LOSS = {"float32": 1e-5, "mixed": 0.02, "bfloat16": 0.02}
GRADIENT = {"float32": 0.01, "mixed": 0.05, "bfloat16": 0.05}


def assert_same_step(
    ours: Bench, theirs: Bench, step: TrainStep, batch: StepInputs, lr: float = 0.01, averaging: float = 0.1
) -> None:
    """`ours` takes the step that `theirs` takes eagerly from the same weights."""
    ours.become(theirs)
    before, precision = theirs.tensors(), theirs.model.config.precision
    found, expected = ours.run(step, batch, lr, averaging), theirs.run(train_step, batch, lr, averaging)
    torch.testing.assert_close(found.loss, expected.loss, rtol=LOSS[precision], atol=0)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=GRADIENT[precision], atol=0)
    # What it has changed of all weights, of all velocities and of all averages: the gradients, times the rate.
    count = len(theirs.optimizer.parameters)
    for start in range(0, len(before), count):
        part = slice(start, start + count)
        changes = [
            [new - old for new, old in zip(bench.tensors()[part], before[part], strict=True)]
            for bench in (ours, theirs)
        ]
        differences = torch.cat([(a - b).flatten() for a, b in zip(*changes, strict=True)])
        assert differences.norm() <= GRADIENT[precision] * torch.cat([b.flatten() for b in changes[1]]).norm()
