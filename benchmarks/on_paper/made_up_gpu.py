"""Inductor's code for an H100 that is not there: everything that would ask a driver is answered here.

Needs a CUDA build of torch with Triton, which imports on machines without a GPU; of the private parts of torch 2.13.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from unittest import mock

import torch
import torch._inductor.codegen.triton as codegen
import torch._inductor.fx_passes.fuse_attention as fuse_attention
import torch._inductor.fx_passes.misc_patterns as misc_patterns
import torch._inductor.fx_passes.pad_mm as pad_mm
import torch._inductor.scheduler as scheduler
import torch.utils._triton
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor, fx
from torch._dynamo.device_interface import get_interface_for_device
from torch._guards import TracingContext, tracing
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.fx_passes.replace_random import replace_random_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]

aten = torch.ops.aten
DEVICE: Final = torch.device("cuda", 0)
H100: Final = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    L2_cache_size=50 << 20, gcnArchName="", shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)  # fmt: skip


class Buffer(NamedTuple):
    """A tensor of the generated code."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Generated(NamedTuple):
    """The code of a step, and the tensors that it names."""

    code: str
    buffers: dict[str, Buffer]


def generate(graph: fx.GraphModule, inputs: list[Any], options: Mapping[str, Any]) -> Generated:
    """The code of a graph that was traced on the CPU, laid on the GPU. Patches torch for the rest of the process.

    options: Inductor's.
    """
    _answer_for_the_driver()
    kept: list[Generated] = []

    def keep(lowering: GraphLowering) -> None:
        kept.append(Generated(_text(lowering.codegen()[0]), _buffers(lowering)))
        raise _Kept

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    laid = _lay_on_gpu(graph, inputs, fake)
    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep),
        config.patch({**options, "fx_graph_cache": False, "compile_threads": 1}),
        tracing(TracingContext(fake)),
        V.set_fake_mode(fake),
    ):
        replace_random_passes(graph)  # as it does before: to its own random numbers
        try:
            compile_fx_inner(graph, laid)
        except Exception:  # Inductor wraps what `keep` raises
            if not kept:
                raise
    return kept[0]


class _Kept(Exception):
    """The code is there: it is not to be loaded."""


def _text(code: Any) -> str:
    return getattr(code, "value", code)


def _buffers(lowering: GraphLowering) -> dict[str, Buffer]:
    found = {}
    for name, node in {**lowering.name_to_buffer, **lowering.graph_inputs}.items():
        try:
            found[name] = Buffer(tuple(int(size) for size in node.get_size()), node.get_dtype())
        except (AttributeError, NotImplementedError):  # no tensor: several results, or none
            continue
    return found


def _lay_on_gpu(graph: fx.GraphModule, inputs: list[Any], fake: FakeTensorMode) -> list[Any]:
    """Inputs on the GPU, and the graph's shapes, strides and devices worked out from them."""
    # While strides are worked out views are reshapes: those of library calls are not what they were on the CPU.
    views = [node for node in graph.graph.nodes if node.target is aten.view.default]
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": DEVICE}
    with fake, torch.no_grad():
        laid = [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=DEVICE)
            if isinstance(each, Tensor)
            else each
            for each in inputs
        ]
        _set_targets(graph, views, aten.reshape.default)
        FakeTensorProp(graph, mode=fake).propagate_dont_convert_inputs(*laid)
        _set_targets(graph, views, aten.view.default)
    return laid


def _set_targets(graph: fx.GraphModule, nodes: list[fx.Node], target: Any) -> None:
    for node in nodes:
        node.target = target
    graph.recompile()


class _Driver:
    is_active = staticmethod(lambda: True)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = get_current_stream = staticmethod(lambda *_: 0)
    get_device_interface = staticmethod(lambda: torch.cuda)
    get_active_torch_device = staticmethod(lambda: DEVICE)


def use_made_up_driver() -> None:
    """For Triton, which asks for the GPU's kind when it looks what a kernel writes to: before tracing."""
    triton.runtime.driver.set_active(_Driver())  # pyright: ignore[reportArgumentType]  # what of one is asked here


def _nothing(*_: Any, **__: Any) -> None: ...


def _h100(*_: Any) -> SimpleNamespace:
    return H100


def _zero(*_: Any) -> int:
    return 0


def _channels_last(x: Tensor, weight: Tensor, _: Any) -> torch.memory_format:
    """How cuDNN lays out a convolution's result; without a device torch asks a kernel that only knows contiguous."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return torch.channels_last if last else torch.contiguous_format


def _get_item(x: Tensor, index: Any) -> Tensor:
    """x[index] without the C++ code that would set a device."""
    dim = 0
    for each in index if isinstance(index, tuple) else (index,):
        if each is None:
            x, dim = aten.unsqueeze.default(x, dim), dim + 1
        elif isinstance(each, slice):
            x, dim = aten.slice.Tensor(x, dim, each.start, each.stop, each.step or 1), dim + 1
        else:
            x = aten.select.int(x, dim, each)
    return x


def _answer_for_the_driver() -> None:
    interface = get_interface_for_device("cuda")
    answers: list[tuple[Any, dict[str, Any]]] = [
        (
            torch.cuda,
            {
                "is_available": lambda: True, "current_device": _zero, "device_count": lambda: 1,
                "get_device_capability": lambda *_: (9, 0), "get_device_properties": _h100, "_lazy_init": _nothing,
                "synchronize": _nothing, "set_rng_state": _nothing,
                "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
            },
        ),
        (torch.cuda.device, {"__enter__": _nothing, "__exit__": lambda *_: False}),
        (torch.cuda._DeviceGuard, {"__enter__": _nothing, "__exit__": lambda *_: False}),
        (
            interface,
            {
                "is_available": staticmethod(lambda: True), "current_device": staticmethod(_zero),
                "get_compute_capability": staticmethod(lambda *_: 90),
                "get_device_properties": staticmethod(_h100), "raise_if_triton_unavailable": staticmethod(_nothing),
            },
        ),
        (
            interface.Worker,
            {"get_device_properties": staticmethod(_h100), "current_device": staticmethod(_zero)},
        ),
        (fuse_attention, {"_sfdp_init": _nothing}),
        (pad_mm, {"_pad_mm_init": _nothing}),
        (misc_patterns, {"_misc_patterns_init": _nothing}),
        (codegen, {"triton_hash_with_backend": lambda: "none"}),
        (torch.utils._triton, {"triton_hash_with_backend": lambda: "none"}),
        (scheduler, {"has_triton": lambda *_: True}),
        (torch._C, {"_conv_determine_backend_memory_format": _channels_last}),
        (FakeTensor, {"__getitem__": _get_item}),
    ]  # fmt: skip
    for owner, names in answers:
        for name, value in names.items():
            mock.patch.object(owner, name, value, create=True).start()
