"""Order and draws: golden bits, exact partition, independence of how a range is asked for."""

import numpy as np
import pytest

from pipeline.load.order import epoch_order, rank_slice, samples_at


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
