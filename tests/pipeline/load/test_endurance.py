"""A loader that is used for long stays as it is, and one that is left in any way leaves no hang: in real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pictures import write_tree
from pipeline.shard import ShardOptions, shard

PATIENCE = 240.0  # seconds; only a failing test waits so long

BEGIN = """
import os, sys, threading
from itertools import islice
from pathlib import Path
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig

shards = Path(sys.argv[1])
loader = BatchLoader(DataConfig(shards=shards, crop=28, threads=2))

def count(folder):
    return len(os.listdir(f"/proc/self/{folder}"))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty squares of 32 pixels."""
    root = tmp_path_factory.mktemp("endurance")
    source = write_tree(root / "source", {"train": {"a": 30, "b": 30}}, 40, 40)
    assert shard(ShardOptions(source=source, out=str(root / "shards"), size=32, workers=1)) == 0
    return root / "shards"


def run(shards: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A process that makes `loader`, and then does what `code` says; one that hangs ends the test."""
    command = [sys.executable, "-c", BEGIN + code, str(shards)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def long_run(shards: Path) -> dict[str, list[list[int]]]:
    """Memory, descriptors and threads: before any batch, along 3,000, and after each ten iterators left in the middle.

    What a loader reads ahead, and what it draws at a time, is bounded by numbers that small pictures take long to fill.
    """
    done = run(
        shards,
        """
import gc, json, time
from dataclasses import replace
from pipeline.load import inputs

inputs.BLOCK = 1 << 10
loader.config = replace(loader.config, read_ahead=0)
deadline = time.monotonic() + 30

def look():
    resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return resident, count("fd"), count("task")

before = look()
batches, along = loader.train(8), []
for _ in range(3):
    for _ in islice(batches, 1000):
        pass
    along.append(look())
del batches, _

left = []
for _ in range(4):
    for _ in range(10):
        for batch in islice(loader.train(8), 3):
            pass
    del batch
    gc.collect()
    while (count("fd") > before[1] or count("task") > before[2]) and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that has been told to end does so soon, and then closes its files
    left.append(look())
print(json.dumps({"before": [before], "along": along, "left": left}))
""",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_memory_descriptors_and_threads_are_flat_over_thousands_of_batches(long_run: dict[str, list[list[int]]]):
    first, _, last = long_run["along"]
    # 2,000 batches of 8 crops are 38 MB. What an allocator keeps back settles later than after the first 1,000.
    assert last[0] - first[0] < 4 * 2**20
    assert last[1:] == first[1:]


@pytest.mark.slow
def test_iterators_left_in_the_middle_leave_nothing_behind(long_run: dict[str, list[list[int]]]):
    [(_, *before)] = long_run["before"]
    assert [each[1:] for each in long_run["left"]] == [before] * 4


def test_an_exception_in_the_consumer_ends_the_process(shards: Path):
    done = run(
        shards,
        """
for number, batch in enumerate(loader.train(16)):
    if number == 20:
        raise RuntimeError("a consumer's own")
""",
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: a consumer's own")


def test_children_forked_in_the_middle_end_or_load_themselves_and_the_parent_goes_on(shards: Path):
    done = run(
        shards,
        """
import warnings
import torch

warnings.simplefilter("ignore")  # Python's own, that threads and forks mix badly

def in_child(act):
    child = os.fork()
    if child == 0:
        act()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def load_as_the_parent():
    theirs = loader.train(16)
    os._exit(0 if all(torch.equal(next(theirs).pictures, each) for each in mine) else 1)

batches = loader.train(16)
mine = [next(batches).pictures.clone() for _ in range(5)]
print(in_child(lambda: sys.exit(7)), in_child(lambda: os._exit(8)), in_child(load_as_the_parent))
print([next(batches) for _ in range(100)][-1].positions[-1].item())
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "8", "0", str(105 * 16 - 1)]
