"""The paper's update rule and learning-rate schedules, section 5.

    v <- momentum * v - lr * (g + weight_decay * w);  w <- w + v

Unlike `torch.optim.SGD` the rate is inside the velocity, as the paper writes it: a drop of the rate does not rescale
the velocity that is already there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Stochastic gradient descent and its schedule; the defaults are the paper's text."""

    lr: float = 0.01
    """Learning rate at the start."""
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_lr_factor: float = 1.0
    """Biases learn this many times as fast as weights; 2 in the 2012 source."""
    decay_biases: bool = True
    """Whether weight decay applies to biases; it does not in the 2012 source."""
    layer_decay: tuple[tuple[str, float], ...] = ()
    """(layer, weight decay) pairs, such as fc10 0.01, for layers whose decay is not weight_decay: the 2012 source's
    networks for CIFAR-10 decay their last layer more than the others, and some not at all."""
    schedule: Literal["plateau", "steps", "manual"] = "plateau"
    """plateau: drop when validation top-1 error stops improving; steps: drop after drop_epochs; manual: lr as given."""
    drop_factor: float = 0.1
    """The rate is multiplied by this at a drop."""
    drop_epochs: tuple[float, ...] = ()
    """Schedule steps: drop after these epochs."""
    patience: int = 3
    """Schedule plateau: epochs without a new lowest error before a drop."""
    min_improvement: float = 0.001
    """Schedule plateau: how much lower (0..1) an error must be to count as an improvement."""
    max_drops: int = 3
    """Schedule plateau: at most this many drops; the paper has three."""
    conv1_lr: tuple[tuple[float, float], ...] = ()
    """(after epoch, rate) pairs that override conv1's rate: the 2012 source slows it at 68 and freezes it at 72."""

    def __post_init__(self) -> None:
        if self.lr < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                f"lr {self.lr}, momentum {self.momentum}, weight_decay {self.weight_decay}: "
                "expected lr and weight_decay of at least 0 and a momentum in [0, 1)"
            )


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of one step."""

    base: float
    conv1: float

    def __str__(self) -> str:
        return f"{self.base:g}" if self.conv1 == self.base else f"{self.base:g} (conv1 {self.conv1:g})"


def rates_at(config: OptimConfig, epoch: float, errors: Sequence[float]) -> LearningRates:
    """The rates after `epoch` epochs (fractional) and the validation top-1 errors (0..1) seen so far: pure."""
    if config.schedule == "steps":
        drops = sum(epoch >= at for at in config.drop_epochs)
    elif config.schedule == "plateau":
        drops = plateau_drops(errors, config.patience, config.min_improvement, config.max_drops)
    else:
        drops = 0
    base = config.lr * config.drop_factor**drops
    overrides = [rate for at, rate in config.conv1_lr if epoch >= at]
    return LearningRates(base, overrides[-1] if overrides else base)


def plateau_drops(errors: Sequence[float], patience: int, min_improvement: float, max_drops: int) -> int:
    """How often the error has stopped improving: `patience` epochs without a new lowest, counted afresh after each."""
    drops, waited, lowest = 0, 0, float("inf")
    for error in errors:
        if error <= lowest - min_improvement:
            lowest, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            drops, waited = drops + 1, 0
    return min(drops, max_drops)


def is_conv1(name: str) -> bool:
    """Whether a parameter is the first convolution's, as the towers name it, torchvision, or the CIFAR networks."""
    return ".conv1." in name or name.startswith(("conv1.", "features.0."))


def layer_of(name: str) -> str:
    """The layer of a parameter: fc8 of towers.0.fc8.weight, features.3 of torchvision's features.3.weight."""
    return name.removeprefix("towers.0.").removeprefix("towers.1.").rpartition(".")[0]


def decay_of(config: OptimConfig, name: str) -> float:
    """The weight decay of a parameter."""
    if name.endswith(".bias") and not config.decay_biases:
        return 0.0
    return dict(config.layer_decay).get(layer_of(name), config.weight_decay)


class MomentumSGD:
    """Named parameters with their velocities, float32 tensors of the same shapes."""

    def __init__(self, config: OptimConfig, parameters: dict[str, Tensor]):
        """ValueError where `layer_decay` names a layer that there is not."""
        layers = {layer_of(name) for name in parameters}
        if unknown := [layer for layer, _ in config.layer_decay if layer not in layers]:
            raise ValueError(f"layer_decay names {unknown[0]}, expected one of {', '.join(sorted(layers))}; name that")
        self.config = config
        self.parameters = parameters
        self.velocities = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], rates: Tensor, all_finite: Tensor) -> None:
        """Apply the update rule where `all_finite` (a bool scalar on the device), else keep everything as it was.

        rates: (2,) tensor, the base rate and conv1's; a tensor, so that a new rate does not recompile the step.
        """
        config = self.config
        for gradient, (name, w) in zip(gradients, self.parameters.items(), strict=True):
            v, bias = self.velocities[name], name.endswith(".bias")
            lr = rates[1 if is_conv1(name) else 0] * (config.bias_lr_factor if bias else 1.0)
            decay = decay_of(config, name)
            new = config.momentum * v - lr * (gradient + decay * w)
            v.copy_(torch.where(all_finite, new, v))
            w.copy_(torch.where(all_finite, w + new, w))
