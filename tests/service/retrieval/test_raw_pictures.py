"""Pictures beside the queries, from raw shards as from JPEGs; an index of one is an index of the other."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pictures import decoded, write_tree
from pipeline.command import InputError
from pipeline.manifest import load_dataset, pictures_sha256
from pipeline.shard import ShardOptions, shard
from service.retrieval.features import Index, IndexFacts
from service.retrieve import open_shards


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stores")
    source = write_tree(root / "source", {"train": {"a": 2, "b": 2}})
    given: dict[str, Any] = {"source": source, "size": 32, "workers": 1}
    for name, changes in {"jpeg": {}, "raw": {"store": "raw"}, "other": {"store": "raw", "quality": 50}}.items():
        assert shard(ShardOptions(out=str(root / name), **given, **cast(Any, changes))) == 0
    return {name: root / name for name in ("jpeg", "raw", "other")}


def index_of(shards: Path) -> Index:
    """An index of the training pictures, without its rows."""
    dataset = load_dataset(shards)
    facts = IndexFacts(
        split="train",
        samples=4,
        width=1,
        shards=str(shards),
        samples_sha256=dataset.files["train/samples.npy"],
        dataset_sha256=pictures_sha256(dataset),
        checkpoint="",
        checkpoint_sha256="",
        device="cpu",
    )
    return Index(shards, facts, cast(Any, None))


@pytest.mark.parametrize(("indexed", "shown"), [("jpeg", "raw"), ("raw", "jpeg"), ("raw", "raw")])
def test_an_index_shows_the_pictures_of_either_store(stores: dict[str, Path], indexed: str, shown: str) -> None:
    pictures = open_shards(index_of(stores[indexed]), stores[shown])
    jpegs = open_shards(index_of(stores["jpeg"]), None)
    for row in range(4):
        found, expected = pictures.picture(row), jpegs.picture(row)
        assert isinstance(expected, bytes)
        pixels = decoded(found) if isinstance(found, bytes) else found
        np.testing.assert_array_equal(pixels, decoded(expected))


def test_other_pictures_are_refused(stores: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="has another train than"):
        open_shards(index_of(stores["jpeg"]), stores["other"])
