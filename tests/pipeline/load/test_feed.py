"""What DALI's graph is fed: the files as they are, checked by threads; and a batch's columns as one piece of memory."""

import threading
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from pictures import write_tree
from pipeline.load import feed
from pipeline.load.batch_loader import BatchLoader, graph_inputs
from pipeline.load.config import DataConfig
from pipeline.load.feed import graph_batches
from pipeline.load.inputs import ALIGNMENT, SampleInputs, copied_at_once, pack, packed_bytes, unpack, validation_inputs
from pipeline.load.storage import Location, SampleStore
from pipeline.shard import ShardOptions, shard

SAMPLES = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    root = tmp_path_factory.mktemp("feed")
    source = write_tree(root, {"train": {"a": SAMPLES // 2, "b": SAMPLES // 2}}, 300, 260)
    assert shard(ShardOptions(source=source, out=str(root / "shards"), workers=1, shard_samples=16)) == 0
    return SampleStore(root / "shards", BatchLoader(DataConfig(shards=root / "shards")).dataset, "train")


def rows_of(store: SampleStore, size: int) -> Iterator[SampleInputs]:
    """All samples in order, `size` a batch; the last batch may be shorter."""
    for first in range(0, len(store), size):
        yield validation_inputs(store, 32, None, np.arange(first, min(first + size, len(store))))


class Graph:
    """In the place of DALI's: gives what it is fed."""

    def __init__(self, feed):
        self.feed = feed

    def run(self):
        return (self.feed()[0],)


class Fails(Graph):
    """Fails at a batch with the bytes of one of these locations, two batches after it was fed, as DALI's queue does."""

    def __init__(self, feed, bad: list[bytes]):
        super().__init__(feed)
        self.bad, self.fed = bad, []

    def run(self):
        while len(self.fed) < 3:
            try:
                self.fed.append(self.feed()[0])
            except StopIteration:
                break
        if not self.fed:
            raise StopIteration
        files = self.fed.pop(0)
        if any(np.asarray(file).tobytes() in self.bad for file in files):
            raise RuntimeError("cannot decode")
        return (files,)


class Replaced:
    """Puts the next sound samples in the place of damaged ones, and notes where those lie."""

    def __init__(self, store: SampleStore):
        self.store, self.found = store, list[Location]()

    def __call__(self, rows, damaged, is_usable):
        self.found += [rows.locations[row] for row in damaged]
        locations = list(rows.locations)
        for row in damaged:
            locations[row] = self.store.locate(np.array([self.store.replacement(locations[row], is_usable)]))[0]
        return rows._replace(locations=locations)


def fed(store: SampleStore, size: int, replace: Replaced, build: Any = Graph) -> list[tuple[list[bytes], SampleInputs]]:
    batches = graph_batches(store, rows_of(store, size), replace, partial(graph_inputs, store), build)
    return [([np.asarray(file).tobytes() for file in files], rows) for files, rows in batches]


@pytest.mark.parametrize("size", [1, 7, 40, 64])
def test_a_graph_is_fed_the_files_in_order(store: SampleStore, size: int) -> None:
    replace = Replaced(store)
    batches = fed(store, size, replace)
    assert [len(files) for files, _ in batches] == [len(rows.labels) for rows in rows_of(store, size)]
    expected = [file.tobytes() for file in store.read(store.locate(np.arange(SAMPLES)))]
    assert [file for files, _ in batches for file in files] == expected
    assert replace.found == []


@pytest.mark.parametrize("size", [3, 40])
def test_damaged_samples_are_found_by_other_threads(
    store: SampleStore, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    locations = store.locate(np.arange(SAMPLES))
    damaged, threads = [locations[row] for row in (0, 13, 14, SAMPLES - 1)], set[str]()
    read_intact = store.read_intact

    def read(location: Location):
        threads.add(threading.current_thread().name)
        if location in damaged:
            raise ValueError("damaged")
        return read_intact(location)

    monkeypatch.setattr(store, "read_intact", read)
    replace = Replaced(store)
    rows = [rows for _, rows in fed(store, size, replace)]
    assert replace.found == damaged
    threads.discard(threading.current_thread().name)  # which looks for what may stand in
    assert threads and all(name.startswith("checks") for name in threads)
    kept = [location for batch in rows for location in batch.locations]
    assert not set(kept) & set(damaged) and len(kept) == SAMPLES


def test_samples_without_damage_cost_the_loop_no_check(store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, read_intact = set[int](), store.read_intact
    monkeypatch.setattr(store, "read_intact", lambda at: threads.add(threading.get_ident()) or read_intact(at))
    fed(store, 8, Replaced(store))
    assert threads and threading.get_ident() not in threads


def test_a_sample_that_a_graph_cannot_decode_is_replaced_in_batches_checked_before(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes again in a batch that the threads had checked before it was found."""
    bad = store.locate(np.array([5]))[0]
    is_picture = feed._is_picture
    monkeypatch.setattr(feed, "_is_picture", lambda s, at, whole: (at != bad or not whole) and is_picture(s, at, whole))
    spans = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 5, 10], [11, 12, 13, 14], [5, 15, 16, 17]]
    rows = (validation_inputs(store, 32, None, np.array(span)) for span in spans)
    replace, built = Replaced(store), []

    def build(take) -> Any:
        built.append(Fails(take, [store.read([bad])[0].tobytes()]))
        return built[-1]

    batches = list(graph_batches(store, rows, replace, partial(graph_inputs, store), build))
    assert replace.found == [bad] * 3 and len(built) == 2
    assert [len(given.locations) for _, given in batches] == [4] * 5
    assert batches[0][1].locations == store.locate(np.array(spans[0]))
    assert batches[2][1].locations == store.locate(np.array([8, 9, 6, 10]))


def test_whoever_leaves_ends_the_threads(store: SampleStore) -> None:
    def checks() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("checks")]

    build: Any = Graph
    batches = graph_batches(store, rows_of(store, 4), Replaced(store), partial(graph_inputs, store), build)
    next(batches)
    mine = checks()
    assert mine
    batches.close()
    for thread in mine:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in mine)


@pytest.mark.parametrize("count", [1, 3, 128])
def test_columns_packed_are_the_columns(count: int) -> None:
    """Of any type and length, read-only too; each begins where vector instructions can load it."""
    draw = np.random.default_rng(count)
    columns = (
        draw.normal(size=(count, 3)).astype(np.float32),
        draw.normal(size=count).astype(np.float32),
        draw.integers(-(2**62), 2**62, count),
        draw.integers(0, 2, count).astype(np.int32),
        np.empty((count, 0), np.float32),
        draw.normal(size=(2 * count, 3)).astype(np.float16)[::2],
    )
    columns[2].flags.writeable = False
    memory = np.full(packed_bytes(columns) + ALIGNMENT, 0xAA, np.uint8)
    pack(columns, memory)
    assert (memory[packed_bytes(columns) :] == 0xAA).all()
    found = unpack(torch.from_numpy(memory[: packed_bytes(columns)]), columns)
    assert len(found) == len(columns)
    for column, view in zip(columns, found, strict=True):
        np.testing.assert_array_equal(view.numpy(), column, strict=True)
        assert (view.data_ptr() - memory.ctypes.data) % ALIGNMENT == 0 or not column.size
    for column, copy in zip(columns, copied_at_once(columns, torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(copy.numpy(), column, strict=True)


def test_packed_columns_are_one_copy(store: SampleStore) -> None:
    """Of a batch's columns, as the loader has them: views of one storage."""
    rows = next(islice(rows_of(store, 7), 1, None))
    columns = rows.offset, rows.scale, rows.labels, rows.positions, rows.weights
    copies = copied_at_once(columns, torch.device("cpu"))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert copies[0].untyped_storage().nbytes() == packed_bytes(columns) < 36 * 7 + 5 * ALIGNMENT


def test_pack_takes_columns_of_real_batches(store: SampleStore) -> None:
    """The same values as the loader hands over on a CPU."""
    loader = BatchLoader(DataConfig(shards=store.root), seed=2)
    batch = next(loader.train(9, first=35))  # across the end of the epoch
    columns = tuple(np.asarray(column) for column in batch[1:])
    for copy, column in zip(copied_at_once(columns, torch.device("cpu")), batch[1:], strict=True):
        assert torch.equal(copy, column) and copy.dtype == column.dtype
