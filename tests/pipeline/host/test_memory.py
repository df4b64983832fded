"""Freed memory is kept for the next step, and given back when it is no more than holes."""

import subprocess
import sys

import pytest

from pipeline.host import memory
from pipeline.host.memory import HolesInHeap, resident_bytes

# Blocks of half a megabyte with something small behind each, that stays: what is freed between them is of no use.
HOLES = """
import torch
from pipeline.host.memory import HolesInHeap, keep_freed_memory, resident_bytes

keep_freed_memory()
heap, stay = HolesInHeap(), []
for _ in range(10):
    heap.after_step()
settled = resident_bytes()
blocks = []
for _ in range(400):
    blocks.append(torch.ones(2**17))
    stay.append(torch.ones(64))
blocks.clear()
full = resident_bytes()
heap.after_step()
print(settled, full, resident_bytes(), all(bool(each.all()) for each in stay))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc and /proc")
def test_holes_are_given_back_and_what_is_in_use_stays() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=60, check=True)
    settled, full, after = map(int, done.stdout.split()[:3])
    assert full - settled > 150 * 2**20 and after - settled < 20 * 2**20
    assert done.stdout.split()[3] == "True"


def test_nothing_is_given_back_while_a_step_needs_what_it_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given back has to be taken again, which costs a fifth of a step."""
    trims: list[int] = []
    heap, gib = HolesInHeap(), 2**30
    heap._trim = lambda pad: trims.append(pad)
    found = [gib] * 20 + [int(1.2 * gib)] * 20 + [int(1.3 * gib)] + [gib] * 20 + [2 * gib]
    sizes = iter(found)
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes))
    for number in range(len(found)):
        heap.after_step()
        assert len(trims) == (number >= 40) + (number >= 61)


def test_resident_memory_is_what_the_kernel_says() -> None:
    with open("/proc/self/status") as status:
        (said,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
    assert resident_bytes() == pytest.approx(said, rel=0.05)
