"""What only a GPU can show: decoding, hand-over, parity with the CPU, the compiled step, and speed.

    python tests/gpu/smoke.py [--shards DIR] [--only WORD …]

A line a trial, with its figure. Each runs in a process of its own, because a broken decoder ends its process, and a
failure stops no other trial. Exit status 1 if one failed, 0 otherwise, also where there is no GPU.

Tolerances, on pixels of 0..255 at the network's input, against the CPU loader:
- FLOAT16 0.13: half a unit in the last place of a float16 below 256 is 0.0625, once for DALI, once for the shift.
- NVJPEG 2 on average: another inverse DCT alone makes 1.0 (libjpeg's fast one against its accurate one, over 200
  ImageNet pictures at quality 92), and a decoder in hardware may repeat chroma samples instead of interpolating them,
  which at a coloured edge makes tens. Another picture, or another crop, makes more than 20 on average.
- RESIZED 3 at most: the GPU and the CPU round to whole pixels between the two passes of a resize.
The step's, relative, on loss and gradient norm against eager float32 on the CPU over four steps whose rates are small
enough that rounding does not lead the networks apart:
- float32 0.01: cuDNN multiplies float32 in TF32, 11 significant bits.
- mixed and bfloat16 0.02: 8 significant bits, and max-pooling picks other winners where they round to ties; eager on
  the CPU they are within 0.004.
"""

import contextlib
import io
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from torch._dynamo.utils import counters

from model.alexnet import AlexNet, ModelConfig, Precision
from model.optim import MomentumSGD, OptimConfig
from model.step import (
    StepControls,
    StepInputs,
    StepResult,
    TrainingState,
    TrainStep,
    compiled_train_step,
    normalise_pictures,
    train_step,
)
from pipeline.inspection.pictures import batch_pictures
from pipeline.load.batch_loader import Batch, BatchLoader, Device, central_crop
from pipeline.load.config import DataConfig
from pipeline.load.probe import gpu_decoder_works
from pipeline.manifest import Store, load_mean
from pipeline.sample import SampleConfig, make
from pipeline.shard import ShardOptions, shard

FLOAT16, NVJPEG, RESIZED = 0.13, 2.0, 3.0
STEP_TOLERANCE: Final[dict[Precision, float]] = {"float32": 0.01, "mixed": 0.02, "bfloat16": 0.02}
PIXEL_STD = 58.0  # of typical pictures, so that the first steps neither explode nor vanish
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
TRIAL_SECONDS = 600  # compiling takes a minute or two


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to try, and on what."""

    shards: Path | None = None
    """Folder that python -m pipeline.shard made; generated pictures if not given."""
    only: tuple[str, ...] = ()
    """Only the trials whose names contain one of these."""
    device: Device = "gpu"
    """cpu: the trials that make sense there, to test this script."""
    batch_sizes: tuple[int, ...] = (128, 1024)
    """For the speeds."""
    seconds: float = 5.0
    """Length of a speed's window."""
    trial: str = ""
    """The one trial to run in this process; the script calls itself with it."""
    originals: Path | None = None
    """With --trial: shards of pictures of original size."""
    raw: Path | None = None
    """With --trial: raw shards."""


Trial = Callable[[Options], str]


class Failed(Exception):
    """A trial found what it should not."""


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    if options.device == "gpu" and not torch.cuda.is_available():
        print("skipped: no CUDA GPU")
        return 0
    if options.trial:
        print(trials(options)[options.trial](options))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = data_sets(options, Path(folder))
        names = [name for name in trials(options) if not options.only or any(word in name for word in options.only)]
        passed = [report(name, arguments(options, name, *made)) for name in names]
    print(f"{sum(passed)} of {len(passed)} trials passed")
    return 0 if all(passed) else 1


def data_sets(options: Options, folder: Path) -> tuple[Path, Path, Path]:
    """Shards of 256 x 256 pictures, the given ones if any, of pictures of original size, and of raw squares."""
    make(SampleConfig(dir=folder / "pictures", train_pictures=20, val_pictures=5, side=(260, 420)))
    squares, originals, raw = options.shards or folder / "squares", folder / "originals", folder / "raw"
    stores: tuple[tuple[Path, int, Store], ...] = (squares, 256, "jpeg"), (originals, 0, "jpeg"), (raw, 256, "raw")
    for out, size, store in stores:
        if out != options.shards:
            shard(ShardOptions(source=folder / "pictures", out=str(out), size=size, store=store))
    return squares, originals, raw


def arguments(options: Options, name: str, squares: Path, originals: Path, raw: Path) -> list[str]:
    """The command line of one trial's process."""
    sizes = [str(size) for size in options.batch_sizes]
    command = [sys.executable, __file__, "--trial", name, "--shards", str(squares), "--originals", str(originals)]
    command += ["--raw", str(raw)]
    return [*command, "--device", options.device, "--seconds", str(options.seconds), "--batch-sizes", *sizes]


def report(name: str, command: list[str]) -> bool:
    """Run one trial, print its line, and say whether it passed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"FAIL  {name}: no end within {TRIAL_SECONDS} s", flush=True)
        return False
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
    if done.returncode < 0:
        said.append(f"ended by {signal.Signals(-done.returncode).name}; {said[-1]}")
    print(f"{'pass' if done.returncode == 0 else 'FAIL'}  {name}: {said[-1]}", flush=True)
    return done.returncode == 0


def trials(options: Options) -> dict[str, Trial]:
    """Every trial by name, in the order in which one wants to know."""
    decoders: list[Device] = ["cpu", "gpu"] if options.device == "gpu" else ["cpu"]
    found: dict[str, Trial] = {"versions": versions}
    if options.device == "gpu":
        found["probe of GPU decoding"] = probe
    for decoder in decoders:
        found[f"hand-over, {decoder} decoder"] = partial(hand_over, decoder=decoder)
        found[f"parity, {decoder} decoder"] = partial(parity, decoder=decoder)
        found[f"parity of original sizes, {decoder} decoder"] = partial(resized_parity, decoder=decoder)
        found[f"validation, {decoder} decoder"] = partial(validation, decoder=decoder)
    found["hand-over, raw shards"] = of_raw(hand_over)
    found["parity, raw shards"] = of_raw(parity)
    for precision in STEP_TOLERANCE:
        found[f"step against eager, {precision}"] = partial(step_parity, precision=precision)
    found["the worker"] = partial(worker, launcher=())
    found["the worker under torchrun"] = partial(worker, launcher=TORCHRUN)
    found["evaluation"] = evaluation
    found["bench"] = bench
    found["look"] = look
    for decoder in decoders:
        found[f"speed of the loader, {decoder} decoder"] = partial(loader_speed, decoder=decoder)
    found["speed of the loader, raw shards"] = of_raw(loader_speed)
    for precision in STEP_TOLERANCE:
        found[f"speed of the step, {precision}"] = partial(step_speed, precision=precision)
    for decoder in decoders:
        found[f"speed of loader and step, {decoder} decoder"] = partial(whole_speed, decoder=decoder)
    return found


def of_raw(trial: Callable[[Options, Device], str]) -> Trial:
    """The trial on raw shards, whose crops the CPU copies, or whose squares DALI is given, without a decoder."""
    return lambda options: trial(replace(options, shards=options.raw), "cpu")


def torch_device(options: Options) -> torch.device:
    return torch.device("cuda" if options.device == "gpu" else "cpu")


def wait(options: Options) -> None:
    """Until the device has done all it was given."""
    if options.device == "gpu":
        torch.cuda.synchronize()


def data_config(options: Options, decoder: Device, output: Literal["auto", "uint8", "float16"] = "auto") -> DataConfig:
    assert options.shards  # every trial is given them
    return DataConfig(shards=options.shards, decoder=decoder, output=output)


def versions(options: Options) -> str:
    """What runs here."""
    packages = sorted({f"{d.name} {d.version}" for d in distributions() if _matters(d.name)})
    where = platform.processor() or platform.machine()
    if options.device == "gpu":
        gpu = torch.cuda.get_device_properties(0)
        where = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}"
        packages.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    return f"{where}; Python {platform.python_version()}; {', '.join(packages)}"


def _matters(package: str) -> bool:
    return package in ("torch", "numpy") or package.startswith(("nvidia-dali", "nvidia-nvimgcodec", "nvidia-nvjpeg"))


def probe(options: Options) -> str:
    """The trial that the loader itself makes before it decodes on the GPU."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        works = gpu_decoder_works()
    if not works:
        raise Failed(said.getvalue().strip())
    return "decodes"


def hand_over(options: Options, decoder: Device) -> str:
    """Batches are on the device and stay as they are, also when the device is far behind the host."""
    count, busy = 12, 100_000_000  # cycles: some 50 ms of work that the copy of each batch must wait for

    def batches(delay: bool) -> Iterator[Tensor]:
        for batch in islice(BatchLoader(data_config(options, decoder), device=options.device).train(32), count):
            yield batch.pictures
            if delay:
                torch.cuda._sleep(busy)

    expected = [pictures.cpu() for pictures in batches(False)]
    kept = list(batches(options.device == "gpu"))
    if any(pictures.device.type != torch_device(options).type for pictures in kept):
        raise Failed(f"pictures are on {kept[0].device}, expected {torch_device(options)}")
    errors = [difference(a.cpu(), b) for a, b in zip(kept, expected, strict=True)]
    worst = max(mean for _, mean in errors)
    if worst > (0 if decoder == "cpu" else NVJPEG):
        raise Failed(f"a picture changed by {worst:.3f} on average while it was kept, expected 0")
    return f"{count} batches of {tuple(kept[0].shape)} {kept[0].dtype} on {kept[0].device}, kept; change {worst:.3f}"


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The greatest difference of two batches of pictures, and that of the picture that differs most on average."""
    error = (a.float() - b.float()).abs()
    return error.max().item(), error.flatten(1).mean(1).max().item()


def network_input(options: Options, config: DataConfig, device: Device, count: int) -> tuple[Tensor, Batch]:
    """What the first layer sees of the positions up to `count`, on the host."""
    loader = BatchLoader(config, seed=3, device=device)
    batch = next(loader.train(count))
    mean_picture = load_mean(loader.root, loader.dataset)
    mean = torch.from_numpy(central_crop(mean_picture, config.crop)).to(batch.pictures.device)
    return normalise_pictures(StepInputs(*batch), mean, 1.0).cpu(), batch


def parity(options: Options, decoder: Device) -> str:
    """Network input of the same positions from the CPU's loader and from the device's, for every output."""
    expected, reference = network_input(options, data_config(options, "cpu", "uint8"), "cpu", 256)
    said = []
    for output in ("uint8", "float16"):
        found, batch = network_input(options, data_config(options, decoder, output), options.device, 256)
        if not torch.equal(batch.labels.cpu(), reference.labels):
            raise Failed(f"{output}: labels differ")
        said.append(f"{output} {check(found, expected, FLOAT16 if decoder == 'cpu' else None)}")
    return "; ".join(said)


def check(found: Tensor, expected: Tensor, most: float | None) -> str:
    """Differences in words; Failed above `most`, or without it above NVJPEG on average."""
    greatest, mean = difference(found, expected)
    words = f"differs by at most {greatest:.3f}, a picture on average by at most {mean:.4f}"
    if (greatest > most) if most is not None else (mean > NVJPEG):
        raise Failed(f"{words}; expected {f'at most {most}' if most is not None else f'{NVJPEG} on average'}")
    return words


def resized_parity(options: Options, decoder: Device) -> str:
    """The same for pictures of original size, which the graph resizes."""
    assert options.originals
    config = DataConfig(shards=options.originals, output="uint8")
    expected, _ = network_input(options, config, "cpu", 64)
    config = DataConfig(shards=options.originals, output="uint8", decoder=decoder)
    found, _ = network_input(options, config, options.device, 64)
    return check(found, expected, RESIZED if decoder == "cpu" else None)


def validation(options: Options, decoder: Device) -> str:
    """Every validation picture once, the last batch as short as it comes."""
    loader = BatchLoader(data_config(options, decoder), device=options.device)
    if "val" not in loader.dataset.splits:
        return "no validation split"
    samples = loader.dataset.splits["val"].samples
    size = max(samples // 3, 2)
    positions = [position for batch in loader.validation(size) for position in batch.positions.tolist()]
    if positions != list(range(samples)):
        raise Failed(f"{len(positions)} positions, expected each of 0 .. {samples - 1} once")
    return f"{samples} pictures in batches of {size}"


class Bench:
    """A network with its optimiser on a device."""

    def __init__(self, precision: Precision, device: torch.device, step: TrainStep):
        config = ModelConfig(init="he", pixel_std=PIXEL_STD, precision=precision)
        model = AlexNet(config).to(device)
        optimizer = MomentumSGD(OptimConfig(), dict(model.named_parameters()))
        mean = torch.full((224, 224, 3), 110.0, device=device)
        self.training = TrainingState(model, optimizer, mean, torch.tensor(True, device=device))
        self.controls = StepControls(torch.full((2,), 0.001, device=device), torch.zeros(2, device=device))
        self.device, self.step = device, step

    def run(self, examples: StepInputs, lr: float = 0.001) -> StepResult:
        self.controls.rates.fill_(lr)
        on_device = StepInputs(*(tensor.to(self.device) for tensor in examples))
        return self.step(self.training, self.controls, on_device)


def synthetic(batch_size: int, seed: int = 0, dtype: torch.dtype = torch.uint8) -> StepInputs:
    """Noise with labels; each batch of `seed` has positions of its own."""
    generator = torch.Generator().manual_seed(seed)
    return StepInputs(
        torch.randint(0, 256, (batch_size, 224, 224, 3), generator=generator).to(dtype),
        torch.zeros(batch_size, 3),
        torch.ones(batch_size),
        torch.randint(0, 1000, (batch_size,), generator=generator),
        torch.arange(batch_size) + batch_size * seed,
        torch.full((batch_size,), 1 / batch_size),
    )


def step_parity(options: Options, precision: Precision) -> str:
    """Loss and gradient norm of the compiled step against the CPU's eager one; one compilation, no graph break."""
    ours = Bench(precision, torch_device(options), compiled_train_step())
    eager = Bench("float32", torch.device("cpu"), train_step)
    errors, graphs = [], []
    for seed, lr in enumerate((1e-4, 1e-4, 1e-5, 0.0)):
        found, expected = ours.run(synthetic(16, seed), lr), eager.run(synthetic(16, seed), lr)
        errors.append(_relative(found.loss, expected.loss))
        errors.append(_relative(found.grad_norm, expected.grad_norm))
        graphs.append(counters["stats"]["unique_graphs"])
    words = f"loss and gradient norm within {max(errors):.5f}, {graphs[-1]} graphs"
    if counters["graph_break"] or len(set(graphs)) > 1:
        raise Failed(f"{words}; graph breaks {dict(counters['graph_break'])}, graphs after each step {graphs}")
    if not max(errors) <= STEP_TOLERANCE[precision]:
        raise Failed(f"{words}, expected within {STEP_TOLERANCE[precision]}")
    return f"{words}, no break, no recompilation"


def _relative(found: Tensor, expected: Tensor) -> float:
    return abs(found.item() - expected.item()) / abs(expected.item())


def worker(options: Options, launcher: tuple[str, ...]) -> str:
    """Trains, saves and resumes as a process of its own; under torchrun its one rank joins a group (NCCL on a GPU)."""
    with tempfile.TemporaryDirectory() as out:
        arguments = ["--data.shards", str(options.shards), "--out", out, "--device", options.device, "--port", "0"]
        arguments += ["--optim.lr", "0.0001"]  # the paper's is too high for so small a batch
        for steps in (3, 6):
            command = [sys.executable, *launcher, "-m", "service.train", "paper", *arguments, "--batch-size", "32"]
            done = subprocess.run([*command, "--max-steps", str(steps)], capture_output=True, text=True)
            if done.returncode:
                raise Failed(
                    f"ended with {done.returncode} before step {steps}: {done.stdout[-500:]}{done.stderr[-1500:]}"
                )
        records = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "gradient_norm" in record]
    if len(losses) != 6 or "restart 1" not in done.stderr:
        raise Failed(f"logged losses {losses}, expected six and a resume: {done.stderr[-500:]}")
    return f"six steps over a resume, losses {losses[0]:.3f} to {losses[-1]:.3f}"


def evaluation(options: Options) -> str:
    """A network of a few steps on ten views: the same figures for batches of 1 and 128, and about those of the CPU."""
    with tempfile.TemporaryDirectory() as out:
        arguments = ["--data.shards", str(options.shards), "--out", out, "--device", options.device, "--port", "0"]
        train = [sys.executable, "-m", "service.train", "demo", *arguments, "--max-steps", "20", "--no-compile"]
        subprocess.run(train, capture_output=True, check=True)
        found = []
        for device, batch_size in ((options.device, 1), (options.device, 128), ("cpu", 128)):
            call = [sys.executable, "-m", "service.evaluate", out, "--shards", str(options.shards), "--views", "10"]
            call += ["--device", device, "--batch-size", str(batch_size), "--json", f"{out}/found.json"]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode:
                raise Failed(f"ended with {done.returncode} on {device}: {done.stderr[-500:]}")
            found.append(json.loads(Path(out, "found.json").read_text()))
    one, many, cpu = found
    words = f"top-1 error {one['top1_error']:.4f} of {one['samples']} pictures, {cpu['top1_error']:.4f} on the CPU"
    # A picture or two may stand between two classes, for TF32 as for any rounding.
    if one != many or abs(one["top1_error"] - cpu["top1_error"]) * one["samples"] > 2:
        raise Failed(f"{words}, {many['top1_error']:.4f} in batches of 128")
    return words


def bench(options: Options) -> str:
    """The bench measures and tunes as a process of its own."""
    call = [sys.executable, "-m", "pipeline.bench", str(options.shards), "--device", options.device]
    with tempfile.TemporaryDirectory() as out:
        found, saved = Path(out, "found.json"), Path(out, "tuned.json")
        tune = ["--tune", "--tune-seconds", "20", "--save", str(saved)]
        for more in (["--seconds", "1", "--rounds", "3", "--json", str(found), "--out", f"{out}/x.png"], tune):
            done = subprocess.run([*call, *more], capture_output=True, text=True)
            if done.returncode:
                raise Failed(f"ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        stages = json.loads(found.read_text())["stages"]
        (machine,) = json.loads(saved.read_text())["machines"]
    if options.device == "gpu" and not machine["machine"]["gpu"]:
        raise Failed(f"tuned for {machine['machine']}, expected the GPU's name")
    speeds = [f"{each['name']} {each['images_per_second']['median']:,.0f}" for each in stages]
    return f"{', '.join(speeds)} images/s; {machine['tuned']}"


def look(options: Options) -> str:
    """The same step's pictures on this device and on the CPU differ by the decoders' rounding alone."""
    shown = []
    devices: tuple[Device, Device] = (options.device, "cpu")
    for device in devices:
        loader = BatchLoader(replace(data_config(options, "cpu"), decoder="auto", output="auto"), device=device)
        shown.append(np.stack([each.picture for each in batch_pictures(loader, 32, 64)]).astype(np.int16))
    apart = np.abs(shown[0] - shown[1])
    if apart.mean() > 1:
        raise Failed(f"values differ by {apart.mean():.2f} on average, expected less than 1")
    return f"values differ by {apart.mean():.3f} on average, {apart.max()} at most"


def images_per_second(options: Options, batch_size: int, work: Callable[[], object]) -> float:
    """Of `work`, which does a batch, over one window, after some to warm up."""
    for _ in range(5 if options.device == "gpu" else 1):
        work()
    wait(options)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < options.seconds:
        work()
        count += batch_size
        if options.device == "gpu" and count % (8 * batch_size) == 0:
            torch.cuda.synchronize()  # or the host would run far ahead of the window
    wait(options)
    return count / (time.perf_counter() - start)


def speeds(options: Options, work: Callable[[int], Callable[[], object]]) -> str:
    """Images/s at each batch size."""
    rates = {size: images_per_second(options, size, work(size)) for size in options.batch_sizes}
    return ", ".join(f"{rate:,.0f} images/s at batch {size}" for size, rate in rates.items())


def loader_speed(options: Options, decoder: Device) -> str:
    """Of the loader alone."""
    loader = BatchLoader(data_config(options, decoder), device=options.device)
    return speeds(options, lambda size: partial(next, loader.train(size)))


def step_speed(options: Options, precision: Precision) -> str:
    """Of the compiled step alone, on pictures that are on the device already."""

    def work(size: int) -> Callable[[], object]:
        bench = Bench(precision, torch_device(options), compiled_train_step())
        dtype = torch.float16 if options.device == "gpu" else torch.uint8
        examples = StepInputs(*(tensor.to(bench.device) for tensor in synthetic(size, dtype=dtype)))
        return lambda: bench.run(examples)

    return speeds(options, work)


def whole_speed(options: Options, decoder: Device) -> str:
    """Of training: the loader's batches through the compiled step."""

    def work(size: int) -> Callable[[], object]:
        bench = Bench("mixed", torch_device(options), compiled_train_step())
        batches = BatchLoader(data_config(options, decoder), device=options.device).train(size)
        return lambda: bench.run(StepInputs(*next(batches)))

    return speeds(options, work)


if __name__ == "__main__":
    sys.exit(main())
