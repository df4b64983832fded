"""On paper: how training would scale over GPUs, from bytes, bandwidths and one GPU's speed. Nothing here is measured.

    python benchmarks/scaling.py [--images-per-second 126000] [--gpus 8 64 512] [--batch-sizes 128 1024 8192 65536]

Layouts: `data`, every GPU holds the network; `tower+data`, pairs of GPUs hold a tower each; `2014`, convolutions as in
`data`, each fully connected layer split over groups of K GPUs (Krizhevsky, arXiv 1404.5997), with the best K;
`sharded`, as `data`, but each GPU updates a part of the weights, and all gather them during the next forward pass.

A step is the sum of compute; the update of the weights; exchange of activations and pictures, for which layers wait;
and what of the gradients' traffic outlasts the backward pass, in which each layer's starts when its gradient is there.
What is left out makes every layout slower: kernel launches, how badly small matrices use a GPU, and links that fall
short of their nominal rate or carry two collectives at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import tyro

FLOAT32, BFLOAT16 = 4, 2  # bytes
MEASURED_BATCH: Final = 1024  # of images_per_second


class Layer(NamedTuple):
    """A layer of both towers."""

    parameters: int
    forward: int  # multiply-accumulates an image
    backward: int  # twice that, but conv1 needs no gradient of its input
    connected: bool = False


def convolution(kernel: int, fan_in: int, channels: int, side: int, gradients: int = 2) -> Layer:
    """fan_in: channels that a kernel sees; channels: of both towers; side: of the output, pixels."""
    weights = kernel * kernel * fan_in * channels
    macs = weights * side * side
    return Layer(weights + channels, macs, gradients * macs)


def connected(fan_in: int, units: int) -> Layer:
    """A fully connected layer."""
    weights = fan_in * units
    return Layer(weights + units, weights, 2 * weights, connected=True)


MAPS, POOLED, WIDTH, CLASSES = 256 * 13 * 13, 256 * 6 * 6, 4096, 1000  # units that both towers' halves make up
PIXELS: Final = 224 * 224 * 3
LAYERS: Final = (
    convolution(11, 3, 96, 55, gradients=1),
    convolution(5, 48, 256, 27),
    convolution(3, 256, 384, 13),
    convolution(3, 192, 384, 13),
    convolution(3, 192, 256, 13),
    connected(POOLED, WIDTH),
    connected(WIDTH, WIDTH),
    connected(WIDTH, CLASSES),
)
PARAMETERS: Final = sum(layer.parameters for layer in LAYERS)
MACS: Final = sum(layer.forward + layer.backward for layer in LAYERS)  # of training on an image
CONNECTED_SHARE: Final = sum(layer.forward + layer.backward for layer in LAYERS if layer.connected) / MACS
TOWER_TALKS: Final = (MAPS, POOLED, WIDTH, WIDTH, CLASSES)  # units of an image that a pair gathers
CONNECTED_TALKS: Final = (POOLED, WIDTH, WIDTH, CLASSES)  # units of an image that a group of the 2014 scheme gathers


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the figures rest on; the defaults are nominal ones of H200 hosts with a 400 Gb/s card for each GPU."""

    images_per_second: float = 126_000
    """One GPU's, both towers, batch 1024; the default is arithmetic plus memory traffic at full rate, not measured."""
    update_seconds: float = 1.7e9 / 4.3e12
    """The update's on one GPU: 28 bytes a weight at nine tenths of 4.8 TB/s."""
    per_host: int = 8
    """GPUs in a host."""
    nvlink: float = 450e9
    """Bytes/s of a GPU, each way, inside a host."""
    network: float = 50e9
    """Bytes/s of a GPU, each way, between hosts."""
    start_seconds: float = 8e-6
    """To start a collective."""
    nvlink_seconds: float = 3e-6
    """A hop of a ring inside a host."""
    network_seconds: float = 14e-6
    """A hop of a tree between hosts."""
    picture_bytes: int = 2
    """Of each number of the pictures that a pair exchanges: 2 float16, as on a GPU; 1 uint8; 0 leaves pictures out."""

    @property
    def image_seconds(self) -> float:
        """An image's arithmetic and memory traffic on one GPU, without the update."""
        return 1 / self.images_per_second - self.update_seconds / MEASURED_BATCH

    def gather(self, size: float, ranks: int, per_host: int) -> float:
        """Seconds until all ranks have `size` bytes of which each brought its part; a reduce-scatter's just so.

        Over the network first, each GPU through its own card, then inside the hosts.
        """
        if ranks == 1:
            return 0.0
        local = min(ranks, per_host)
        hosts = ranks // local
        between = size / local * (hosts - 1) / hosts / self.network + math.ceil(math.log2(hosts)) * self.network_seconds
        inside = size * (local - 1) / local / self.nvlink + (local - 1) * self.nvlink_seconds
        return self.start_seconds + between + inside

    def all_reduce(self, size: float, ranks: int, per_host: int) -> float:
        """A reduce-scatter, then a gather: 2 (n - 1) / n of the bytes over each link."""
        return 2 * self.gather(size, ranks, per_host)


class Step(NamedTuple):
    """Where the seconds of a step go."""

    compute: float
    update: float
    exchange: float
    gradients: float

    @property
    def bound(self) -> str:
        """The largest part."""
        return max(zip(self, self._fields, strict=True))[1]

    @property
    def efficiency(self) -> float:
        """Images/s over those of as many GPUs that do nothing but compute."""
        return self.compute / sum(self)


def outlasting(compute: float, reductions: Sequence[float]) -> float:
    """Seconds by which the layers' reductions, one after the other, outlast the backward pass that hands them out."""
    backward = link = 0.0
    for layer, seconds in zip(reversed(LAYERS), reversed(reductions), strict=True):
        backward += compute * layer.backward / MACS
        link = max(link, backward) + seconds
    return link - backward


def delaying(compute: float, gathers: Sequence[float]) -> float:
    """Seconds for which a forward pass waits for its layers' weights, which come one after the other."""
    forward = link = 0.0
    for layer, seconds in zip(LAYERS, gathers, strict=True):
        link += seconds
        forward = max(forward, link) + compute * layer.forward / MACS
    return forward - compute * sum(layer.forward for layer in LAYERS) / MACS


def data(machine: Machine, gpus: int, images: float) -> Step:
    """images: a GPU's part of the global batch, here and below."""
    compute = images * machine.image_seconds
    reductions = [machine.all_reduce(layer.parameters * FLOAT32, gpus, machine.per_host) for layer in LAYERS]
    return Step(compute, machine.update_seconds, 0.0, outlasting(compute, reductions))


def sharded(machine: Machine, gpus: int, images: float) -> Step:
    """`data` with the all-reduce in halves: one hides behind the backward pass, one behind the next forward pass."""
    compute = images * machine.image_seconds
    halves = [machine.gather(layer.parameters * FLOAT32, gpus, machine.per_host) for layer in LAYERS]
    waiting = outlasting(compute, halves) + delaying(compute, halves)
    return Step(compute, machine.update_seconds / gpus, 0.0, waiting)


def tower_data(machine: Machine, gpus: int, images: float) -> Step:
    """A pair trains on both GPUs' images, each GPU on half of the network."""
    compute = images * machine.image_seconds
    pictures = machine.gather(2 * images * PIXELS * machine.picture_bytes, 2, 2) if machine.picture_bytes else 0.0
    talks = sum(machine.gather(2 * images * units * BFLOAT16, 2, 2) for units in TOWER_TALKS)
    halves = [layer.parameters / 2 * FLOAT32 for layer in LAYERS]
    reductions = [machine.all_reduce(size, gpus // 2, machine.per_host // 2) for size in halves]
    exchange = pictures + 2 * talks  # activations there, their gradients back
    return Step(compute, machine.update_seconds / 2, exchange, outlasting(compute, reductions))


def weird_trick(machine: Machine, gpus: int, images: float, group: int) -> Step:
    """Groups of K take their batch in K parts, so that the exchange of all but the first may hide behind arithmetic."""
    compute = images * machine.image_seconds
    local = min(group, machine.per_host)
    exchange = 2 * sum(machine.gather(group * images * n * BFLOAT16, group, local) for n in CONNECTED_TALKS)
    hidden = (1 - 1 / group) * min(exchange, compute * CONNECTED_SHARE)
    held = [layer.parameters / (group if layer.connected else 1) for layer in LAYERS]
    reductions = [
        machine.all_reduce(size * FLOAT32, gpus // group, machine.per_host // local)
        if layer.connected
        else machine.all_reduce(size * FLOAT32, gpus, machine.per_host)
        for layer, size in zip(LAYERS, held, strict=True)
    ]
    update = machine.update_seconds * sum(held) / PARAMETERS
    return Step(compute, update, exchange - hidden, outlasting(compute, reductions))


def best_trick(machine: Machine, gpus: int, images: float) -> tuple[int, Step]:
    """The fastest K of the 2014 scheme: a part of a host, or whole hosts."""
    fitting = [k for k in range(2, gpus + 1) if gpus % k == 0 and 0 in (machine.per_host % k, k % machine.per_host)]
    return min(((k, weird_trick(machine, gpus, images, k)) for k in fitting), key=lambda choice: sum(choice[1]))


LAYOUTS: Final = {
    "data": data,
    "tower+data": tower_data,
    "2014": lambda machine, gpus, images: best_trick(machine, gpus, images)[1],
    "sharded": sharded,
}


def batch_for(machine: Machine, layout: str, gpus: int, efficiency: float) -> int | None:
    """The smallest global batch of so much efficiency, a multiple of the GPUs; None where no batch has it."""
    low, high = 0, 1 << 20  # images a GPU
    if LAYOUTS[layout](machine, gpus, high).efficiency < efficiency:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = LAYOUTS[layout](machine, gpus, middle).efficiency >= efficiency
        low, high = (low, middle) if enough else (middle, high)
    return high * gpus


@dataclass(frozen=True, kw_only=True)
class Options(Machine):
    """The machine, and what to print."""

    gpus: tuple[int, ...] = (8, 64, 512)
    """Numbers of GPUs: even, and whole hosts or a part of one."""
    batch_sizes: tuple[int, ...] = (128, 1024, 8192, 65536)
    """Global; those of less than one image a GPU are left out."""


def main() -> None:
    """Print the tables."""
    options = tyro.cli(Options, description=__doc__)
    print(
        f"{'GPUs':>4} {'batch':>7} {'layout':12} {'images/s':>11} {'efficiency':>10} {'bound':10} parts, microseconds"
    )
    for gpus, batch in [(n, b) for n in options.gpus for b in options.batch_sizes if b >= n]:
        for layout, step_of in LAYOUTS.items():
            step = step_of(options, gpus, batch / gpus)
            name = f"2014, K={best_trick(options, gpus, batch / gpus)[0]}" if layout == "2014" else layout
            parts = " + ".join(f"{1e6 * seconds:.0f} {part}" for part, seconds in step._asdict().items() if seconds)
            rate = f"{batch / sum(step):11,.0f} {step.efficiency:10.0%}"
            print(f"{gpus:4} {batch:7,} {name:12} {rate} {step.bound:10} {parts}")
    print(f"\n{'GPUs':>4} {'layout':12} {'batch for 90% efficiency':>24} {'most efficiency':>15}")
    for gpus in options.gpus:
        for layout, step_of in LAYOUTS.items():
            batch = batch_for(options, layout, gpus, 0.9)
            most = step_of(options, gpus, 1e9).efficiency
            print(f"{gpus:4} {layout:12} {f'{batch:,}' if batch else 'none':>24} {most:15.0%}")


if __name__ == "__main__":
    main()
