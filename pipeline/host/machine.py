"""Which type of machine this is: what was measured on one holds on others of its type."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.host.cpus import usable_cores

CPUINFO: Final = Path("/proc/cpuinfo")
_GIB: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how fast pictures are prepared, as far as a name tells."""

    processor: str
    cores: int  # for this process
    gpu: str = ""  # empty without one
    memory_gib: int  # a power of two: what is left of the installed memory differs between kernels

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return ", ".join(part for part in (self.processor, cores, self.gpu, f"{self.memory_gib} GiB") if part)


def this_machine(gpu: str = "") -> Machine:
    """The machine that this process runs on. gpu: its GPU's name, which only torch knows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(processor=processor_name(), cores=usable_cores(), gpu=gpu, memory_gib=memory_class(memory))


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the kernel has it; the architecture's where it has none, as on ARM."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in lines if key.strip() == "model name"]
    return names[0] if names and names[0] else platform.machine()


def memory_class(size: int) -> int:
    """The power of two of GiB that is nearest to so many bytes, at least 1."""
    return max((2**power for power in range(20)), key=lambda gib: -abs(gib * _GIB - size))
