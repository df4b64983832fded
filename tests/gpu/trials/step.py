"""The training step on the device: dropout masks, and one step's loss and gradients against float64 on the CPU.

Tolerances, relative; of a gradient, of all weights' together: the norm of the difference by the norm.
- float32: 0.0001 and 0.01. The loss has no edges; a gradient has, as below.
- mixed and bfloat16: 0.02 and 0.05, 8 significant bits. Where rounding picks another winner of a pooling window, or
  takes a unit over the edge of ReLU, its part of the gradient goes another way.
"""

from typing import Any, Final

import torch
from torch import Tensor

from model.alexnet import ModelConfig, Precision
from model.layers.dropout import keep_mask
from model.network import make_network
from model.optim import MomentumSGD, OptimConfig
from model.precision import set_arithmetic
from model.step import StepControls, StepInputs, StepResult, TrainingState, TrainStep, compiled_train_step, train_step

from .context import Context, Failed, Found

LOSS: Final[dict[str, float]] = {"float32": 1e-4, "mixed": 0.02, "bfloat16": 0.02}
GRADIENT: Final[dict[str, float]] = {"float32": 0.01, "mixed": 0.05, "bfloat16": 0.05}
PIXEL_STD: Final = 58.0  # of typical pictures, so that the first steps neither explode nor vanish
WHOLE: Final = ("the paper's", {}, 224)
SMALL: Final = (
    ("source order, tanh", {"layer_order": "source", "activation": "tanh", "fc_width": 256}, 99),
    ("torchvision's", {"layout": "torchvision", "fc_width": 256}, 99),
)


class Bench:
    """A network with its optimiser on a device."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str,
        step: TrainStep,
        crop: int = 224,
        dtype: torch.dtype = torch.float32,
        deterministic: bool = False,
    ):
        set_arithmetic(torch.device(device), precision_of(config), deterministic=deterministic)
        model = make_network(config, classes=1000, crop=crop, seed=0).to(device, dtype)
        optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
        mean = torch.full((crop, crop, 3), 110.0, device=device, dtype=dtype)
        self.training = TrainingState(model, optimizer, mean, torch.tensor(True, device=device))
        self.controls = StepControls(torch.full((2,), 0.001, device=device), torch.zeros(2, device=device))
        self.device, self.step = device, step

    def on_device(self, examples: StepInputs) -> StepInputs:
        return StepInputs(*(tensor.to(self.device) for tensor in examples))

    def run(self, examples: StepInputs) -> StepResult:
        return self.step(self.training, self.controls, examples)

    def velocities(self) -> Tensor:
        """All of them, float64 on the CPU: after one step the gradients, with weight decay, times the rate."""
        return torch.cat(
            [each.detach().cpu().double().flatten() for each in self.training.optimizer.velocities.values()]
        )


def config_of(precision: Precision, **options: Any) -> ModelConfig:
    return ModelConfig(init="he", pixel_std=PIXEL_STD, precision=precision, **options)


def noise(batch_size: int, crop: int = 224, seed: int = 0, dtype: torch.dtype = torch.uint8) -> StepInputs:
    """Pictures of noise with labels; each batch of `seed` has positions of its own."""
    generator = torch.Generator().manual_seed(seed)
    return StepInputs(
        torch.randint(0, 256, (batch_size, crop, crop, 3), generator=generator).to(dtype),
        torch.zeros(batch_size, 3),
        torch.ones(batch_size),
        torch.randint(0, 1000, (batch_size,), generator=generator),
        torch.arange(batch_size) + batch_size * seed,
        torch.full((batch_size,), 1 / batch_size),
    )


def precision_of(config: ModelConfig) -> Precision:
    assert config.precision != "auto", "a bench is given a precision"
    return config.precision


def masks(context: Context) -> Found:
    """Dropout masks, compiled on the device and eager there, equal the CPU's eager ones, bit for bit."""
    compiled = torch.compile(keep_mask, fullgraph=True, dynamic=False)
    positions = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**40 + 12345, 2**62])
    on_device = positions.to(context.device)
    count = 0
    cases = ((2**40 + 1, 7, 2048, 0.5), (0, 6, 0, 0.5), (3, 6, 2047, 0.1))
    for seed, layer, first, drop in cases if context.cuda else cases[:1]:
        expected = keep_mask(seed, layer, positions, first, 2048, drop)
        share = expected.double().mean().item()
        if abs(share - (1 - drop)) > 0.03:  # six standard deviations and more of 12,288 draws
            raise Failed(f"the CPU keeps {share:.3f} of the units, expected {1 - drop}")
        for way, mask in (("compiled", compiled), ("eager", keep_mask)):
            found = mask(seed, layer, on_device, first, 2048, drop).cpu()
            if not torch.equal(found, expected):
                raise Failed(
                    f"{way}, seed {seed}, layer {layer}: {(found != expected).sum()} of {found.numel()} differ"
                )
            count += found.numel()
    return Found(f"{count:,} bits equal the CPU's")


def parity(context: Context, precision: Precision) -> Found:
    """The compiled step against float64 on the CPU, in networks of other orders, activations and channels."""
    variants = (WHOLE, *SMALL) if context.cuda else (("source order", {"layer_order": "source", "fc_width": 64}, 67),)
    return Found("; ".join(_parity(context, precision, *variant) for variant in variants))


def _parity(context: Context, precision: Precision, name: str, options: dict[str, Any], crop: int) -> str:
    from torch._dynamo.utils import counters  # here, because it takes seconds to import

    torch._dynamo.reset()
    counters.clear()
    ours = Bench(config_of(precision, **options), context.device, compiled_train_step(), crop)
    exact = Bench(config_of("float32", **options), "cpu", train_step, crop, torch.float64)
    batch_size = 16 if crop == 224 else 8
    batch = noise(batch_size, crop)
    found, expected = ours.run(ours.on_device(batch)), exact.run(batch)
    loss = abs(found.loss.item() - expected.loss.item()) / expected.loss.item()
    gradient = ((ours.velocities() - exact.velocities()).norm() / exact.velocities().norm()).item()
    graphs = counters["stats"]["unique_graphs"]
    ours.run(ours.on_device(noise(batch_size, crop, seed=1)))
    words = f"{name}: loss within {loss:.5f}, gradient within {gradient:.5f}"
    if counters["graph_break"] or counters["stats"]["unique_graphs"] != graphs:
        raise Failed(f"{words}; graph breaks {dict(counters['graph_break'])}, a second step compiled anew")
    if not (loss <= LOSS[precision] and gradient <= GRADIENT[precision]):
        raise Failed(f"{words}, expected {LOSS[precision]} and {GRADIENT[precision]}")
    return words


def graphs(context: Context) -> Found:
    """Steps launched as a CUDA graph, its replays with it, end where steps without end: within the tolerances."""
    benches = [
        Bench(config_of("bfloat16"), context.device, compiled_train_step(graphs=on), deterministic=True)
        for on in (False, True)
    ]
    losses = []
    for bench in benches:
        torch._dynamo.reset()
        losses.append([bench.run(bench.on_device(noise(16, seed=seed))).loss.item() for seed in range(5)])
    without, with_graphs = (bench.velocities() for bench in benches)
    error = ((with_graphs - without).norm() / without.norm()).item()
    apart = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    words = f"five steps: losses within {apart:.5f}, velocities within {error:.5f}"
    if not (apart <= LOSS["bfloat16"] and error <= GRADIENT["bfloat16"]):
        raise Failed(f"{words}, expected {LOSS['bfloat16']} and {GRADIENT['bfloat16']}; losses {losses}")
    return Found(words)
