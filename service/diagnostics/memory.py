"""Checks of memory: what there is, what the recipes take, and /dev/shm."""

import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from service.diagnostics.cgroup import Limits, limits
from service.diagnostics.finding import Finding, size

# A training process on a CPU, float32: peaks of resident memory that service.train had, not compiled, with batches of
# 32 and 128 (paper: 2,497 and 4,113 MiB) and of 16 and 64 (demo on 112-pixel crops, which bounds its 80: 559 and 788
# MiB), torch 2.13 and DALI 2.4. What does not grow with the batch is the libraries' and 28 bytes a parameter: weight,
# momentum and gradient, the new weight and momentum before they are taken, and the copy of both that is saved.
LIBRARY_BYTES: Final = 420 * 2**20
PARAMETER_BYTES: Final = 28
PICTURE_BYTES: Final = {"paper": 17 * 2**20, "demo": 5 * 2**20}
BATCH: Final = {"paper": 128, "demo": 16}
SHM_BYTES: Final = 10**6  # of locks and queues between processes
NCCL_SHM_BYTES: Final = 10**9  # NCCL's documentation: docker run --shm-size=1g


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of the machine's memory, and of what cgroups allow."""

    total: int
    available: int
    limit: int | None = None
    limit_left: int | None = None
    parameters: dict[str, int] = field(default_factory=dict)  # of the networks, by recipe


def find_memory(torch: dict[str, Any], allowed: Limits | None = None, meminfo: Path = Path("/proc/meminfo")) -> Memory:
    """torch: what probes.probe_torch returned; allowed: the cgroups' limits, if known already."""
    try:
        pairs = [line.split()[:2] for line in meminfo.read_text(encoding="utf-8").splitlines()]
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


def judge_memory(memory: Memory) -> Finding:
    """Whether the recipes fit."""
    left, total = memory.available, memory.total
    if memory.limit is not None and memory.limit < memory.total:
        left, total = min(left, memory.limit_left or 0), memory.limit
    found = f"{size(left)} free of {size(total)}"
    found += " that a cgroup allows" if total == memory.limit else ""
    if not memory.total:
        return Finding("ok", "memory", "/proc/meminfo does not say")
    if not memory.parameters:
        return Finding("ok", "memory", found)
    need = {name: training_bytes(name, memory.parameters[name], BATCH[name]) for name in PICTURE_BYTES}
    takes = "{} takes about {} on a CPU (batch {}, float32)"
    if left >= need["paper"]:
        return Finding("ok", "memory", f"{found}; {takes.format('paper', size(need['paper']), BATCH['paper'])}")
    if left < need["demo"]:
        follows = takes.format("even demo", size(need["demo"]), BATCH["demo"]) + ": the kernel would kill it"
        return Finding("failed", "memory", found, follows, "end other processes, or raise the container's limit")
    fixed = training_bytes("paper", memory.parameters["paper"], 0)
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
    """Tried with a temporary file without a name, which vanishes by itself."""
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


def judge_shared_memory(shared_memory: SharedMemory, gpus: int = 0) -> Finding:
    """gpus: how many train together. One process on its own needs none."""
    mount = "mount -t tmpfs tmpfs /dev/shm; in Docker, --shm-size 1g"
    if shared_memory.trouble:
        found = f"{shared_memory.path} {shared_memory.trouble}"
        if gpus > 1:
            follows = "NCCL cannot connect the GPUs of this host"
            return Finding("failed", "shm", found, follows, f"{mount}; one GPU needs none", ("CUDA_VISIBLE_DEVICES=0",))
        follows = "one process trains without; pipeline.shard's workers, and several GPUs, do not start"
        return Finding("warning", "shm", found, follows, f"{mount}; or pipeline.shard --workers 1")
    found = f"{shared_memory.path}, {size(shared_memory.free)} free"
    if shared_memory.free < (NCCL_SHM_BYTES if gpus > 1 else SHM_BYTES):
        follows = f"NCCL may want up to {size(NCCL_SHM_BYTES)}" if gpus > 1 else "pipeline.shard's workers may fail"
        return Finding("warning", "shm", found, follows, mount)
    return Finding("ok", "shm", found)
