"""Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) over the whole batch, whichever ranks hold it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

EPSILON: Final = 1e-5  # added to variances
FOLLOWING: Final = 0.1  # by what share of its distance from a batch's statistic a step moves the running one


@dataclass(frozen=True)
class Rows:
    """The rows that a layer takes in a training pass, on this rank."""

    counted: Tensor  # (rows,) 1 of a picture, 0 of padding
    total: Callable[[Tensor], Tensor]  # the sum over the ranks that hold the layer, with its gradient


@dataclass(frozen=True)
class BatchPass:
    """A training pass: the rows of the convolutions and of the connected layers; gathers the batch's statistics."""

    convolutions: Rows
    connected: Rows
    statistics: dict[str, Tensor] = field(default_factory=dict)  # by the name of the running one's parameter

    @staticmethod
    def of(rows: int, device: torch.device) -> "BatchPass":
        """Of one process and a batch without padding."""
        alone = Rows(torch.ones(rows, device=device), lambda part: part)
        return BatchPass(alone, alone)


class BatchNorm(nn.Module):
    """(B, C, H, W) or (B, C): each channel less its mean, over its deviation, times `weight`, plus `bias`.

    In training mean and variance are the batch's, over rows, pixels and all ranks that hold the layer; else the running
    ones, which a step moves towards the batch's (the variance without bias, as torch has it). These are parameters that
    no gradient changes, so that they are saved, restored and averaged as all others are. In float32 or better.
    """

    def __init__(self, channels: int, name: str, *, connected: bool):
        """name: of this module in the network. connected: whether it takes the rows of the connected layers."""
        super().__init__()
        self.name, self.connected = name, connected
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def forward(self, x: Tensor, batch: BatchPass | None) -> Tensor:
        """The same shape and type."""
        wide = x if x.dtype == torch.float64 else x.float()
        shape = (1, -1) + (1,) * (x.ndim - 2)
        if batch:
            mean, variance = self._of_batch(wide, batch)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = (variance + EPSILON).rsqrt() * self.weight
        return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _of_batch(self, x: Tensor, batch: BatchPass) -> tuple[Tensor, Tensor]:
        """Mean and variance, (C,) each; the mean first, because a mean of squares less its square would round badly."""
        rows = batch.connected if self.connected else batch.convolutions
        counted = rows.counted.to(x.dtype)
        mask = counted.view(-1, *(1,) * (x.ndim - 1))
        dims = (0, *range(2, x.ndim))
        count = rows.total(counted.sum()[None]) * x[0, 0].numel()
        mean = rows.total((x * mask).sum(dims)) / count
        centred = x - mean.view(1, -1, *(1,) * (x.ndim - 2))
        variance = rows.total((centred.square() * mask).sum(dims)) / count
        batch.statistics[f"{self.name}.running_mean"] = mean.detach()
        batch.statistics[f"{self.name}.running_var"] = variance.detach() * count / (count - 1).clamp(min=1)
        return mean, variance


def is_running(name: str) -> bool:
    """Whether a parameter is a running statistic, which no gradient changes."""
    return name.endswith((".running_mean", ".running_var"))


def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights and biases of layers that do by themselves what they and their normalisation do outside training."""
    plain = {name: weight for name, weight in weights.items() if "_norm." not in name}
    for layer in (name.removesuffix("_norm.weight") for name in weights if name.endswith("_norm.weight")):
        norm = {kind: weights[f"{layer}_norm.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var")}
        scale = (norm["running_var"] + EPSILON).rsqrt() * norm["weight"]
        weight = weights[f"{layer}.weight"]
        plain[f"{layer}.weight"] = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
        plain[f"{layer}.bias"] = norm["bias"] - norm["running_mean"] * scale
    return plain
