"""What service.doctor looks at in any machine: processor, cores, memory, /dev/shm, descriptors, port.

Each check has what is found, read at this edge, and how it is judged, a pure function of that.
"""

import math
import os
import platform
import resource
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.command import InputError
from service.diagnostics.cgroup import Limits, limits
from service.diagnostics.finding import Finding, size
from service.web.listener import listen
from service.web.uvicorn_limits import CONNECTIONS

OLDEST_PYTHON: Final = (3, 11)
VARIABLES: Final = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CACHE_DIR", "CC")

# A training process on a CPU, float32: peaks of resident memory that service.train had, not compiled, with batches of
# 32 and 128 (paper: 2,497 and 4,113 MiB) and of 16 and 64 (demo on 112-pixel crops, which bounds its 80: 559 and 788
# MiB), torch 2.13 and DALI 2.4. What does not grow with the batch is the libraries' and 28 bytes a parameter: weight,
# momentum and gradient, the new weight and momentum before they are taken, and the copy of both that is saved.
LIBRARY_BYTES: Final = 420 * 2**20
PARAMETER_BYTES: Final = 28
PICTURE_BYTES: Final = {"paper": 17 * 2**20, "demo": 5 * 2**20}
BATCH: Final = {"paper": 128, "demo": 16}

# Pipes, sockets, a few of each library; shards are mapped and their files closed. On a CPU a run does with 64.
LEAST_FILES: Final = 64
WORKER_FILES: Final = 256  # with room for CUDA, NCCL and compilers
SERVER_FILES: Final = CONNECTIONS + 64  # the server raises its own soft limit to the hard one

SHM_BYTES: Final = 10**6  # of locks and queues between processes
NCCL_SHM_BYTES: Final = 10**9  # NCCL's documentation: docker run --shm-size=1g


def variables() -> dict[str, str]:
    """The few environment variables that decide what is found; nothing else of the doctor reads any."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor, and what torch makes of it (empty where torch cannot say)."""

    name: str
    machine: str  # x86_64, aarch64
    instructions: str = ""
    bfloat16: str = ""
    precision: str = ""


def find_processor(torch: dict[str, Any], cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """torch: what probes.look_at_torch said."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    said = {name: torch.get(name, "") for name in ("instructions", "bfloat16", "precision")}
    return Processor(name=names[0] if names else platform.machine(), machine=platform.machine(), **said)


def judge_processor(there: Processor) -> Finding:
    """What it computes in."""
    words = [there.name]
    if there.instructions and there.instructions != "DEFAULT":
        words.append(there.instructions)
    if there.precision:
        words.append(there.bfloat16 or "no bfloat16 instructions")
    found = ", ".join(words) + (f"; --model.precision auto is {there.precision}" if there.precision else "")
    if there.machine == "x86_64" and there.instructions == "DEFAULT":
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
    torch_threads: int | None


def find_cores(torch: dict[str, Any], allowed: Limits | None = None) -> Cores:
    """allowed: by cgroups, if it is known already."""
    return Cores(
        cores=len(os.sched_getaffinity(0)),
        machine=os.cpu_count() or 1,
        quota=(allowed or limits()).cores,
        omp_num_threads=variables().get("OMP_NUM_THREADS"),
        torch_threads=torch.get("threads"),
    )


def judge_cores(there: Cores) -> Finding:
    """Whether as many threads are started as there is processor time for."""
    of = f"{there.cores} of {there.machine}" if there.cores != there.machine else f"{there.cores}"
    found = of if there.torch_threads is None else f"{of}; torch computes in {there.torch_threads} threads"
    if there.quota is not None and there.quota < there.cores:
        share = max(1, math.ceil(there.quota))
        found = f"{found}; a cgroup gives the time of {there.quota:g}"
        flags = (f"OMP_NUM_THREADS={share}", f"--data.threads {share}")
        if there.torch_threads is not None and there.torch_threads <= share:
            return Finding("ok", "cores", found, "DALI starts a thread a core", f"use {flags[1]}", flags)
        follows = f"torch and DALI start a thread for each of {there.cores} cores, and wait for one another"
        remedy = f"use {' and '.join(flags)}; in Docker, --cpuset-cpus in place of --cpus"
        return Finding("warning", "cores", found, follows, remedy, flags)
    if there.torch_threads is None:
        return Finding("ok", "cores", found)
    if there.torch_threads > there.cores:
        follows = "more threads than cores wait for one another"
        flags = (f"OMP_NUM_THREADS={there.cores}",)
        return Finding("warning", "cores", found, follows, f"use {flags[0]}", flags)
    # torch takes one of two hardware threads of a core for its own, which is right.
    if there.omp_num_threads and 2 * there.torch_threads < there.cores:
        follows = (
            f"OMP_NUM_THREADS is {there.omp_num_threads}, so other cores have nothing to do when training on the CPU"
        )
        return Finding("warning", "cores", found, follows, "unset OMP_NUM_THREADS")
    return Finding("ok", "cores", found)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the machine's memory, and of what cgroups allow."""

    total: int
    available: int
    limit: int | None = None
    limit_left: int | None = None
    parameters: dict[str, int] = field(default_factory=dict)  # of the networks, by recipe


def find_memory(torch: dict[str, Any], allowed: Limits | None = None, meminfo: Path = Path("/proc/meminfo")) -> Memory:
    """torch: what probes.look_at_torch said; allowed: by cgroups, if it is known already."""
    try:
        pairs = [line.split()[:2] for line in meminfo.read_text().splitlines()]
    except OSError:
        pairs = []
    kilobytes = {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) == 2}
    allowed = allowed or limits()
    return Memory(
        total=kilobytes.get("MemTotal", 0) * 1024,
        available=kilobytes.get("MemAvailable", 0) * 1024,
        limit=allowed.memory,
        limit_left=allowed.memory_left,
        parameters=torch.get("parameters", {}),
    )


def training_bytes(recipe: str, parameters: int, batch: int) -> int:
    """What a training process takes on a CPU, from the measurements above."""
    return LIBRARY_BYTES + PARAMETER_BYTES * parameters + PICTURE_BYTES[recipe] * batch


def judge_memory(there: Memory) -> Finding:
    """Whether the recipes fit."""
    left, total = there.available, there.total
    if there.limit is not None and there.limit < there.total:
        left, total = min(left, there.limit_left or 0), there.limit
    found = f"{size(left)} free of {size(total)}"
    found += " that a cgroup allows" if total == there.limit else ""
    if not there.total:
        return Finding("ok", "memory", "/proc/meminfo does not say")
    if not there.parameters:
        return Finding("ok", "memory", found)
    need = {name: training_bytes(name, there.parameters[name], BATCH[name]) for name in PICTURE_BYTES}
    takes = "{} takes about {} on a CPU (batch {}, float32)"
    if left >= need["paper"]:
        return Finding("ok", "memory", f"{found}; {takes.format('paper', size(need['paper']), BATCH['paper'])}")
    if left < need["demo"]:
        follows = takes.format("even demo", size(need["demo"]), BATCH["demo"]) + ": the kernel would kill it"
        return Finding("failed", "memory", found, follows, "end other processes, or raise the container's limit")
    fixed = training_bytes("paper", there.parameters["paper"], 0)
    batch = (left - fixed) // PICTURE_BYTES["paper"]
    follows = takes.format("paper", size(need["paper"]), BATCH["paper"]) + ": the kernel would kill it"
    remedy = f"use --batch-size {2 ** int(math.log2(batch))}, or demo" if batch >= 1 else "use demo, or free memory"
    return Finding("warning", "memory", found, follows, remedy)


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """/dev/shm."""

    path: str
    trouble: str  # why nothing can be written there; empty if it can
    free: int = 0  # bytes


def find_shared_memory(path: Path = Path("/dev/shm")) -> SharedMemory:
    """By a file without a name, which goes by itself."""
    if not path.is_dir():
        return SharedMemory(path=str(path), trouble="is not there")
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
            file.flush()
        room = os.statvfs(path)
    except OSError as error:
        return SharedMemory(path=str(path), trouble=f"cannot be written ({error.strerror})")
    return SharedMemory(path=str(path), trouble="", free=room.f_bavail * room.f_frsize)


def judge_shared_memory(there: SharedMemory, gpus: int = 0) -> Finding:
    """gpus: how many train together. One process on its own needs none."""
    mount = "mount -t tmpfs tmpfs /dev/shm; in Docker, --shm-size 1g"
    if there.trouble:
        found = f"{there.path} {there.trouble}"
        if gpus > 1:
            follows = "NCCL cannot connect the GPUs of this host"
            return Finding("failed", "shm", found, follows, f"{mount}; one GPU needs none", ("CUDA_VISIBLE_DEVICES=0",))
        follows = "one process trains without; pipeline.shard's workers, and several GPUs, do not start"
        return Finding("warning", "shm", found, follows, f"{mount}; or pipeline.shard --workers 1")
    found = f"{there.path}, {size(there.free)} free"
    if there.free < (NCCL_SHM_BYTES if gpus > 1 else SHM_BYTES):
        follows = f"NCCL may want up to {size(NCCL_SHM_BYTES)}" if gpus > 1 else "pipeline.shard's workers may fail"
        return Finding("warning", "shm", found, follows, mount)
    return Finding("ok", "shm", found)


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """How many files a process may have open."""

    soft: int
    hard: int


def find_descriptors() -> Descriptors:
    """The limits of this process, which its children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    return Descriptors(soft=sys.maxsize if soft == unlimited else soft, hard=sys.maxsize if hard == unlimited else hard)


def judge_descriptors(there: Descriptors) -> Finding:
    """The worker needs the soft limit; its HTTP server raises its own to the hard one."""
    found = f"{_count(there.soft)} open files, {_count(there.hard)} if raised"
    if there.soft < WORKER_FILES:
        follows = f"a worker may need {WORKER_FILES}, and fails when it cannot open one"
        remedy = f"ulimit -n {min(there.hard, 4096)}" if there.hard >= WORKER_FILES else "raise the hard limit (nofile)"
        return Finding("failed" if there.soft < LEAST_FILES else "warning", "files", found, follows, remedy)
    if there.hard < SERVER_FILES:
        follows = (
            f"the page, metrics and control serve {CONNECTIONS} connections with {SERVER_FILES}; others have to wait"
        )
        return Finding(
            "warning", "files", found, follows, "raise the hard limit (nofile in limits.conf, --ulimit in Docker)"
        )
    return Finding("ok", "files", found)


def _count(number: int) -> str:
    return "unlimited" if number == sys.maxsize else f"{number:,}"


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the page, metrics and control are to be served."""

    host: str
    port: int
    troubles: dict[int, str]  # why a port cannot be had
    free: int | None = None  # the next that can, where some cannot


def find_ports(host: str, port: int, count: int = 1) -> Ports:
    """count: one for each process of this host, from `port` on; each is let go at once."""
    wanted = range(port, port + count) if port else (0,)
    troubles = {each: reason for each in wanted if (reason := _refused(host, each))}
    free = None
    if troubles:
        starts = range(max(port, 1023) + 1, min(port + 100, 65535) - count + 1)
        free = next((s for s in starts if not any(_refused(host, each) for each in range(s, s + count))), None)
    return Ports(host=host, port=port, troubles=troubles, free=free)


def _refused(host: str, port: int) -> str:
    try:
        listen(host, port).close()
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno and cause.errno > 0:  # negative: a name that is not found
            return os.strerror(cause.errno)
        return getattr(cause, "strerror", None) or str(cause)
    return ""


def judge_ports(there: Ports) -> Finding:
    """A port that is taken ends a start."""
    if not there.troubles:
        found = f"{there.host} port {there.port} is free" if there.port else f"{there.host}, any free port"
        return Finding("ok", "port", found)
    port, reason = next(iter(there.troubles.items()))
    found = f"{there.host} port {port} cannot be used ({reason})"
    follows = "service.train does not start; whoever has the port may be another run"
    if there.free is None:
        flags = ("--host 127.0.0.1",) if there.host != "127.0.0.1" else ()
        remedy = "use --host 127.0.0.1, or another address of this machine"
        return Finding("failed", "port", found, "service.train does not start", remedy, flags)
    return Finding("failed", "port", found, follows, f"use --port {there.free}", (f"--port {there.free}",))


def judge_python(version: tuple[int, ...], executable: str) -> Finding:
    """version: as sys.version_info has it."""
    found = f"{'.'.join(map(str, version[:3]))}, {executable}"
    if version[:2] < OLDEST_PYTHON:
        return Finding("failed", "python", found, "3.11 or newer is needed", "make demo PYTHON=python3.11")
    return Finding("ok", "python", found)
