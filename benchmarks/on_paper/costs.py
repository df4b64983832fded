"""What generated code moves and computes: pure functions of its text and of the tensors that it names.

A call moves the whole of each buffer that it names, once for reading and once for writing. So a kernel that reads a
part of a buffer is costed too high, and one that reads a buffer several times, past the caches, too low.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import torch


class Buffer(Protocol):
    """A tensor that the code names."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def nbytes(self) -> int: ...


class Call(NamedTuple):
    """A kernel or a library's function, started once."""

    name: str
    moved: int  # bytes
    flop: float  # of convolutions and matrix products
    dtype: torch.dtype | None  # that it multiplies


class Collective(NamedTuple):
    """An exchange between ranks, from its start to its wait."""

    kind: str
    nbytes: int  # of its input
    dtype: torch.dtype
    between: int  # convolutions and products that are started before it is waited for


class Rates(NamedTuple):
    """Of the GPU, at its best."""

    bandwidth: float  # bytes/s
    products: Mapping[tuple[str, torch.dtype], float]  # FLOP/s of ("convolution" or "product", type)


_CALL: Final = re.compile(
    r"^\s+(?:(?P<result>buf\d+) = )?"
    r"(?P<name>\w+(?=\.run\()|extern_kernels\.\w+|torch\.ops\.[\w.]+)(?:\.run)?\((?P<arguments>.*)\)"
)
_BUFFER: Final = re.compile(r"\b(?:buf\d+|(?:arg|primals_|tangents_)\d+(?:_1)?)\b")
_OPERAND: Final = re.compile(
    rf"reinterpret_tensor\((?P<viewed>{_BUFFER.pattern}), \((?P<sizes>[\d, ]*)\)|(?P<plain>{_BUFFER.pattern})"
)
_MULTIPLIES: Final = re.compile(r"extern_kernels\.|torch\.ops\.aten\.convolution")
_COLLECTIVE: Final = "torch.ops._c10d_functional."


class Operand(NamedTuple):
    """What a call names: a buffer, or a view of one."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def calls_of(code: str, buffers: Mapping[str, Buffer]) -> list[Call]:
    """The calls of a step in their order, without collectives."""
    lines, parameters = _body(code), _parameters(code)
    found = []
    for number, line in enumerate(lines):
        match = _CALL.match(line)
        if not match or match["name"].startswith(_COLLECTIVE):
            continue
        name = match["name"]
        named = _operands(match["arguments"], buffers)
        results = _operands(
            " ".join(each for each in (match["result"], *_unpacked(lines[number + 1 :], match["result"])) if each),
            buffers,
        )
        reads, writes = _reads_and_writes(parameters.get(name, ()), named)
        moved = _distinct_bytes([*reads, *results], buffers) + _distinct_bytes(writes, buffers)
        flop = flop_of(name, [*named, *results], match["arguments"])
        dtype = named[-1].dtype if flop else None
        found.append(Call(name, moved, flop, dtype))
    return found


def _operands(text: str, buffers: Mapping[str, Buffer]) -> list[Operand]:
    """Buffers and views in the order in which a call names them."""
    found = []
    for match in _OPERAND.finditer(text):
        name = match["viewed"] or match["plain"]
        if name in buffers:
            sizes = match["sizes"]
            shape = tuple(int(size) for size in re.findall(r"\d+", sizes)) if sizes is not None else buffers[name].shape
            found.append(Operand(name, shape, buffers[name].dtype))
    return found


def _distinct_bytes(operands: Sequence[Operand], buffers: Mapping[str, Buffer]) -> int:
    """Of what is named, each view once, and of no buffer more than it has."""
    views: dict[str, int] = {}
    for operand in dict.fromkeys(operands):
        views[operand.name] = views.get(operand.name, 0) + operand.nbytes
    return sum(min(size, buffers[name].nbytes) for name, size in views.items())


def _body(code: str) -> list[str]:
    """Lines of the function that starts everything."""
    return code.split("def call(self, args):")[-1].splitlines()


def _unpacked(lines: Sequence[str], result: str | None) -> list[str]:
    """The names that parts of a result, a tuple, get."""
    if not result:
        return []
    return re.findall(rf"^\s+(buf\d+) = {result}\[", "\n".join(lines[:12]), re.MULTILINE)


def _parameters(code: str) -> dict[str, list[str]]:
    """The names of each kernel's parameters."""
    kernels = re.findall(r"^(\w+) = async_compile\.triton\(.*?^def \w+\((.*?)\):", code, re.MULTILINE | re.DOTALL)
    return {name: [each.strip() for each in parameters.split(",")] for name, parameters in kernels}


def _reads_and_writes(parameters: Sequence[str], named: Sequence[Operand]) -> tuple[list[Operand], list[Operand]]:
    """By the compiler's names of parameters; of a kernel of our own, or a library, each operand is one or the other."""
    reads, writes = [], []
    for number, operand in enumerate(named):
        parameter = parameters[number] if number < len(parameters) else ""
        if parameter.startswith(("out_ptr", "in_out_ptr")):
            writes.append(operand)
        if not parameter.startswith("out_ptr"):
            reads.append(operand)
    return reads, writes


def flop_of(name: str, operands: Sequence[Operand], arguments: str) -> float:
    """Of a convolution (result last), its backward (gradient, input, weight), or a product (result last); else 0."""
    shapes = [operand.shape for operand in operands]
    if "convolution_backward" in name:
        (batch, _, height, width), _, weight = shapes[:3]
        gradients = re.findall(r"True|False", arguments[arguments.rfind("[") :])[:2].count("True")
        return 2.0 * gradients * batch * height * width * torch.Size(weight).numel()
    if "convolution" in name and not name.startswith("triton_"):
        weight, (batch, _, height, width) = shapes[1], shapes[-1]
        return 2.0 * batch * height * width * torch.Size(weight).numel()
    if name in ("extern_kernels.mm", "extern_kernels.addmm"):
        (rows, inner), (_, columns) = shapes[-3:-1]
        return 2.0 * rows * inner * columns
    return 0.0


def least_seconds(call: Call, rates: Rates) -> float:
    """The longer of what its bytes and its arithmetic take."""
    kind = "convolution" if "convolution" in call.name else "product"
    arithmetic = call.flop / rates.products[kind, call.dtype] if call.dtype else 0.0
    return max(call.moved / rates.bandwidth, arithmetic)


def collectives_of(code: str, buffers: Mapping[str, Buffer]) -> list[Collective]:
    """The collectives of a step in the order of their starts."""
    lines = _body(code)
    return [_collective(lines, number, kind, names, buffers) for number, kind, names in _starts(lines)]


def _starts(lines: Sequence[str]) -> Iterator[tuple[int, str, list[str]]]:
    """(line, kind, buffers: what is waited for last) of each."""
    for number, line in enumerate(lines):
        match = _CALL.match(line)
        if match and match["name"].startswith(_COLLECTIVE) and "wait_tensor" not in match["name"]:
            names = _BUFFER.findall(match["arguments"]) + ([match["result"]] if match["result"] else [])
            yield number, match["name"].removeprefix(_COLLECTIVE).split(".")[0].rstrip("_"), names


def _collective(
    lines: Sequence[str], start: int, kind: str, names: list[str], buffers: Mapping[str, Buffer]
) -> Collective:
    between = 0
    for line in lines[start + 1 :]:
        match = _CALL.match(line)
        if match and "wait_tensor" in match["name"] and set(names) & set(_BUFFER.findall(match["arguments"])):
            break
        between += bool(match and _MULTIPLIES.match(match["name"]))
    else:
        raise ValueError(f"{kind} of {names[0]} is never waited for")
    return Collective(kind, buffers[names[0]].nbytes, buffers[names[0]].dtype, between)
