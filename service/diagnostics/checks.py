"""Every check of service.doctor in turn, and the command that follows from them."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pipeline.command import InputError
from service.diagnostics import data as checks_data
from service.diagnostics import disk as checks_disk
from service.diagnostics import gpu as checks_gpu
from service.diagnostics import host as checks_host
from service.diagnostics import software as checks_torch
from service.diagnostics.cgroup import limits
from service.diagnostics.finding import Finding, unmendable, with_flags, worst
from service.diagnostics.probes import CUDA_SECONDS, READ_SECONDS, TORCH_SECONDS, Probe, run_probe

STDOUT: Final = "-"
PLACEHOLDER: Final = "SHARDS"
DEMO_CROP: Final = 80  # pixels, of recipe demo, whose module needs all that may be missing


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set."""

    shards: Path | None = None
    """Folder that python -m pipeline.shard made, to look at and to read for two seconds."""


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
    """A finding, and what it was judged from."""

    finding: Finding
    facts: Any


def run_checks(options: Options, tell: Callable[[str], None]) -> Iterator[CheckResult]:
    """Every check in turn. tell: what is being looked at, for whoever waits."""
    with Probe("torch", seconds=TORCH_SECONDS) as probe:
        tell("torch")
        yield CheckResult(checks_host.judge_python(sys.version_info[:3], sys.executable), None)
        tried = probe.outcome()
    torch, allowed = tried.value, limits()
    yield CheckResult(checks_torch.judge_torch(tried), tried)
    processor = checks_host.find_processor(torch)
    yield CheckResult(checks_host.judge_processor(processor), processor)
    cores = checks_host.find_cores(torch, allowed)
    yield CheckResult(checks_host.judge_cores(cores), cores)
    memory = checks_host.find_memory(torch, allowed)
    yield CheckResult(checks_host.judge_memory(memory), memory)

    driver = checks_gpu.find_driver()
    found = checks_gpu.judge_driver(driver, torch.get("cuda"), options.device)
    gpus = 0
    if options.device == "cpu" and (driver.gpus or driver.on_bus):
        found = found._replace(status="ok", follows="", remedy="", found=f"not asked for: {found.found}")
    yield CheckResult(found, driver)
    if driver.gpus and torch.get("cuda") and options.device != "cpu" and found.status == "ok":
        tell("CUDA")
        computed = run_probe("gpus", seconds=CUDA_SECONDS)
        yield CheckResult(checks_gpu.judge_cuda(computed, options.device, checks_gpu.hidden_gpus()), computed)
        gpus = len(computed.value.get("gpus", ()))
    if not tried.why:
        tell("the compiler")
        compiler = checks_torch.find_compiler(torch)
        yield CheckResult(checks_torch.judge_compiler(compiler, gpus > 0), compiler)
    tell("DALI")
    failure = checks_torch.find_decoder("cpu")
    yield CheckResult(checks_torch.judge_dali(checks_torch.dali_version(), failure), {"failure": failure})
    if gpus and not failure:
        tell("decoding on the GPU")
        on_gpu = checks_torch.find_decoder("gpu")
        yield CheckResult(checks_gpu.judge_decoding(on_gpu), {"failure": on_gpu})
    if gpus > 1:
        tell("NCCL")
        exchanged = run_probe("exchange", "cuda", str(gpus), seconds=CUDA_SECONDS)
        yield CheckResult(checks_gpu.judge_nccl(exchanged, gpus), exchanged)

    tell("the disk")
    disk = checks_disk.find_disk(options.out)
    yield CheckResult(checks_disk.judge_disk(disk, torch.get("parameters", {}).get("paper", 0)), disk)
    shm = checks_host.find_shared_memory()
    yield CheckResult(checks_host.judge_shared_memory(shm, gpus), shm)
    descriptors = checks_host.find_descriptors()
    yield CheckResult(checks_host.judge_descriptors(descriptors), descriptors)
    ports = checks_host.find_ports(options.host, options.port, max(1, gpus))
    yield CheckResult(checks_host.judge_ports(ports), ports)
    tell("Docker")
    docker = checks_gpu.find_docker()
    if finding := checks_gpu.judge_docker(docker, len(driver.gpus)):
        yield CheckResult(finding, docker)

    if options.data.shards is None:
        return
    tell("the data set")
    data = checks_data.find_data(options.data.shards)
    judged = checks_data.judge_data(data)
    yield CheckResult(judged, data)
    if judged.status != "failed" and not failure and not tried.why:
        device, crop = "gpu" if gpus else "cpu", str(crop_of(data.side, gpus)[1])
        read = run_probe("read", data.shards, crop, device, seconds=CUDA_SECONDS + READ_SECONDS)
        yield CheckResult(checks_data.judge_reading(read, data.shards), read)


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
    """This interpreter as one would call it."""
    if (named := shutil.which("python")) and Path(named).absolute() == Path(sys.executable).absolute():
        return "python"
    here = Path.cwd()
    return (
        sys.executable if not Path(sys.executable).is_relative_to(here) else str(Path(sys.executable).relative_to(here))
    )


def verdict(options: Options, checked: list[CheckResult]) -> tuple[list[str], str]:
    """The last lines, and the command in them; empty where none trains here."""
    findings = [each.finding for each in checked]
    if mend := unmendable(findings):
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
