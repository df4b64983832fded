"""What the compiled training step would do on an H100, on paper: the code that Inductor generates, without a GPU.

    python benchmarks/cuda_code.py --precision bfloat16 --batch-size 1024 [--parallel data] [--peer torchvision]

Each call (kernel or library function) takes at least what its bytes or its arithmetic take at the GPU's full rates. It
does not show real times, cuDNN's choice of algorithm, or whether a kernel reaches the bandwidth.

It needs a CUDA build of torch, which works on machines without a GPU (4 GB, made once):
    python3 -m venv DIR && DIR/bin/pip install torch==2.13.0 numpy
DIR is --env, or the environment's CUDA_CODE_ENV, or ~/.cache/cuda-code.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
DEFAULT_ENV = os.environ.get("CUDA_CODE_ENV", "~/.cache/cuda-code")

if TYPE_CHECKING:
    from on_paper.costs import Call, Collective, Rates


def main() -> None:
    """Generate, add up and print."""
    options = parse(sys.argv[1:])
    enter(options.env.expanduser())
    sys.path.insert(0, str(ROOT))  # the project is not installed in that environment
    from on_paper.costs import calls_of, collectives_of
    from on_paper.made_up_gpu import generate, use_made_up_driver
    from on_paper.step import inductor_options, our_step, torchvision_step, trace

    if options.peer:
        step, compiled_with = torchvision_step(options.precision, options.batch_size), {}
    else:
        layout = None if options.parallel == "none" else options.parallel
        step = our_step(options.precision, options.batch_size, layout, ranks_of(options))
        compiled_with = inductor_options(layout)
    use_made_up_driver()
    generated = generate(*trace(step), compiled_with)
    if options.code:
        options.code.write_text(generated.code)
    calls = calls_of(generated.code, generated.buffers)
    collectives = collectives_of(generated.code, generated.buffers)
    rates = rates_of(options.precision, options.bandwidth, options.peak)
    figures = summary(calls, rates, options.batch_size)
    report(calls, rates, figures, options.batch_size, options.top)
    report_collectives(collectives)
    if options.json:
        listed = [[each.kind, each.nbytes, str(each.dtype), each.between] for each in collectives]
        options.json.write_text(json.dumps({**figures, "collectives": listed}, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """By argparse: the environment has torch, and not much else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("float32", "mixed", "bfloat16"), default="bfloat16")
    parser.add_argument("--parallel", choices=("none", "tower", "data", "tower+data", "2014"), default="none")
    parser.add_argument("--ranks", type=int, help="2 for tower, else 8")
    parser.add_argument("--batch-size", type=int, default=1024, help="pictures that each rank brings")
    parser.add_argument("--peer", choices=("torchvision",), help="its AlexNet in place of ours")
    parser.add_argument("--env", type=Path, default=Path(DEFAULT_ENV))
    parser.add_argument("--code", type=Path, help="where to write the generated code")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--top", type=int, default=30, help="kinds of call to list")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes/s")
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s in bfloat16; TF32 has half of it")
    return parser.parse_args(arguments)


def ranks_of(options: argparse.Namespace) -> int:
    return options.ranks or {"none": 1, "tower": 2}.get(options.parallel, 8)


def enter(env: Path) -> None:
    """Become the environment's Python, unless this is it."""
    python = env / "bin" / "python"
    if Path(sys.prefix).resolve() == env.resolve():
        return
    if not python.exists():
        sys.exit(f"{env} is no environment, expected one with a CUDA build of torch; make it as --help says")
    os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])


IEEE_FLOAT32 = 67e12  # FLOP/s of an H100 SXM outside its tensor cores (NVIDIA's data sheet)


def rates_of(precision: str, bandwidth: float, peak: float) -> "Rates":
    """As `model.precision.set_arithmetic` sets them: float32 is IEEE float32, but for the convolutions of `mixed`."""
    import torch

    from on_paper.costs import Rates

    convolution = IEEE_FLOAT32 if precision == "float32" else peak / 2
    return Rates(
        bandwidth,
        {
            ("convolution", torch.bfloat16): peak,
            ("product", torch.bfloat16): peak,
            ("convolution", torch.float32): convolution,
            ("product", torch.float32): IEEE_FLOAT32,
        },
    )


def summary(calls: Sequence["Call"], rates: "Rates", batch_size: int) -> dict[str, float]:
    """The figures of a step."""
    from on_paper.costs import least_seconds

    return {
        "calls": len(calls),
        "bytes_per_image": sum(call.moved for call in calls) / batch_size,
        "flop": sum(call.flop for call in calls),
        "least_seconds": sum(least_seconds(call, rates) for call in calls),
    }


def report(calls: Sequence["Call"], rates: "Rates", figures: dict[str, float], batch_size: int, top: int) -> None:
    """The figures, what must be moved beside them, and the calls that take most."""
    from on_paper.costs import least_seconds
    from roofline import least_bytes

    print(
        f"{figures['calls']} calls a step, {figures['bytes_per_image'] / 1e6:.1f} MB an image, "
        f"{figures['flop'] / 1e12:.2f} TFLOP, at least {figures['least_seconds'] * 1e3:.2f} ms, "
        f"{batch_size / figures['least_seconds']:,.0f} images/s at most"
    )
    must = least_bytes(batch_size) / batch_size
    print(f"must be moved in bfloat16, the whole network on one GPU: {must / 1e6:.1f} MB an image")
    kinds: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        kinds[call.name].append(call)
    rows = [
        (sum(least_seconds(call, rates) for call in each), len(each), sum(call.moved for call in each), name)
        for name, each in kinds.items()
    ]
    print("least us  calls        MB  call")
    for seconds, count, moved, name in sorted(rows, reverse=True)[:top]:
        print(f"{seconds * 1e6:8.1f} {count:6d} {moved / 1e6:9.1f}  {name[:100]}")


def report_collectives(collectives: Sequence["Collective"]) -> None:
    """A line each: what, how large, and how much is started while it runs."""
    for each in collectives:
        dtype = str(each.dtype).removeprefix("torch.")
        print(f"{each.kind:24} {each.nbytes / 1e6:9.3f} MB {dtype:9} {each.between:4d} products before its wait")


if __name__ == "__main__":
    main()
