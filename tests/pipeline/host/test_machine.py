"""Machines of one type have one description."""

import os
import platform
from pathlib import Path

import pytest

from pipeline.host.machine import memory_class, processor_name, this_machine


@pytest.mark.parametrize(("gib", "expected"), [(0.2, 1), (1, 1), (15.2, 16), (15.9, 16), (125.4, 128), (1007, 1024)])
def test_memory_is_what_was_installed_though_kernels_keep_some(gib: float, expected: int) -> None:
    assert memory_class(round(gib * 2**30)) == expected


def test_the_processors_name_is_the_kernels_and_else_the_architectures(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n")
    assert processor_name(cpuinfo) == "A Processor @ 2 GHz"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 100\n")
    assert processor_name(cpuinfo) == processor_name(tmp_path / "none") == platform.machine()


def test_this_machine_is_described_in_words() -> None:
    machine = this_machine("A GPU")
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    assert f"{machine.processor}, {machine.cores} core" in str(machine) and ", A GPU, " in str(machine)
    assert machine == this_machine("A GPU") != this_machine()
