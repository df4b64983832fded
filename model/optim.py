"""The paper's update rule and learning-rate schedules, section 5; later schedules, layer-wise rates, averaged weights.

    v <- momentum * v - lr * (g + weight_decay * w);  w <- w + v

Unlike `torch.optim.SGD` the rate is inside the velocity, as the paper writes it: a drop of the rate does not rescale
the velocity that is already there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from model.layers.batch_norm import FOLLOWING, is_running

FOLLOW_EPOCHS: Final = ("cosine", "one-cycle")  # schedules whose rates depend on how many epochs the run has


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What is minimised, by stochastic gradient descent, and its schedule; the defaults are the paper's text."""

    lr: float = 0.01
    """Learning rate at the start, or at the end of warmup_epochs."""
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_lr_factor: float = 1.0
    """Biases learn this many times as fast as weights; 2 in the 2012 source."""
    decay_biases: bool = True
    """Whether weight decay applies to biases, and to batch normalisation's factors; not in the 2012 source."""
    layer_decay: tuple[tuple[str, float], ...] = ()
    """(layer, weight decay) pairs, such as fc10 0.01, for layers whose decay is not weight_decay: the 2012 source's
    networks for CIFAR-10 decay their last layer more than the others, and some not at all."""
    schedule: Literal["plateau", "steps", "manual", "cosine", "one-cycle"] = "plateau"
    """plateau: drop when validation top-1 error stops improving; steps: drop after drop_epochs; manual: lr as given;
    cosine: fall to final_lr at the end of the run's epochs along half a cosine (Loshchilov and Hutter 2017); one-cycle:
    the same along a line (Smith 2018). With these two a resume may not change --epochs."""
    warmup_epochs: float = 0.0
    """The rate first rises from 0 along a line for so many epochs (Goyal et al. 2017), in any schedule."""
    final_lr: float = 0.0
    """Schedules cosine and one-cycle: the rate at the end."""
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
    trust_ratio: float = 0.0
    """Layer-wise rates (LARS, You et al. 2017) for large batches: a weight's rate is times this times
    |w| / (|g| + weight_decay |w|), a bias's is not; 0: off, 0.001 is usual."""
    label_smoothing: float = 0.0
    """Training aims at this share of even odds and the rest of the label (Szegedy et al. 2016); the logged loss too."""
    average_decay: float = 0.0
    """Keep an exponential moving average (EMA) of the weights, which decays by this factor a step, less in the first
    steps. Validation, evaluation, predictions and exports are the averaged network's. 0: off."""

    def __post_init__(self) -> None:
        if self.lr < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                f"lr {self.lr}, momentum {self.momentum}, weight_decay {self.weight_decay}: "
                "expected lr and weight_decay of at least 0 and a momentum in [0, 1)"
            )
        if not 0 <= self.warmup_epochs < math.inf or not 0 <= self.final_lr < math.inf:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs}, final_lr {self.final_lr}: expected numbers of at least 0"
            )
        if not 0 <= self.trust_ratio < math.inf:
            raise ValueError(f"trust_ratio is {self.trust_ratio}, expected a number of at least 0, such as 0.001")
        if not 0 <= self.label_smoothing <= 1 or not 0 <= self.average_decay < 1:
            raise ValueError(
                f"label_smoothing {self.label_smoothing}, average_decay {self.average_decay}: "
                "expected a share in [0, 1] and a factor in [0, 1)"
            )

    @property
    def follows_epochs(self) -> bool:
        """Whether the rates depend on how many epochs the run has."""
        return self.schedule in FOLLOW_EPOCHS


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of one step."""

    base: float
    conv1: float

    def __str__(self) -> str:
        return f"{self.base:g}" if self.conv1 == self.base else f"{self.base:g} (conv1 {self.conv1:g})"


def rates_at(config: OptimConfig, epoch: float, errors: Sequence[float], epochs: float) -> LearningRates:
    """The rates after `epoch` of `epochs` epochs (fractional) and the validation top-1 errors (0..1) so far: pure.

    epochs: the whole run's; only the schedules cosine and one-cycle go by it.
    """
    base = _scheduled_rate(config, epoch, errors, epochs)
    if epoch < config.warmup_epochs:
        base *= epoch / config.warmup_epochs
    overrides = [rate for at, rate in config.conv1_lr if epoch >= at]
    return LearningRates(base, overrides[-1] if overrides else base)


def _scheduled_rate(config: OptimConfig, epoch: float, errors: Sequence[float], epochs: float) -> float:
    """The base rate without its warm-up."""
    if config.follows_epochs:
        done = min(max((epoch - config.warmup_epochs) / (epochs - config.warmup_epochs), 0.0), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
        return config.final_lr + (config.lr - config.final_lr) * left
    if config.schedule == "steps":
        drops = sum(epoch >= at for at in config.drop_epochs)
    elif config.schedule == "plateau":
        drops = plateau_drops(errors, config.patience, config.min_improvement, config.max_drops)
    else:
        drops = 0
    return config.lr * config.drop_factor**drops


def changes_each_step(config: OptimConfig, epoch: float) -> bool:
    """Whether the schedule moves the rate a little with every step, after `epoch` epochs, instead of now and then."""
    return config.follows_epochs or epoch < config.warmup_epochs


def step_rates(config: OptimConfig, rates: LearningRates, steps: int) -> list[float]:
    """What a step takes: the base rate, conv1's and, where weights are averaged, the average's after so many steps."""
    return [rates.base, rates.conv1, *([averaging_rate(config, steps)] if config.average_decay else [])]


def averaging_rate(config: OptimConfig, steps: int) -> float:
    """By what share of its distance from the weights the next step moves the average, after so many steps: pure.

    1 - decay, where the decay is average_decay, but at first (1 + steps) / (10 + steps), as TensorFlow's
    ExponentialMovingAverage has it: the initial weights would else stay in the average for 1 / (1 - decay) steps.
    """
    return max(1 - config.average_decay, 9 / (10 + steps))


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
    """Whether a parameter is the first convolution's or its normalisation's, as each layout names them."""
    return ".conv1." in name or ".conv1_norm." in name or name.startswith(("conv1.", "features.0."))


def is_of_channels(name: str) -> bool:
    """Whether a parameter has a number for each channel or unit: a bias, or batch normalisation's factor."""
    return name.endswith((".bias", "_norm.weight"))


def layer_of(name: str) -> str:
    """The layer of a parameter: fc8 of towers.0.fc8.weight, features.3 of torchvision's features.3.weight."""
    return name.removeprefix("towers.0.").removeprefix("towers.1.").rpartition(".")[0]


def decay_of(config: OptimConfig, name: str) -> float:
    """The weight decay of a parameter."""
    if is_of_channels(name) and not config.decay_biases:
        return 0.0
    return dict(config.layer_decay).get(layer_of(name), config.weight_decay)


def trust_ratio(w: Tensor, gradient: Tensor, coefficient: float, decay: float) -> Tensor:
    """The factor of a weight's rate under LARS, a scalar: coefficient |w| / (|g| + decay |w|), of its own norms alone.

    1 where either norm is 0: a weight of zeros could else never leave there.
    """
    w_norm, g_norm = torch.linalg.vector_norm(w), torch.linalg.vector_norm(gradient)
    ratio = coefficient * w_norm / (g_norm + decay * w_norm)
    return torch.where((w_norm > 0) & (g_norm > 0), ratio, 1.0)


class MomentumSGD:
    """Named parameters with their velocities, float32 tensors of the same shapes, and their averages where kept.

    The running statistics of batch normalisation are among the parameters, but have no velocity: they follow the
    batches'.
    """

    def __init__(self, config: OptimConfig, parameters: dict[str, Tensor]):
        """ValueError where `layer_decay` names a layer that there is not."""
        layers = {layer_of(name) for name in parameters}
        if unknown := [layer for layer, _ in config.layer_decay if layer not in layers]:
            raise ValueError(f"layer_decay names {unknown[0]}, expected one of {', '.join(sorted(layers))}; name that")
        self.config = config
        self.parameters = parameters
        self.trained = {name: p for name, p in parameters.items() if not is_running(name)}
        self.velocities = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        averaged = parameters if config.average_decay else {}
        self.averages = {name: p.detach().clone() for name, p in averaged.items()}

    @torch.no_grad()
    def update(
        self,
        gradients: Sequence[Tensor],
        rates: Tensor,
        all_finite: Tensor,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Apply the update rule where `all_finite` (a bool scalar on the device), else keep everything as it was.

        gradients: of `trained`. statistics: the batch's, by the names of the running ones.
        rates: of `step_rates`, as a tensor, (2,) or (3,), so that a new rate does not recompile the step.
        """
        config = self.config
        for gradient, (name, w) in zip(gradients, self.trained.items(), strict=True):
            v, bias = self.velocities[name], name.endswith(".bias")
            lr = rates[1 if is_conv1(name) else 0] * (config.bias_lr_factor if bias else 1.0)
            decay = decay_of(config, name)
            if config.trust_ratio and not is_of_channels(name):
                lr = lr * trust_ratio(w, gradient, config.trust_ratio, decay)
            new = config.momentum * v - lr * (gradient + decay * w)
            v.copy_(torch.where(all_finite, new, v))
            w.copy_(torch.where(all_finite, w + new, w))
        for name, found in (statistics or {}).items():
            running = self.parameters[name]
            running.copy_(torch.where(all_finite, running + FOLLOWING * (found - running), running))
        for name, average in self.averages.items():
            w = self.parameters[name]
            average.copy_(torch.where(all_finite, average + rates[2] * (w - average), average))
