"""Nothing prevents that the whole step is launched as one CUDA graph: what Inductor asks of it, asked here."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch._inductor.cudagraph_utils import check_for_mutation_ignore_cuda_graph_managed_tensor
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.alexnet import AlexNet, ModelConfig, Precision
from model.optim import MomentumSGD, OptimConfig
from model.step import StepControls, StepInputs, TrainingState, mark_static_addresses, train_step
from steps import CONFIG, CROP, TOLD, Bench, examples

STATE = 2 * 2 * 8 * 2 + 1  # weight and bias of eight layers of two towers, a velocity to each; whether all was finite


class Graph(NamedTuple):
    """A step as Inductor gets it, and which of its inputs stay where they are."""

    module: fx.GraphModule
    static: Sequence[int]

    @property
    def written(self) -> list[int]:
        """The inputs that the step writes."""
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        copies = [node for node in self.module.graph.nodes if node.target is torch.ops.aten.copy_.default]
        return [inputs.index(copy.args[0]) for copy in copies]


class Traced(Exception):
    """The graph is there, and nothing is to be computed."""


def traced(precision: Precision, prepare: Callable[[TrainingState], None]) -> Graph:
    torch._dynamo.reset()
    found: list[Graph] = []

    def keep(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., NoReturn]:
        metadata = TracingContext.get().fw_metadata
        assert metadata
        found.append(Graph(graph, metadata.static_input_indices))

        def run(*_: Any) -> NoReturn:
            raise Traced

        return run

    bench = Bench(ModelConfig(fc_width=64, precision=precision))
    prepare(bench.training)
    backend = aot_autograd(fw_compiler=keep, keep_inference_input_mutations=True)
    with pytest.raises(Traced), torch._dynamo.config.patch(trace_autograd_ops=True):
        bench.run(torch.compile(train_step, backend=backend, fullgraph=True, dynamic=False), examples())
    (graph,) = found
    return graph


def refusal(graph: Graph) -> str | None:
    """Why Inductor would make no CUDA graph of it, by what it writes."""
    names = OrderedSet(map(str, graph.written))
    return check_for_mutation_ignore_cuda_graph_managed_tensor(
        graph.module, names, OrderedSet(graph.written), graph.static
    )


@pytest.mark.parametrize(
    "precision", ["bfloat16", *(pytest.param(p, marks=pytest.mark.slow) for p in ("float32", "mixed"))]
)
def test_all_that_a_step_writes_stays_where_it_is(precision: Precision) -> None:
    graph = traced(precision, mark_static_addresses)
    assert len(set(graph.written)) == STATE
    assert refusal(graph) is None


@pytest.mark.slow
def test_it_would_not_unless_told() -> None:
    assert "mutated inputs" in (refusal(traced("float32", lambda training: None)) or "")


class Devices(TorchDispatchMode):
    """Where the results of all operations are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.device] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.found |= {each.device for each in tree_leaves(result) if isinstance(each, Tensor)}
        return result


def test_no_tensor_of_a_step_is_on_another_device() -> None:
    """By tensors of the device `meta`, which have no numbers: one that the step made on the CPU would stand out."""
    model = AlexNet(CONFIG, classes=10, crop=CROP).to("meta")
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
    mean, finite = torch.zeros(CROP, CROP, 3, device="meta"), torch.ones((), dtype=torch.bool, device="meta")
    inputs = StepInputs(*(column.to("meta") for column in examples()))
    controls = StepControls(torch.zeros(2, device="meta"), TOLD.to("meta"))
    # Autocast, which makes nothing, knows no `meta`.
    off = mock.patch("model.alexnet.autocast", lambda *_: nullcontext())
    with off, mock.patch("torch.is_autocast_enabled", lambda *_: False), Devices() as devices:
        train_step(TrainingState(model, optimizer, mean, finite), controls, inputs)
    assert devices.found == {torch.device("meta")}
