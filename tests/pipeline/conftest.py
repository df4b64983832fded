"""What tests of sharding and verifying share: a source, the data set that nobody disturbed, an object store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from object_store import s3_bucket
from pictures import tree_bytes, write_tree
from pipeline.shard import shard
from sharding import SAMPLES, options


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures large enough that a run can be caught at work."""
    return write_tree(tmp_path_factory.mktemp("source"), {"train": {"a": SAMPLES // 2, "b": SAMPLES // 2}}, 640, 480)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the data set that one process makes of `source` without being interrupted."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert shard(options(source, out)) == 0
    return tree_bytes(out)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    with s3_bucket() as url:
        yield url
