"""What is asked for before it is needed, and how far ahead; and that blocks are asked for whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from odd_store import odd_url, ruled_by
from pictures import write_tree
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig, shuffle_of
from pipeline.load.inputs import SampleInputs, validation_inputs
from pipeline.load.order import Shuffle, epoch_order, samples_at
from pipeline.load.read_ahead import ask_for_blocks, ask_for_samples, asked_ahead
from pipeline.load.storage import Location, SampleStore
from pipeline.manifest import load_dataset
from pipeline.reading.mapping import _steps
from pipeline.shard import shard
from sharding import options

BLOCK = Shuffle(kind="block", block_samples=8, window_blocks=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 training pictures in shards of 40."""
    folder = tmp_path_factory.mktemp("ahead")
    source = write_tree(folder / "source", {"train": {"a": 60, "b": 60}, "val": {"a": 10, "b": 10}}, 80, 80)
    assert shard(options(source, folder / "set", size=64, shard_samples=40, val_fraction=0.0)) == 0
    return folder / "set"


class Asked(SampleStore):
    """Notes what is asked for."""

    def __init__(self, root: Path):
        super().__init__(root, load_dataset(root), "train")
        self.asked: list[list[Location]] = []

    def prefetch(self, locations) -> None:
        self.asked.append(list(locations))
        super().prefetch(locations)


def batches(store: SampleStore, order: np.ndarray, size: int) -> Iterator[SampleInputs]:
    for first in range(0, len(order), size):
        positions = np.arange(first, min(first + size, len(order)))
        yield validation_inputs(store, 0, None, order[positions])._replace(positions=positions)


def test_so_many_bytes_are_asked_for_ahead_but_the_first_batch_does_not_wait_for_all(root: Path) -> None:
    store = Asked(root)
    most_bytes = 10 * 4 * int(store.table["size"].max())
    ahead = asked_ahead(batches(store, np.arange(120), 4), ask_for_samples(store), batches=2, most_bytes=most_bytes)
    depth, seen = [], []
    for number, rows in enumerate(ahead):
        depth.append(len(store.asked) - number)
        seen += rows.locations
    assert depth[0] == 3 and 10 <= max(depth) <= 14 and depth[-1] == 1
    assert seen == store.locate(np.arange(120)) == [each for batch in store.asked for each in batch]


def test_blocks_are_asked_for_whole_and_before_their_samples(root: Path) -> None:
    store = Asked(root)
    order, ask = epoch_order(5, 0, 120, BLOCK), ask_for_blocks(store, 5, BLOCK)
    place = {location: sample for sample, location in enumerate(store.locate(np.arange(120)))}
    for rows in batches(store, order, 20):
        ask(rows)
        asked = {place[location] for each in store.asked for location in each}
        assert {sample // 8 for sample in asked} == {sample // 8 for sample in order[: rows.positions[-1] + 1]}
        assert {place[location] for location in rows.locations} <= asked
    blocks = [[place[location] for location in each] for each in store.asked if len(each) == 8]
    assert sorted(block[0] for block in blocks) == list(range(0, 120, 8))
    assert all(block == list(range(block[0], block[0] + 8)) for block in blocks)


def test_a_resume_asks_for_the_blocks_that_are_under_way(root: Path) -> None:
    store = Asked(root)
    order = epoch_order(5, 0, 120, BLOCK)
    rows = validation_inputs(store, 0, None, order[60:64])._replace(positions=np.arange(60, 64))
    ask_for_blocks(store, 5, BLOCK)(rows)
    assert store.asked[0] == rows.locations  # what is waited for comes first
    asked = {location for each in store.asked for location in each}
    assert set(store.locate(order[60:64])) <= asked and len(asked) < 120


def test_a_long_range_is_advised_on_in_steps() -> None:
    assert list(_steps(4096, 300_000)) == [(4096, 131_072), (135_168, 131_072), (266_240, 37_856)]


def test_batches_of_a_store_and_of_a_block_shuffle_are_those_of_the_disk(root: Path, tmp_path: Path) -> None:
    """Every rank and any start gives the same global batch; blocks come by few requests."""
    options = {"crop": 60, "shuffle": "block", "block_samples": 20, "window_blocks": 2}
    near = DataConfig(shards=root, **options)
    far = DataConfig(shards=odd_url(root), cache=tmp_path, **options)
    with ruled_by() as requests:
        whole, remote = (BatchLoader(config, seed=3).train(24, 48) for config in (near, far))
        ranks = [BatchLoader(near, seed=3, rank=rank, world_size=2).train(24, 72) for rank in range(2)]
        labels = SampleStore(root, load_dataset(root), "train").labels
        for step in range(6):
            batch, other = next(whole), next(remote)
            assert np.array_equal(batch.pictures, other.pictures) and np.array_equal(batch.labels, other.labels)
            samples = samples_at(3, 120, 48 + 24 * step, 24, shuffle_of(near))
            assert batch.labels.tolist() == labels[samples].tolist()
            if step:
                parts = [next(rank) for rank in ranks]
                assert np.array_equal(np.concatenate([part.pictures for part in parts]), batch.pictures)
        assert len(requests) < 60
