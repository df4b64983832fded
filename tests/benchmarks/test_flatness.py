"""The verdict of benchmarks/endurance.py: what stays, settles or swings is flat; what rises is not."""

import sys

import numpy as np
import pytest

from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # which no package holds

from endurance import MIB, Sample, growth

BATCHES = np.arange(1, 401) * 500
STEADY = np.full(400, 300.0)  # MiB


def faults(memory: np.ndarray = STEADY, descriptors: int = 0, threads: int = 0) -> list[str]:
    """What is found in a run of 200,000 batches that ends with so many more descriptors and threads."""
    late = BATCHES > 100_000
    columns = (BATCHES, BATCHES / 100, memory * MIB, memory * MIB, 7 + descriptors * late, 4 + threads * late)
    return list(growth(np.array(list(map(Sample._make, zip(*columns, strict=True))), np.float64)))


@pytest.mark.parametrize(
    "memory",
    [
        STEADY,
        STEADY + 30 * np.minimum(BATCHES / 15_000, 1),  # buffers that are made in the beginning
        STEADY + 3 * (np.arange(400) % 2),
        STEADY - 20 * BATCHES / 200_000,
    ],
    ids=["steady", "settles", "swings", "falls"],
)
def test_memory_that_does_not_grow_is_flat(memory: np.ndarray):
    assert faults(memory) == []


def test_a_hundred_bytes_a_batch_are_found():
    found = faults(STEADY + BATCHES * 100 / MIB)
    assert [each.split(" grew")[0] for each in found] == ["resident memory", "own memory"]


def test_a_descriptor_or_a_thread_more_is_found():
    assert faults(descriptors=1, threads=2) == [
        "descriptors grew from 7 to 8, expected no more",
        "threads grew from 4 to 6, expected no more",
    ]
