"""One training step and one validation step, each a single graph under `torch.compile`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.alexnet import AlexNet
from model.optim import Momentum


class Examples(NamedTuple):
    """A batch as the step takes it, every tensor on the model's device."""

    pictures: (
        Tensor  # (B, crop, crop, 3) uint8, float16 or float32, rows of RGB pixels on 0..255, less any mean taken off
    )
    offset: Tensor  # (B, 3) float32, added to every pixel: the colour shift, and a mean that was taken off
    scale: Tensor  # (B,) float32, multiplies the pictures after that
    labels: Tensor  # (B,) int64
    positions: Tensor  # (B,) int64 training positions


class StepResult(NamedTuple):
    """What a step says about itself, scalars on the device."""

    loss: Tensor
    grad_norm: Tensor
    healthy: Tensor  # bool: loss and gradients were finite, in this step and in every one before it


TrainStep = Callable[[AlexNet, Momentum, Tensor, Tensor, Tensor, Examples], StepResult]


def prepare(examples: Examples, mean: Tensor, pixel_std: float) -> Tensor:
    """The network's input, (B, 3, crop, crop) channels-last: (picture + offset - mean picture) * scale / pixel_std.

    mean: (crop, crop, 3), the central crop of the mean picture, which stays as it is when a picture is mirrored.
    """
    batch, height, width, _ = examples.pictures.shape
    # Whole rows of pixels, because the compiler vectorises along 3 x width numbers, but not along 3.
    rows = examples.pictures.view(batch, height, 3 * width).to(mean.dtype)
    rows = rows + examples.offset.repeat(1, width)[:, None] - mean.view(height, 3 * width)
    x = (rows * (examples.scale / pixel_std)[:, None, None]).view(batch, height, width, 3)
    return x.permute(0, 3, 1, 2)  # rows of RGB pixels are what channels-last means, so this moves nothing


def training_loss(model: AlexNet, mean: Tensor, examples: Examples) -> Tensor:
    """Mean cross-entropy of a training pass, dropout on."""
    logits = model(prepare(examples, mean, model.config.pixel_std), examples.positions)
    return F.cross_entropy(logits, examples.labels)


@torch.no_grad()
def apply_gradients(
    optimizer: Momentum, rates: Tensor, healthy: Tensor, loss: Tensor, gradients: Sequence[Tensor]
) -> StepResult:
    """Update in place, unless loss or gradients are not finite or `healthy` (bool scalar, updated) already says no."""
    grad_norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    finite = healthy & torch.isfinite(loss) & torch.isfinite(grad_norm)
    optimizer.update(gradients, rates, finite)
    healthy.copy_(finite)
    return StepResult(loss.detach(), grad_norm, finite)


def train_step(
    model: AlexNet, optimizer: Momentum, mean: Tensor, rates: Tensor, healthy: Tensor, examples: Examples
) -> StepResult:
    """Forward, backward and update in place; a non-finite loss or gradient leaves weights and velocities as they were.

    From then on `healthy` is false and every step leaves them so: the host may read it late, and no step waits for it.
    """
    loss = training_loss(model, mean, examples)
    gradients = torch.autograd.grad(loss, list(optimizer.parameters.values()))
    return apply_gradients(optimizer, rates, healthy, loss, gradients)


def compiled_train_step(backend: str = "inductor") -> TrainStep:
    """`train_step` compiled: one graph where the compiler traces `torch.autograd.grad`, else two without breaks."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        return two_graphs(backend)
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(train_step, backend=backend, fullgraph=True, dynamic=False)


def two_graphs(backend: str = "inductor") -> TrainStep:
    """`train_step` as a graph of forward and loss with its backward, and a graph of the update."""
    loss_of = torch.compile(training_loss, backend=backend, fullgraph=True, dynamic=False)
    apply = torch.compile(apply_gradients, backend=backend, fullgraph=True, dynamic=False)

    def step(
        model: AlexNet, optimizer: Momentum, mean: Tensor, rates: Tensor, healthy: Tensor, examples: Examples
    ) -> StepResult:
        loss = loss_of(model, mean, examples)
        gradients = torch.autograd.grad(loss, list(optimizer.parameters.values()))
        return apply(optimizer, rates, healthy, loss.detach(), gradients)

    return step


@torch.no_grad()
def eval_step(model: AlexNet, mean: Tensor, examples: Examples) -> Tensor:
    """(3,) float64: summed loss, top-1 errors and top-5 errors of the batch, section 6's measures."""
    logits = model(prepare(examples, mean, model.config.pixel_std))
    loss = F.cross_entropy(logits, examples.labels, reduction="sum")
    # The label's rank by counting: a tie counts against it, so a network that says nothing scores nothing.
    at_label = logits.gather(1, examples.labels[:, None])
    ahead = (~(logits < at_label)).sum(1) - 1  # so written, NaN counts against it too
    return torch.stack([loss.double(), (ahead >= 1).sum().double(), (ahead >= 5).sum().double()])
