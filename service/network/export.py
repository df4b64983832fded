"""A trained network as a file for other programs.

The file is written under a temporary name, read back by the program that it is for, and given made pictures: it takes
its own name if it says of them what the network says.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.alexnet import AlexNet, map_side
from model.cifar import CifarNetwork
from model.grouped import PlainCifar, grouped
from model.network import Network
from model.torchvision import FC_SIDE, TorchvisionAlexNet
from pipeline.command import InputError
from pipeline.files import atomic_writer, sha256_of, write_atomic
from pipeline.host.cpus import usable_cores
from pipeline.synthetic.scene import picture
from pipeline.synthetic.textures import TEXTURES
from service.network.read import MEAN, METADATA, WEIGHTS_SHA256, facts_file, from_parts, read_file
from service.network.trained import TrainedNetwork

Format = Literal["safetensors", "torchvision", "onnx", "torch-export"]
SUFFIXES: Final[dict[Format, tuple[str, ...]]] = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".safetensors"),
    "onnx": (".onnx",),
    "torch-export": (".pt2",),
}
INPUT: Final = "pictures"  # of a graph: (B, 3, crop, crop) float32, RGB on 0..255
OUTPUT: Final = "logits"  # (B, classes) float32
METADATA_FILE: Final = "metadata.json"  # in a file of torch.export
ONNX_PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")

PICTURES: Final = 100
ROWS: Final = 32  # pictures in a batch; the last one has four, because a graph takes any number
# Of the largest logit, which is the same sums in another order: float32 rounds each of up to 9216 terms in eight layers
# by 2^-24, and 4e-7 to 3e-6 was measured. A mean picture that is off by 0.1 of 255 makes 7e-4, pooling and normalising
# in the other order 0.06.
TOLERANCE: Final = 1e-4

BATCH: Final = {INPUT: {0: torch.export.Dim("batch")}}  # any number of pictures

Logits = Callable[[NDArray[np.uint8]], Tensor]  # (B, crop, crop, 3) RGB -> (B, classes) float32


class Difference(NamedTuple):
    """How far a file's logits are from the network's, at most."""

    largest: float  # of all differences
    relative: float  # that, of the largest logit


def check_exportable(network: TrainedNetwork, format: Format) -> None:
    """InputError where a network cannot be had in a format."""
    if format == "torchvision" and network.config.layout != "torchvision":
        raise InputError(
            f"{network.path} has layout {network.config.layout}, expected torchvision: its AlexNet cannot hold it; "
            "use --format safetensors, onnx or torch-export"
        )
    if format == "torchvision" and network.config.activation != "relu":
        raise InputError(
            f"{network.path} has activation {network.config.activation}, expected torchvision's relu; "
            "use --format safetensors, onnx or torch-export"
        )


def check_packages(format: Format) -> None:
    """InputError where a format needs what is not installed."""
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if format == "onnx" and missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}, expected the extra onnx; pip install -e '.[onnx]'")


def export(network: TrainedNetwork, format: Format, out: Path) -> Difference:
    """Write a network, which is on the CPU, to a file; InputError, and no file, where that computes something else."""
    write = {
        "safetensors": _write_safetensors,
        "torchvision": _write_torchvision,
        "onnx": _write_onnx,
        "torch-export": _write_torch_export,
    }[format]
    try:
        with atomic_writer(out) as stream:
            exported = write(network, stream, out.suffix)
            found = difference(network, exported)
            if not found.relative <= TOLERANCE:  # nor is it where one is NaN
                raise InputError(
                    f"as {format} the logits of {network.path} differ by {found.relative:.1e} of the largest, "
                    f"expected at most {TOLERANCE:.0e}; no file is written"
                )
            if out.suffix == ".pth":  # which the file beside it names, so that the two cannot be mixed up
                facts = {**facts_of(network), WEIGHTS_SHA256: sha256_of(Path(stream.name))}
                write_atomic(facts_file(out), (json.dumps(facts, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror or error}); give another --out") from error
    return found


def difference(network: TrainedNetwork, exported: Logits) -> Difference:
    """Between the logits of a network and those of its export, on made pictures."""
    pictures = made_pictures(network.crop)
    expected, found = (
        torch.cat([logits(pictures[start : start + ROWS]) for start in range(0, PICTURES, ROWS)])
        for logits in (_logits(network), exported)
    )
    largest = float((found - expected).abs().max())
    return Difference(largest, largest / max(float(expected.abs().max()), torch.finfo(torch.float32).tiny))


def made_pictures(crop: int) -> NDArray[np.uint8]:
    """(100, crop, crop, 3) RGB, always the same, made as pipeline.sample's are: of shapes, shades and grain."""
    made = [picture(0, 0, index % len(TEXTURES), index, (crop, crop)) for index in range(PICTURES)]
    return np.stack(made)


def facts_of(network: TrainedNetwork) -> dict[str, Any]:
    """What is known of a network beside its tensors, as plain JSON values; colours are RGB on 0..255."""
    return {
        "model": asdict(network.config),
        "crop": network.crop,  # pixels a side of what the network takes
        **network.preprocessing.facts(),
        "dataset_sha256": network.dataset_sha256,
        "rgb_mean": network.mean.double().mean((0, 1)).tolist(),  # of what is taken off the pictures
        "pixel_std": list(network.config.channel_std),  # what they are divided by after that
        "step": network.step,
        "source_sha256": network.sha256,
    }


class FromPixels(nn.Module):
    """(B, 3, crop, crop) float32 RGB on 0..255 -> (B, classes) logits, all in torch's own operators, dropout off."""

    mean: Tensor  # (3, crop, crop)
    scale: Tensor  # (3, 1, 1)

    def __init__(self, network: TrainedNetwork):
        super().__init__()
        self.network = _plain(network.model)
        scale = 1 / torch.tensor(network.config.channel_std)
        self.register_buffer("mean", network.mean.permute(2, 0, 1).contiguous())
        self.register_buffer("scale", scale[:, None, None])

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of pixels."""
        return self.network((pictures - self.mean) * self.scale)


def _plain(model: Network) -> nn.Module:
    if isinstance(model, AlexNet):
        return grouped(model)
    layers = deepcopy(PlainCifar(model) if isinstance(model, CifarNetwork) else plain_torchvision(model))
    for weight in layers.parameters():
        weight.data = weight.contiguous()  # kernels are channels-last, of which torch.export warns
    return layers


def plain_torchvision(model: TorchvisionAlexNet) -> nn.Sequential:
    """torchvision's network with its own weights; its pooling is this project's operator, which others do not have."""
    activate = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}[model.config.activation]
    conv, connected = model.features, model.classifier
    layers = [conv["0"], activate(), _pool(), conv["3"], activate(), _pool(), conv["6"], activate(), conv["8"]]
    layers += [activate(), conv["10"], activate(), _pool()]
    if map_side(model.crop) != FC_SIDE:
        layers.append(nn.AdaptiveAvgPool2d(FC_SIDE))
    layers += [nn.Flatten(), connected["1"], activate(), connected["4"], activate(), connected["6"]]
    return nn.Sequential(*layers).eval()


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2)


def _write_safetensors(network: TrainedNetwork, stream: IO[bytes], suffix: str) -> Logits:
    return _write_weights(network, {MEAN: torch.from_numpy(network.preprocessing.mean)}, stream, suffix)


def _write_torchvision(network: TrainedNetwork, stream: IO[bytes], suffix: str) -> Logits:
    return _write_weights(network, {}, stream, suffix)


def _write_weights(network: TrainedNetwork, more: dict[str, Tensor], stream: IO[bytes], suffix: str) -> Logits:
    weights = {name: weight.detach().contiguous() for name, weight in network.model.named_parameters()}
    facts = json.dumps(facts_of(network))
    if suffix == ".pth":
        stream.write(_buffered(lambda buffer: torch.save(weights, buffer)))
    else:
        stream.write(safetensors.torch.save({**weights, **more}, {METADATA: facts}))
    stream.flush()
    written, _ = read_file(Path(stream.name), suffix)
    return _logits(from_parts(Path(stream.name), written, facts, network.device))


def _buffered(write: Callable[[io.BytesIO], None]) -> memoryview:
    """What torch writes: on a full disk it would hide the reason under an error of its own."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getbuffer()


def _logits(network: TrainedNetwork) -> Logits:
    return lambda pictures: network.logits(torch.from_numpy(pictures))


def _write_torch_export(network: TrainedNetwork, stream: IO[bytes], suffix: str) -> Logits:
    extra = {METADATA_FILE: json.dumps(facts_of(network))}
    program = _program(network)
    stream.write(_buffered(lambda buffer: torch.export.save(program, buffer, extra_files=extra)))
    stream.flush()
    stream.seek(0)
    module = torch.export.load(stream).module()
    return lambda pictures: module(_pixels(pictures))


def _program(network: TrainedNetwork) -> torch.export.ExportedProgram:
    """The graph from pixels to logits, for any number of pictures."""
    example = torch.zeros(2, 3, network.crop, network.crop)  # two, because one might be taken for a constant
    module = FromPixels(network).requires_grad_(False).eval()
    program = torch.export.export(module, (example,), dynamic_shapes=BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _pixels(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous()


def _write_onnx(network: TrainedNetwork, stream: IO[bytes], suffix: str) -> Logits:
    import onnx  # an extra
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            _program(network),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=BATCH,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "an exporter of a graph returns it"
    model = program.model_proto
    model.metadata_props.add(key=METADATA, value=json.dumps(facts_of(network)))
    stream.write(model.SerializeToString())
    stream.flush()
    onnx.checker.check_model(stream.name, full_check=True)
    session = onnxruntime.InferenceSession(stream.name, _session_options(), providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run([OUTPUT], {INPUT: _pixels(pictures).numpy()})[0])


def _session_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # It would start a thread for each core of the machine, and complain where this process may not use them.
    options.intra_op_num_threads = usable_cores()
    return options


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says to its own developers."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(before)
