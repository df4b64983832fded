"""Checks of the processor: what it computes in, and how many cores this process gets."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.host.cpus import whole_cores
from service.diagnostics.cgroup import Limits, limits
from service.diagnostics.environment import variables
from service.diagnostics.finding import Finding


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor, and what torch makes of it (empty where torch cannot say)."""

    name: str
    machine: str  # x86_64, aarch64
    instructions: str = ""
    bfloat16: str = ""
    precision: str = ""


def find_processor(torch: dict[str, Any], cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """torch: what probes.probe_torch returned."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    said = {name: torch.get(name, "") for name in ("instructions", "bfloat16", "precision")}
    return Processor(name=names[0] if names else platform.machine(), machine=platform.machine(), **said)


def judge_processor(processor: Processor) -> Finding:
    """Which instructions and precision it computes with."""
    words = [processor.name]
    if processor.instructions and processor.instructions != "DEFAULT":
        words.append(processor.instructions)
    if processor.precision:
        words.append(processor.bfloat16 or "no bfloat16 instructions")
    found = ", ".join(words) + (f"; --model.precision auto is {processor.precision}" if processor.precision else "")
    if processor.machine == "x86_64" and processor.instructions == "DEFAULT":
        follows = "neither AVX2 nor AVX-512: training and decoding take several times as long"
        return Finding(
            "warning", "processor", found, follows, "choose another machine, or have the hypervisor pass AVX2"
        )
    return Finding("ok", "processor", found)


@dataclass(frozen=True, kw_only=True)
class Cores:
    """How much of the processor this process gets."""

    cores: int  # that it may run on
    machine: int  # that there are
    quota: float | None  # seconds of processor time a second, by cgroups
    omp_num_threads: str | None
    torch_threads: int | None  # in a run that starts here


def find_cores(torch: dict[str, Any], allowed: Limits | None = None) -> Cores:
    """allowed: the cgroups' limits, if known already."""
    return Cores(
        cores=len(os.sched_getaffinity(0)),
        machine=os.cpu_count() or 1,
        quota=(allowed or limits()).cores,
        omp_num_threads=variables().get("OMP_NUM_THREADS"),
        torch_threads=torch.get("threads"),
    )


def judge_cores(cores: Cores) -> Finding:
    """Whether as many threads are started as there is processor time for."""
    share = whole_cores(cores.cores, cores.quota)
    found = f"{cores.cores} of {cores.machine}" if cores.cores != cores.machine else f"{cores.cores}"
    if cores.quota is not None and cores.quota < cores.cores:
        found = f"{found}; a cgroup gives the time of {cores.quota:g}"
    if cores.torch_threads is None:
        return Finding("ok", "cores", found)
    found = f"{found}; torch computes in {_threads(cores.torch_threads)}"
    if cores.torch_threads > share:
        follows = "more threads than there are cores, or time of cores, wait for one another"
        flags = (f"OMP_NUM_THREADS={share}",)
        return Finding("warning", "cores", found, follows, f"use {flags[0]}", flags)
    # By default torch uses one of the two hardware threads of a core, which is right.
    if cores.omp_num_threads and 2 * cores.torch_threads < share:
        follows = (
            f"OMP_NUM_THREADS is {cores.omp_num_threads}, so other cores have nothing to do when training on the CPU"
        )
        return Finding("warning", "cores", found, follows, "unset OMP_NUM_THREADS")
    return Finding("ok", "cores", found)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"
