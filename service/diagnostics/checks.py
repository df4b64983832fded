"""Every check of service.doctor in turn, and the command that follows from them."""

import shlex
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from pipeline.command import InputError
from service.diagnostics.cgroup import limits
from service.diagnostics.data import find_data, judge_data, judge_reading
from service.diagnostics.disk import find_disk, judge_disk
from service.diagnostics.environment import judge_python
from service.diagnostics.finding import Finding, blocking_checks, with_flags, worst
from service.diagnostics.gpu import (
    Driver,
    find_docker,
    find_driver,
    hidden_gpus,
    judge_cuda,
    judge_decoding,
    judge_docker,
    judge_driver,
    judge_nccl,
)
from service.diagnostics.memory import find_memory, find_shared_memory, judge_memory, judge_shared_memory
from service.diagnostics.network import find_descriptors, find_ports, judge_descriptors, judge_ports
from service.diagnostics.probes import CUDA_SECONDS, READ_SECONDS, TORCH_SECONDS, Outcome, Probe, run_probe
from service.diagnostics.processor import find_cores, find_processor, judge_cores, judge_processor
from service.diagnostics.software import (
    dali_version,
    find_compiler,
    find_decoder,
    judge_compiler,
    judge_dali,
    judge_torch,
)

T = TypeVar("T")

STDOUT: Final = "-"
PLACEHOLDER: Final = "SHARDS"
DEMO_CROP: Final = 80  # pixels, as of recipe demo, whose module imports packages that may be missing


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set."""

    shards: str | Path | None = None
    """Folder that python -m pipeline.shard made, or its URL, to look at and to read for two seconds."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Say what this machine gives and what would break training on it: exit 0, or 1 where training would fail."""

    data: DataOptions = field(default_factory=DataOptions)
    out: Path = Path("run")
    """Folder that a run is to be written to; it is not made."""
    host: str = "127.0.0.1"
    """Address that the page, metrics and control are to be served on."""
    port: int = 8000
    """Port of the same; 0 for any free one."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """As of service.train; auto: the GPU where there is one."""
    json: str = ""
    """File for the findings as JSON; - for stdout, in place of the screen."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}, expected 0 to 65535; set --port")
        if self.json not in ("", STDOUT) and (
            not Path(self.json).absolute().parent.is_dir() or Path(self.json).is_dir()
        ):
            raise InputError(f"json is {self.json}, expected a file in a folder that is there; set --json")


class CheckResult(NamedTuple):
    """A finding, and the facts that it was judged from."""

    finding: Finding
    facts: Any


OnProgress = Callable[[str], None]  # shows what is being checked now
Checks = Generator[CheckResult, None, T]


def run_checks(options: Options, tell: OnProgress) -> Iterator[CheckResult]:
    """Every check in turn."""
    torch = yield from _check_python_and_torch(tell)
    yield from _check_processor_and_memory(torch.value)
    driver, gpus = yield from _check_gpus(options, torch.value, tell)
    decoding_failure = yield from _check_libraries(torch, gpus, tell)
    yield from _check_host(options, torch.value, driver, gpus, tell)
    if options.data.shards is not None:
        reads = not decoding_failure and not torch.why
        yield from _check_data(options.data.shards, reads, gpus, tell)


def _check_python_and_torch(tell: OnProgress) -> Checks[Outcome]:
    """Returns the outcome of torch's probe."""
    with Probe("torch", seconds=TORCH_SECONDS) as probe:
        tell("torch")
        yield CheckResult(judge_python(sys.version_info[:3], sys.executable), None)
        torch = probe.outcome()
    yield CheckResult(judge_torch(torch), torch)
    return torch


def _check_processor_and_memory(torch: dict[str, Any]) -> Checks[None]:
    allowed = limits()
    processor = find_processor(torch)
    yield CheckResult(judge_processor(processor), processor)
    cores = find_cores(torch, allowed)
    yield CheckResult(judge_cores(cores), cores)
    memory = find_memory(torch, allowed)
    yield CheckResult(judge_memory(memory), memory)


def _check_gpus(options: Options, torch: dict[str, Any], tell: OnProgress) -> Checks[tuple[Driver, int]]:
    """Returns the driver, and how many GPUs there are to train on."""
    driver = find_driver()
    found = judge_driver(driver, torch.get("cuda"), options.device)
    if options.device == "cpu" and (driver.gpus or driver.on_bus):
        found = found._replace(status="ok", follows="", remedy="", found=f"not asked for: {found.found}")
    yield CheckResult(found, driver)
    if not driver.gpus or not torch.get("cuda") or options.device == "cpu" or found.status != "ok":
        return driver, 0
    tell("CUDA")
    computed = run_probe("gpus", seconds=CUDA_SECONDS)
    yield CheckResult(judge_cuda(computed, options.device, hidden_gpus()), computed)
    return driver, len(computed.value.get("gpus", ()))


def _check_libraries(torch: Outcome, gpus: int, tell: OnProgress) -> Checks[str]:
    """Returns why DALI does not decode on the CPU; empty where it does."""
    if not torch.why:
        tell("the compiler")
        compiler = find_compiler(torch.value)
        yield CheckResult(judge_compiler(compiler, gpus > 0), compiler)
    tell("DALI")
    failure = find_decoder("cpu")
    yield CheckResult(judge_dali(dali_version(), failure), {"failure": failure})
    if gpus and not failure:
        tell("decoding on the GPU")
        on_gpu = find_decoder("gpu")
        yield CheckResult(judge_decoding(on_gpu), {"failure": on_gpu})
    if gpus > 1:
        tell("NCCL")
        exchanged = run_probe("exchange", "cuda", str(gpus), seconds=CUDA_SECONDS)
        yield CheckResult(judge_nccl(exchanged, gpus), exchanged)
    return failure


def _check_host(options: Options, torch: dict[str, Any], driver: Driver, gpus: int, tell: OnProgress) -> Checks[None]:
    tell("the disk")
    disk = find_disk(options.out)
    yield CheckResult(judge_disk(disk, torch.get("parameters", {}).get("paper", 0)), disk)
    shared_memory = find_shared_memory()
    yield CheckResult(judge_shared_memory(shared_memory, gpus), shared_memory)
    descriptors = find_descriptors()
    yield CheckResult(judge_descriptors(descriptors), descriptors)
    ports = find_ports(options.host, options.port, max(1, gpus))
    yield CheckResult(judge_ports(ports), ports)
    tell("Docker")
    docker = find_docker()
    if finding := judge_docker(docker, len(driver.gpus)):
        yield CheckResult(finding, docker)


def _check_data(shards: str | Path, reads: bool, gpus: int, tell: OnProgress) -> Checks[None]:
    """reads: whether DALI and torch work, so that the data set can be read for a while."""
    tell("the data set")
    data = find_data(shards)
    found = judge_data(data)
    yield CheckResult(found, data)
    if reads and found.status != "failed":
        device, crop = "gpu" if gpus else "cpu", str(crop_of(data.side, gpus)[1])
        read = run_probe("read", data.shards, crop, device, seconds=CUDA_SECONDS + READ_SECONDS)
        yield CheckResult(judge_reading(read, data.shards), read)


def crop_of(side: int, gpus: int) -> tuple[str, int]:
    """The recipe for pictures of so many pixels, and its crop: paper on a GPU, demo where that is too much."""
    if gpus and side >= 224:
        return "paper", 224
    return "demo", min(side, DEMO_CROP)


def suggested_command(options: Options, checked: list[CheckResult]) -> list[str]:
    """The words of the command that trains here, with all flags that the findings want."""
    facts = {each.finding.check: each.facts for each in checked}
    gpus = gpus_of(checked)
    side = facts["data set"].side if "data set" in facts else 0
    recipe, crop = crop_of(side or 256, gpus)
    shards = str(options.data.shards) if options.data.shards else PLACEHOLDER
    words = [python(), "-m", f"service.{'launch' if gpus > 1 else 'train'}", recipe, "--data.shards", shards]
    words += ["--data.crop", str(crop)] if crop not in (DEMO_CROP, 224) else []
    defaults = Options()
    for name in ("out", "host", "port", "device"):
        wanted = f"--{name}"
        replaced = any(flag.split(" ")[0] == wanted for each in checked for flag in each.finding.flags)
        if getattr(options, name) != getattr(defaults, name) and not replaced:
            words += [wanted, str(getattr(options, name))]
    return with_flags(words, (each.finding for each in checked))


def gpus_of(checked: list[CheckResult]) -> int:
    """How many there are to train on."""
    return next((len(each.facts.value.get("gpus", ())) for each in checked if each.finding.check == "CUDA"), 0)


def python() -> str:
    """This interpreter as one would type it."""
    if (named := shutil.which("python")) and Path(named).absolute() == Path(sys.executable).absolute():
        return "python"
    here = Path.cwd()
    return (
        sys.executable if not Path(sys.executable).is_relative_to(here) else str(Path(sys.executable).relative_to(here))
    )


def verdict(options: Options, checked: list[CheckResult]) -> tuple[list[str], str]:
    """The last lines of the report, and the command in them; that is empty where no command would train here."""
    findings = [each.finding for each in checked]
    if mend := blocking_checks(findings):
        return [f"Training would fail here. Mend first: {', '.join(mend)}."], ""
    line = shlex.join(suggested_command(options, checked))
    if worst(findings) == "failed":
        said = "Training would fail here as asked for. With these flags it works:"
    else:
        gpus = gpus_of(checked)
        where = "the processor" if not gpus else "the GPU" if gpus == 1 else f"{gpus} GPUs"
        said = f"Training works here, on {where}:"
    lines = [said, f"  {line}"]
    if options.data.shards is None:
        lines.append(f"({PLACEHOLDER}: a data set, of python -m pipeline.shard PICTURES; make demo does all of it)")
    return lines, line
