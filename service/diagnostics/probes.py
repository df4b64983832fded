"""Probes: what may crash, hang or lack a package, tried in a process of its own with a time limit.

`Probe` starts that process; the functions below it run in it, import what they try, and their result is printed as
JSON.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

TORCH_SECONDS: Final = 120.0  # an import from a slow network disk can take a while
CUDA_SECONDS: Final = 120.0  # so can a first CUDA start
READ_SECONDS: Final = 2.0  # of reading a data set
LOAD_SECONDS: Final = 20.0


class Outcome(NamedTuple):
    """What a probe returned; or, where it failed, why: the last line that it wrote."""

    value: dict[str, Any]
    why: str = ""


class Probe:
    """A running probe; leaving the block ends it, and removes the compiler caches that it wrote."""

    def __init__(self, name: str, *arguments: str, seconds: float):
        self.seconds = seconds
        self._left, self._why = ExitStack(), ""
        command = [sys.executable, "-m", __name__, str(int(seconds) + 5), name, *arguments]
        try:
            folder = self._left.enter_context(tempfile.TemporaryDirectory(prefix="doctor-"))
            # Importing Inductor already makes its cache folder.
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
            )
        except OSError as error:
            self._process, self._why = None, f"no process can be started: {error.strerror or error}"

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._left.close()

    def outcome(self) -> Outcome:
        """Wait for the probe to end."""
        if not self._process:
            return Outcome({}, self._why)
        try:
            said, complaints = self._process.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return Outcome({}, f"no answer in {self.seconds:g} s")
        if self._process.returncode == 0 and said:
            return Outcome(json.loads(said.splitlines()[-1]))
        return Outcome({}, last_words(complaints, self._process.returncode))


def run_probe(name: str, *arguments: str, seconds: float) -> Outcome:
    """Run a probe, and wait for its outcome."""
    with Probe(name, *arguments, seconds=seconds) as probe:
        return probe.outcome()


def last_words(complaints: str, status: int) -> str:
    """Why a process failed, in a line: the last that it wrote, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit status {status}"


def probe_torch() -> dict[str, Any]:
    """torch's version, what it finds of the processor, the compiler it takes, and how large the networks are."""
    import torch

    from model.alexnet import AlexNet, ModelConfig
    from model.precision import bfloat16_instructions, choose_precision
    from service.run.threads import keep_within_quota

    keep_within_quota()  # as a run does
    cpu = torch.device("cpu")
    with torch.device("meta"):  # shapes only
        networks = {"paper": AlexNet(ModelConfig()), "demo": AlexNet(ModelConfig(fc_width=512), crop=80)}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": bfloat16_instructions(cpu),
        "precision": choose_precision(cpu).precision,
        "parameters": {name: sum(p.numel() for p in each.parameters()) for name, each in networks.items()},
        **inductor_compiler(),
    }


def inductor_compiler() -> dict[str, Any]:
    """The C++ compiler that Inductor takes, and its default cache folder."""
    try:
        from torch._inductor import config
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    except ImportError as error:  # private modules, which another version of torch may not have
        return {"compiler": "", "complaint": f"this torch does not say which it takes ({error})", "cache": ""}
    try:
        return {"compiler": get_cpp_compiler(), "complaint": "", "cache": default_cache_dir()}
    except InvalidCxxCompiler:
        tried = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else [config.cpp.cxx]
        complaint = f"no C++ compiler: {' or '.join(filter(None, tried))} is not there, or does not run"
        return {"compiler": "", "complaint": complaint, "cache": default_cache_dir()}
    except Exception as error:  # whatever it raises: compiling will raise it too
        complaint = str(error).partition("\n")[0] or type(error).__name__
        return {"compiler": "", "complaint": complaint, "cache": default_cache_dir()}


def compute_on_gpus() -> dict[str, Any]:
    """Start CUDA, and multiply and convolve on each GPU."""
    import torch

    from model.precision import bfloat16_instructions, choose_precision

    if not torch.cuda.is_available():
        return {"gpus": []}
    gpus = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        ones = torch.ones(64, 64, device=device)
        maps = torch.nn.functional.conv2d(ones[None, None], ones[None, None, :3, :3])
        if (ones @ ones).sum().item() != 64**3 or maps.max().item() != 9:
            raise SystemExit(f"GPU {number} computes wrong sums")
        gpus.append(
            {
                "name": torch.cuda.get_device_name(device),
                "capability": list(torch.cuda.get_device_capability(device)),
                "bfloat16": bfloat16_instructions(device),
                "precision": choose_precision(device).precision,
            }
        )
    return {"gpus": gpus, "built_for": torch.cuda.get_arch_list()}


def all_reduce(device: str, ranks: str) -> dict[str, Any]:
    """Sum a tensor over one process for each GPU, with NCCL; on `cpu`, with gloo."""
    from torch.multiprocessing.spawn import spawn

    left = signal.alarm(0)
    signal.alarm(left)
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        spawn(_exchanging, (device, int(ranks), f"file://{folder}/meet", left), int(ranks))
    return {"ranks": int(ranks)}


def _exchanging(rank: int, device: str, ranks: int, meeting: str, seconds: int) -> None:
    import torch
    from torch import distributed

    signal.alarm(seconds)  # ends this process even if the one that started it is killed
    if device == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=meeting, rank=rank, world_size=ranks
    )
    numbers = torch.full((2**20,), float(rank), device=device)
    distributed.all_reduce(numbers)
    if not (numbers == ranks * (ranks - 1) / 2).all():
        raise SystemExit("the sum over ranks is wrong")
    distributed.destroy_process_group()


def read_batches(shards: str, crop: str, device: str) -> dict[str, Any]:
    """Read training pictures for READ_SECONDS as a run does, after a first batch."""
    import torch

    from pipeline.load.batch_loader import BatchLoader
    from pipeline.load.config import DataConfig

    loader = BatchLoader(DataConfig(shards=shards, crop=int(crop)), device="gpu" if device == "gpu" else "cpu")
    batches = loader.train(128)
    next(batches)
    start, pictures = time.monotonic(), 0
    while time.monotonic() - start < READ_SECONDS:
        pictures += len(next(batches).labels)
    if device == "gpu":
        torch.cuda.synchronize()
    rate = pictures / (time.monotonic() - start)
    return {
        "images_per_second": rate,
        "damaged": loader.damaged,
        "decoder": loader.decoder,
        "store": loader.dataset.store,
    }


def load_library(library: str) -> dict[str, Any]:
    """Load a shared object that `service.diagnostics.software` had compiled, and call it: the sum of 0 .. 999."""
    import ctypes

    return {"sum": ctypes.CDLL(library).total(1000)}


PROBES: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "torch": probe_torch,
    "gpus": compute_on_gpus,
    "exchange": all_reduce,
    "read": read_batches,
    "load": load_library,
}


def _main(seconds: str, name: str, *arguments: str) -> None:
    signal.alarm(int(seconds))  # ends this process then, even if its parent is gone, and wherever it hangs
    value = PROBES[name](*arguments)
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the probe has succeeded: no finaliser of a library may turn that into a failure


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except Exception as error:
        line = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        sys.exit(line)
