"""The bytes of shards: mapped without a descriptor for each, and read where they cannot be mapped."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from failing_calls import COMPILER, WHY_NOT, Failing, environment, library
from pictures import write_tree
from pipeline.command import InputError
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset
from pipeline.reading.mapping import open_shards
from pipeline.shard import ShardOptions, shard

SHARDS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many shards as pictures."""
    folder = tmp_path_factory.mktemp("many")
    source = write_tree(folder / "source", {"train": {"a": SHARDS}, "val": {"a": 1}})
    assert shard(ShardOptions(source=source, out=str(folder / "out"), size=32, workers=1, shard_samples=1)) == 0
    return folder / "out"


def mapped(root: Path) -> list[str]:
    """Lines about files below a folder that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{root}/" in line]


def jpegs(root: Path, split: str = "train") -> list[bytes]:
    """The pictures in the order of the table, read by its offsets from files that are opened as usual."""
    shards = load_dataset(root).splits[split].shards
    table = np.load(root / split / "samples.npy")
    names, offsets, sizes = (table[name].tolist() for name in ("shard", "offset", "size"))
    return [
        (root / split / shards[shard].name).read_bytes()[offset : offset + size]
        for shard, offset, size in zip(names, offsets, sizes, strict=True)
    ]


def test_bytes_outlive_their_store_and_then_nothing_stays_mapped(root: Path) -> None:
    store = SampleStore(root, load_dataset(root), "train")
    views = store.read(store.locate(np.arange(len(store))))
    del store
    gc.collect()
    assert [view.tobytes() for view in views] == jpegs(root)
    assert not any(view.flags.writeable for view in views)
    del views
    gc.collect()
    assert mapped(root) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: tar.unlink(), r"000003\.tar cannot be read \(No such file or directory\), expected a shard"),
        (lambda tar: tar.write_bytes(b""), r"000003\.tar has 0 bytes, expected 10240 by dataset\.json"),
        (lambda tar: tar.write_bytes(tar.read_bytes() + b"\0"), r"000003\.tar has 10241 bytes, expected 10240"),
    ],
    ids=["missing", "empty", "longer"],
)
def test_a_shard_that_is_not_as_it_was_written_is_named(root: Path, tmp_path: Path, damage, message: str) -> None:
    (tmp_path / "train").mkdir()
    shards = load_dataset(root).splits["train"].shards
    for each in shards:
        (tmp_path / "train" / each.name).write_bytes((root / "train" / each.name).read_bytes())
    damage(tmp_path / "train/000003.tar")
    with pytest.raises(InputError, match=message):
        open_shards(tmp_path, "train", shards)


READ = """
import os, resource, sys
from pathlib import Path
import numpy as np
from pipeline.command import InputError
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset

root, pictures, most, lowest = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3]), os.dup(0)
os.close(lowest)
dataset = load_dataset(root)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
before = len(os.listdir("/proc/self/fd"))
store, val = (SampleStore(root, dataset, split) for split in ("train", "val"))
locations = store.locate(np.arange(len(store)))
for each in range(2):
    store.prefetch(locations)
    assert b"".join(data.tobytes() for data in store.read(locations)) == pictures
assert all(map(store.is_intact, locations)) and store.keys().tolist() == list(range(len(store)))
assert len(os.listdir("/proc/self/fd")) <= before + most, os.listdir("/proc/self/fd")
if "FAILING_CALLS" in os.environ:  # then shards are read
    os.environ["FAILING_CALLS"] += f"\\npread 5 1 {root}/train"
    assert [store.is_intact(each) for each in locations[:2]] == [False, True]  # an error of the disk, once
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, 32))
try:
    SampleStore(root, dataset, "train")
except InputError as error:
    print(error)
"""


SHORTENED = """
import os, sys
from pathlib import Path
import numpy as np
from pipeline.load.storage import SampleStore
from pipeline.manifest import load_dataset

root = Path(sys.argv[1])
store = SampleStore(root, load_dataset(root), "train")
tar = root / "train/000000.tar"
locations = store.locate(np.arange(len(store)))
pages = tar.stat().st_size // 2 // 4096  # those that stay
os.truncate(tar, 4096 * pages)
found = [store.is_intact(each) for each in locations]
assert found == [start + size <= 4096 * pages for _, start, size, _ in locations] and any(found) and not all(found)
damaged = locations[found.index(False)]
assert store.replacement(damaged, store.is_intact) == found.index(True)
"""


def test_a_shard_that_is_shortened_while_it_is_read_is_damaged(tmp_path: Path) -> None:
    """Whoever touches a page beyond the end is killed (SIGBUS), so another process does."""
    source = write_tree(tmp_path / "source", {"train": {"a": 12}, "val": {"a": 1}}, 90, 80)
    assert shard(ShardOptions(source=source, out=str(tmp_path / "out"), size=64, workers=1)) == 0
    done = subprocess.run(
        [sys.executable, "-c", SHORTENED, str(tmp_path / "out")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


def read_all(root: Path, most: int, variables: dict[str, str] | None = None) -> tuple[str, str]:
    """Read all pictures twice by a process that may open 32 files and opens `most` at most; its output and errors."""
    command = [sys.executable, "-c", READ, str(root), b"".join(jpegs(root)).hex(), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_any_number_of_shards_is_read_with_few_open_files(root: Path) -> None:
    """Two, of the splits' sample tables; and where there is not even one left, the limit is named."""
    output, errors = read_all(root, most=2)
    assert not errors
    assert "(Too many open files)" in output and "raise the limit of open files, now" in output


@pytest.mark.skipif(COMPILER is None, reason=WHY_NOT)
@pytest.mark.parametrize("error", ["ENODEV", "ENOSYS", "ENOMEM"])
def test_shards_that_cannot_be_mapped_are_read(root: Path, tmp_path: Path, error: str) -> None:
    """Nor can the sample tables; said once of both splits. A quarter of the files that may be open are shards."""
    _, errors = read_all(root, 32 // 4, environment(library(tmp_path), Failing("mmap", error, root)))
    (line,) = errors.splitlines()
    assert line.startswith(f"notice: {root} cannot be mapped into memory (") and line.endswith("read, more slowly")


def test_shards_lie_where_large_pages_begin(root: Path) -> None:
    """Reading is a third slower elsewhere."""
    store = SampleStore(root, load_dataset(root), "train")
    starts = [int(line.partition("-")[0], 16) for line in mapped(root) if line.endswith(".tar")]
    assert len(starts) == SHARDS == len(store) and not any(start % 2**21 for start in starts)
