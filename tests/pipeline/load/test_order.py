"""Order and draws: golden bits, exact partition, independence of how a range is asked for."""

import numpy as np
import pytest

from pipeline.command import InputError
from pipeline.load.order import GLOBAL, Shuffle, blocks_needed, epoch_order, rank_slice, samples_at

BLOCK = Shuffle(kind="block", block_samples=16, window_blocks=8)
GOLDEN_GLOBAL = [228, 500, 627, 201, 550, 766, 759, 995]
GOLDEN_BLOCK = [640, 651, 644, 675, 684, 641, 804, 674]


def test_every_epoch_visits_every_sample_once_and_differently() -> None:
    orders = [epoch_order(5, epoch, 1000) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


@pytest.mark.parametrize(("first", "count"), [(0, 7), (95, 10), (100, 100), (37, 450), (1234, 1)])
def test_positions_span_epochs_and_drop_nothing(first: int, count: int) -> None:
    expected = [epoch_order(9, p // 100, 100)[p % 100] for p in range(first, first + count)]
    assert samples_at(9, 100, first, count).tolist() == expected


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 6, 128, 129])
def test_ranks_partition_the_batch_evenly(batch_size: int, ranks: int) -> None:
    parts = [range(batch_size)[rank_slice(batch_size, rank, ranks)] for rank in range(ranks)]
    assert [i for part in parts for i in part] == list(range(batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("shuffle", "golden"), [(GLOBAL, GOLDEN_GLOBAL), (BLOCK, GOLDEN_BLOCK)], ids=["global", "block"]
)
def test_orders_are_the_same_for_ever(shuffle: Shuffle, golden: list[int]) -> None:
    assert epoch_order(5, 2, 1000, shuffle)[:8].tolist() == golden


@pytest.mark.parametrize("samples", [129, 1000, 1024, 5000])
def test_a_block_shuffle_visits_every_sample_once_and_differently(samples: int) -> None:
    orders = [epoch_order(5, epoch, samples, BLOCK) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(samples))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])


@pytest.mark.parametrize(("first", "count"), [(0, 7), (995, 10), (1000, 1000), (370, 4500), (12340, 1)])
def test_positions_of_a_block_shuffle_do_not_depend_on_how_they_are_asked_for(first: int, count: int) -> None:
    expected = [epoch_order(9, p // 1000, 1000, BLOCK)[p % 1000] for p in range(first, first + count)]
    assert samples_at(9, 1000, first, count, BLOCK).tolist() == expected


def test_a_window_that_holds_all_samples_is_the_global_shuffle() -> None:
    assert np.array_equal(epoch_order(1, 0, 128, BLOCK), epoch_order(1, 0, 128))
    assert not np.array_equal(epoch_order(1, 0, 129, BLOCK), epoch_order(1, 0, 129))


def test_few_blocks_are_needed_at_a_time() -> None:
    """How far samples are put off is random, and so is, a little, how many of them are."""
    order = epoch_order(3, 0, 5000, BLOCK)
    places = [np.flatnonzero(order // 16 == block) for block in range(5000 // 16 + 1)]
    assert max(place.max() - place.min() for place in places) < 1.25 * (BLOCK.window + 16)
    begun, ended = (np.sort([find(place) for place in places]) for find in (np.min, np.max))
    assert max(int((begun <= p).sum()) - int((ended < p).sum()) for p in range(5000)) < 1.25 * (BLOCK.window_blocks + 1)


def test_each_block_is_named_once_an_epoch_before_its_samples_are_needed() -> None:
    samples, named = 1000, list[tuple[int, int]]()
    for first in range(0, 2 * samples, 100):
        named += [(first // samples, start) for start, _ in blocks_needed(7, samples, first, first + 100, BLOCK)]
        needed = samples_at(7, samples, first, 100, BLOCK) // 16 * 16
        assert {(first // samples, start) for start in needed.tolist()} <= set(named)
    assert len(named) == len(set(named)) == 2 * 63


def test_blocks_of_a_range_do_not_depend_on_how_it_is_cut() -> None:
    whole = blocks_needed(7, 1000, 0, 2500, BLOCK)
    parts = [blocks_needed(7, 1000, first, min(first + 96, 2500), BLOCK) for first in range(0, 2500, 96)]
    assert whole == [block for part in parts for block in part]
    assert sorted(whole[:63]) == [(start, min(start + 16, 1000)) for start in range(0, 1000, 16)]


def test_blocks_mix_neighbours_and_classes_within_their_window() -> None:
    """On a table sorted by class, of 100 classes, in batches of 64, beside what the global shuffle gives."""
    samples, shuffle = 20_000, Shuffle(kind="block", block_samples=32, window_blocks=32)
    classes, apart = {}, {}
    for name, each in (("block", shuffle), ("global", GLOBAL)):
        order = epoch_order(11, 0, samples, each)
        batches = (order * 100 // samples)[: samples // 64 * 64].reshape(-1, 64)
        classes[name] = np.mean([len(np.unique(batch)) for batch in batches])
        places = np.argsort(order)
        apart[name] = np.median(np.abs(np.diff(places)))
        assert abs(np.corrcoef(np.arange(samples), order)[0, 1]) < 0.1
    # Of 100 classes, 64 samples drawn at random have 47.4 on average.
    assert 45 < classes["global"] < 50 and 18 < classes["block"] < 32
    # Two points of a line are 0.29 of it apart in the median; so are neighbours in a window, or in the data set.
    assert 0.25 < apart["block"] / shuffle.window < 0.35 and 0.25 < apart["global"] / samples < 0.35


def test_blocks_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"block_samples 0, window_blocks 16: expected at least 1"):
        Shuffle(kind="block", block_samples=0)
