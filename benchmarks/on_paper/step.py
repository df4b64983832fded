"""The training step whose code is looked at, and its graph in ATen's terms, forward, backward and update.

It is traced on the CPU, because autograd's engine asks for a device that is not there; but `is_cuda` says yes, so what
the network chooses on CUDA is chosen.
"""

from collections.abc import Callable
from typing import Any, NoReturn, get_args
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.variables import ConstantVariable
from torch._dynamo.variables.tensor import TensorVariable
from torch._inductor.decomposition import select_decomp_table

from model.alexnet import AlexNet, ModelConfig, Precision
from model.optim import MomentumSGD, OptimConfig
from model.parallel import Layout, make_parallel
from model.step import StepControls, StepInputs, TrainingState, compile_options, train_step

CROP, CLASSES = 224, 1000
LAYOUTS: tuple[str, ...] = ("none", *get_args(Layout))

Step = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


def inductor_options(layout: Layout | None) -> dict[str, Any]:
    """With which the step is compiled on CUDA."""
    return compile_options("cuda", graphs=False, exchanges=layout is not None) or {}


def batch_of(batch_size: int) -> StepInputs:
    """A rank's pictures as the loader hands them over."""
    return StepInputs(
        torch.zeros(batch_size, CROP, CROP, 3, dtype=torch.uint8),
        torch.zeros(batch_size, 3),
        torch.ones(batch_size),
        torch.zeros(batch_size, dtype=torch.int64),
        torch.arange(batch_size),
        torch.ones(batch_size),
    )


def our_step(precision: Precision, batch_size: int, layout: Layout | None, ranks: int) -> Step:
    """Rank 0's `train_step` of the recipe `paper`; batch_size: pictures that each rank brings."""
    if layout:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    parallel = make_parallel(layout, 0, ranks)
    model = AlexNet(ModelConfig(precision=precision), classes=CLASSES, crop=CROP, placement=parallel.placement)
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
    training = TrainingState(model, optimizer, torch.zeros(CROP, CROP, 3), torch.tensor(True), parallel)
    controls = StepControls(torch.full((2,), 0.01), torch.zeros(3))
    return lambda controls, inputs: train_step(training, controls, inputs), (controls, batch_of(batch_size))


def torchvision_step(precision: Precision, batch_size: int) -> Step:
    """torchvision's AlexNet in torch's own layers, its convolutions channels-last, updated by the paper's rule."""
    model = nn.Sequential(
        *_convolution(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *_convolution(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
        *_convolution(192, 384, 3, 1, 1), *_convolution(384, 256, 3, 1, 1), *_convolution(256, 256, 3, 1, 1),
        nn.MaxPool2d(3, 2), nn.Flatten(), nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES),
    )  # fmt: skip
    nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))

    def step(inputs: StepInputs) -> Tensor:
        pictures = (inputs.pictures.permute(0, 3, 1, 2).float() - 110.0) / 58.0
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
            logits = model(pictures)
        loss = F.cross_entropy(logits.float(), inputs.labels)
        gradients = torch.autograd.grad(loss, list(optimizer.parameters.values()))
        optimizer.update(gradients, torch.full((2,), 0.01), torch.isfinite(loss))
        return loss.detach()

    return step, (batch_of(batch_size),)


def _convolution(into: int, out: int, kernel: int, stride: int, padding: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(into, out, kernel, stride, padding), nn.ReLU()


class _Traced(Exception):
    """The graph is there: nothing is to be computed."""


def trace(step: Step) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of the whole step, and its flat inputs."""
    found: list[tuple[fx.GraphModule, list[Any]]] = []

    def keep(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., NoReturn]:
        def run(*_: Any) -> NoReturn:
            raise _Traced

        found.append((graph, inputs))
        return run

    function, arguments = step
    torch._dynamo.config.trace_autograd_ops = True
    # The copies into weights and velocities stay in the graph, as Inductor has it, which writes them in place.
    backend = aot_autograd(fw_compiler=keep, decompositions=select_decomp_table, keep_inference_input_mutations=True)
    with mock.patch.object(TensorVariable, "method_attr_is_cuda", lambda *_: ConstantVariable.create(True)):
        try:
            torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*arguments)
        except _Traced:
            pass
    (graph,) = found  # the step is one
    return graph
