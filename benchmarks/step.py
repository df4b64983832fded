"""The training step: images/s, TFLOP/s, GB/s and share of the roofline; and where our step's milliseconds go.

    python benchmarks/step.py [--batch-sizes 128 1024 4096] [--rounds 5] [--parts]
    python benchmarks/step.py --recipe demo [--sides "ours, float32" "ours, mixed" "ours, bfloat16"]

With ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 before it, as on a processor that has no more than AVX2.

Sides: our compiled step in each precision; the same network as a reader of the paper writes it first, eager in fp32,
channels first, with `F.local_response_norm`; and torchvision's AlexNet (about the same arithmetic, no normalisation) in
bfloat16, channels-last, with a fused SGD, eager and compiled. Every side takes uint8 pictures, keeps a process of its
own, and takes turns with the others; all are set up as service.train sets up its process (freed memory is kept), but
for one eager side without that.

The roofline of a step is its arithmetic at the rate of a large matrix product, of bfloat16 where that is native, and
after it the least bytes that it must move in bfloat16 at the rate of a large copy, both measured here.
"""

import multiprocessing
import statistics
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Final, Literal, cast

import torch
import tyro

from model.alexnet import AlexNet, Precision
from model.flop import training_flops_per_picture
from model.optim import MomentumSGD, OptimConfig
from model.step import StepControls, StepInputs, TrainingState, compiled_train_step
from pipeline.host.memory import keep_freed_memory
from roofline import least_bytes, parts_of, peaks, seconds_of
from service.run.config import RECIPES, Run
from step_peers import Work, plain, torchvision

Device = Literal["cpu", "cuda"]

PLAIN, PLAIN_KEPT = "eager fp32 NCHW", "eager fp32 NCHW, freed memory kept"
PEER, PEER_COMPILED = "torchvision, eager bf16", "torchvision, compiled bf16"
PRECISIONS: Final = ("float32", "mixed", "bfloat16")
PARTED: Final = "ours, bfloat16"  # the side whose parts are shown
SIDES: Final = (PLAIN, PLAIN_KEPT, *(f"ours, {precision}" for precision in PRECISIONS), PEER, PEER_COMPILED)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    recipe: Literal["paper", "source", "demo"] = "paper"
    """Whose network and crop our sides have; the others are the paper's always."""
    batch_sizes: tuple[int, ...] = ()
    """None: the recipe's own."""
    rounds: int = 5
    sides: tuple[str, ...] = SIDES
    """Sides to measure; ratios are to the first."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    parts: bool = False
    """Also the milliseconds of each part of our step in bfloat16, by the profiler."""

    def __post_init__(self) -> None:
        if wrong := set(self.sides) - set(SIDES):
            raise ValueError(f"sides are {sorted(wrong)}, expected some of {', '.join(SIDES)}")


def run_of(recipe: str) -> Run:
    return RECIPES[recipe][1]


def classes_of(recipe: str) -> int:
    return 10 if recipe == "demo" else 1000


def synthetic(batch_size: int, device: Device, crop: int, classes: int) -> StepInputs:
    generator = torch.Generator().manual_seed(0)
    examples = StepInputs(
        torch.randint(0, 256, (batch_size, crop, crop, 3), dtype=torch.uint8, generator=generator),
        torch.zeros(batch_size, 3),
        torch.ones(batch_size),
        torch.randint(0, classes, (batch_size,), generator=generator),
        torch.arange(batch_size),
        torch.full((batch_size,), 1 / batch_size),
    )
    return StepInputs(*(tensor.to(device) for tensor in examples))


def ours(recipe: str, precision: Precision, batch_size: int, device: Device) -> Work:
    """Our step, compiled."""
    run, classes = run_of(recipe), classes_of(recipe)
    config, crop = replace(run.model, precision=precision), run.data.crop
    examples = synthetic(batch_size, device, crop, classes)
    model = AlexNet(config, classes=classes, crop=crop).to(device)
    optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
    mean = torch.full((crop, crop, 3), 110.0, device=device)
    training = TrainingState(model, optimizer, mean, torch.tensor(True, device=device))
    controls = StepControls(torch.full((2,), 0.001, device=device), torch.zeros(2, device=device))
    step = compiled_train_step()
    return lambda: step(training, controls, examples).loss


def work_of(side: str, batch_size: int, options: Options, device: Device) -> Work:
    if side.startswith("ours"):
        return ours(options.recipe, cast(Precision, side.removeprefix("ours, ")), batch_size, device)
    examples = synthetic(batch_size, device, 224, 1000)
    return (
        plain(examples, device) if side in (PLAIN, PLAIN_KEPT) else torchvision(examples, device, side == PEER_COMPILED)
    )


def serve(connection: Connection, side: str, batch_size: int, options: Options, device: Device) -> None:
    """A side's process: warm up, then time a step, or its parts, whenever ordered to."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if side != PLAIN:
        keep_freed_memory()
    work = work_of(side, batch_size, options, device)
    for _ in range(3):
        work()
    connection.send(torch.get_num_threads())
    while (order := connection.recv()) != "end":
        connection.send(seconds_of(work, device) if order == "step" else list(parts_of(work)))


def measure(
    batch_size: int, options: Options, device: Device
) -> tuple[dict[str, list[float]], list[tuple[str, float]]]:
    """Seconds of each step, the sides taking turns, one step of each a round; and the parts of ours."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for side in options.sides:
        connections[side], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, side, batch_size, options, device), daemon=True).start()
        connections[side].recv()
    seconds: dict[str, list[float]] = {side: [] for side in options.sides}
    for _ in range(options.rounds):
        for side, connection in connections.items():
            connection.send("step")
            seconds[side].append(connection.recv())
    parts: list[tuple[str, float]] = []
    if options.parts and PARTED in connections:
        connections[PARTED].send("parts")
        parts = connections[PARTED].recv()
    for connection in connections.values():
        connection.send("end")
    return seconds, parts


def report(batch_size: int, seconds: dict[str, list[float]], flop: float, peak: tuple[float, float], crop: int) -> None:
    """A line a side; NaN for what rests on the bytes of the paper's network, of another one's."""
    base = statistics.median(next(iter(seconds.values())))
    work, moved = batch_size * flop, least_bytes(batch_size) if crop == 224 else float("nan")
    roofline = work / peak[0] + moved / peak[1]
    head = f"{'images/s, median':>16} {'range':>19} {'ratio':>6} {'TFLOP/s':>8} {'GB/s':>6} {'roofline':>8}"
    print(f"{f'batch {batch_size}':36} {head}")
    for side, times in seconds.items():
        middle = statistics.median(times)
        rates = f"{batch_size / middle:16,.1f} {batch_size / max(times):9,.1f}-{batch_size / min(times):9,.1f}"
        shares = (
            f"{base / middle:6.2f} {work / middle / 1e12:8.2f} {moved / middle / 1e9:6.1f} {roofline / middle:8.0%}"
        )
        print(f"{side:36} {rates} {shares}")


def main() -> None:
    """Measure and print the tables."""
    options = tyro.cli(Options, description=__doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    run = run_of(options.recipe)
    flop, peak = training_flops_per_picture(run.model, classes_of(options.recipe), run.data.crop), peaks(device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}, n = {options.rounds}, {flop / 1e9:.2f} GFLOP an image")
    print(f"peaks: {peak[0] / 1e12:.2f} TFLOP/s (large product), {peak[1] / 1e9:.1f} GB/s (copy)", flush=True)
    for batch_size in options.batch_sizes or (run.batch_size,):
        seconds, parts = measure(batch_size, options, device)
        report(batch_size, seconds, flop, peak, run.data.crop)
        for part, milliseconds in parts:
            print(f"    {part:62} {milliseconds:8.1f} ms")


if __name__ == "__main__":
    main()
