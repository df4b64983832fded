"""What a training step must compute and move, how fast this machine can, and where a step's time goes."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

import torch

from model.precision import bfloat16_instructions

# Numbers of an image: each layer's input and output, a normalisation and the pooling after it being one.
CONVOLUTIONS: Final = (
    (224 * 224 * 3, 96 * 55 * 55),
    (96 * 27 * 27, 256 * 27 * 27),
    (256 * 13 * 13, 384 * 13 * 13),
    (384 * 13 * 13, 384 * 13 * 13),
    (384 * 13 * 13, 256 * 13 * 13),
)
POOLINGS: Final = ((96 * 55 * 55, 96 * 27 * 27), (256 * 27 * 27, 256 * 13 * 13), (256 * 13 * 13, 256 * 6 * 6))
PARAMETERS: Final = 60_965_224


def least_bytes(batch_size: int) -> float:
    """That a step in bfloat16 moves if each operation reads its inputs and writes its outputs once.

    Forward reads in and writes out; backward reads both and the gradient of out, twice for a convolution, once for its
    weights, and writes the gradient of in. The update reads and writes weights and velocities and reads gradients.
    """
    convolutions = sum(3 * (into + out) for into, out in CONVOLUTIONS) - CONVOLUTIONS[0][0] - CONVOLUTIONS[0][1]
    poolings = sum(3 * into + 2 * out for into, out in POOLINGS)
    return batch_size * 2 * (convolutions + poolings) + 28 * PARAMETERS


def seconds_of(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peaks(device: str) -> tuple[float, float]:
    """FLOP/s of large matrix products and bytes/s, read and written, of a 1 GiB copy; best of ten.

    The products are of bfloat16 where that is native, else of float32.
    """
    rates = []
    dtype = torch.bfloat16 if bfloat16_instructions(torch.device(device)) else torch.float32
    for side in (1024, 2048, 4096, 8192 if device == "cuda" else 4096):
        a = torch.randn(side, side, device=device).to(dtype)
        rates.append(2 * side**3 / best(lambda a=a: a @ a, device))
    source = torch.zeros(1 << 28, device=device)
    target = torch.empty_like(source)
    return max(rates), 2 * source.nbytes / best(lambda: target.copy_(source), device)


def best(work: Callable[[], object], device: str) -> float:
    """Seconds, of ten, after two to warm up."""
    return min([seconds_of(work, device) for _ in range(12)][2:])


# What the profiler calls an operation, and of a convolution the shape of its weights: out, in, height, width.
NAMES: Final = {
    r"aten::convolution$": "forward",
    r"aten::convolution_backward$": "backward",
    r"aten::(mm|addmm)$": "fully connected, forward and backward",
    r"alexnet::max_pool(_backward)?$": "pooling, forward and backward",
}
REST: Final = "the rest: normalisation, ReLU, dropout, loss, update, casts"


def parts_of(work: Callable[[], object], steps: int = 3) -> Iterator[tuple[str, float]]:
    """(part, milliseconds a step) of ours."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        total = sum(seconds_of(work, "cuda" if torch.cuda.is_available() else "cpu") for _ in range(steps))
    found: dict[str, float] = defaultdict(float)
    for event in profile.key_averages(group_by_input_shape=True):
        for name, part in NAMES.items():
            if re.match(name, event.key):
                microseconds = event.device_time_total if torch.cuda.is_available() else event.cpu_time_total
                found[f"{_layer(event.input_shapes)} {part}".strip()] += microseconds / 1000 / steps
    yield from sorted(found.items())
    yield REST, 1000 * total / steps - sum(found.values())


LAYERS: Final = {
    (48, 11): "conv1",
    (128, 5): "conv2",
    (192, 256): "conv3",
    (192, 192): "conv4",
    (128, 192): "conv5",
}


def _layer(shapes: list[list[int]]) -> str:
    """The convolution with weights of one of these shapes."""
    for shape in shapes:
        if len(shape) == 4:
            found = LAYERS.get((shape[0], shape[2])) or LAYERS.get((shape[0], shape[1]))
            if found and shape[2] in (11, 5, 3):
                return found
    return ""
