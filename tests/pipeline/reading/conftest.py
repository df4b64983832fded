from pathlib import Path

import pytest

from pictures import write_tree
from pipeline.shard import shard
from sharding import options


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 training and 40 validation pictures of 32 pixels a side, in shards of a few dozen."""
    folder = tmp_path_factory.mktemp("reading")
    source = write_tree(folder / "source", {"train": {"a": 75, "b": 75}, "val": {"a": 20, "b": 20}}, 40, 40)
    assert shard(options(source, folder / "set", shard_samples=40, val_fraction=0.0)) == 0
    return folder / "set"
