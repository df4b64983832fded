"""Order and draws: golden bits, exact partition, independence of how a range is asked for."""

import numpy as np
import pytest

from pipeline.order import (
    AUGMENT,
    ORDER,
    epoch_order,
    normal,
    permutation,
    random_words,
    rank_slice,
    samples_at,
    uniform,
)


def test_raw_bits_are_those_of_philox_in_every_version() -> None:
    # Golden: numpy's Philox 4x64, key (seed, purpose). A change here changes every data order ever trained with.
    golden = random_words(7, ORDER, 0, 2, 4)
    assert golden.tolist() == [
        [0xE1E9589FBF7F6F1D, 0x5E794BDA66C92F56, 0x845EADF36D56F2F7, 0x54F02C50B6B75554],
        [0xB7DA48AF1EFF8048, 0xB79DA30C1F72C516, 0x61F741C3A01F37CE, 0xED9190C04D5177F0],
    ]
    assert permutation(7, ORDER, 10, stream=3).tolist() == [6, 7, 9, 3, 1, 0, 4, 8, 5, 2]


@pytest.mark.parametrize("words", [1, 4, 5, 8])
def test_a_row_has_the_same_words_wherever_the_range_starts(words: int) -> None:
    whole = random_words(3, AUGMENT, 0, 50, words)
    assert np.array_equal(whole[17:29], random_words(3, AUGMENT, 17, 12, words))
    assert whole.shape == (50, words)


def test_seed_purpose_stream_and_row_all_matter() -> None:
    draws = [
        random_words(seed, purpose, row, 1, 4, stream).tobytes()
        for seed in (0, 1)
        for purpose in (1, 2)
        for stream in (0, 1)
        for row in (0, 1)
    ]
    assert len(set(draws)) == 16


def test_every_epoch_visits_every_sample_once_and_differently() -> None:
    orders = [epoch_order(5, epoch, 1000) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


def test_permutation_is_uniform() -> None:
    # Where sample 0 lands over 4,000 epochs of 8: chi-squared with 7 degrees of freedom is below 24.3 with p = 0.999.
    places = [int(np.flatnonzero(permutation(0, ORDER, 8, stream) == 0)[0]) for stream in range(4000)]
    counts = np.bincount(places, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3


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


def test_uniforms_and_normals_have_their_distributions() -> None:
    words = random_words(11, AUGMENT, 0, 50_000, 4)
    u, z = uniform(words), normal(words)
    assert u.min() >= 0 and u.max() < 1
    # Standard errors over 200,000 draws: mean 0.0022, variance 0.0032, kurtosis 0.011; four of each.
    assert abs(z.mean()) < 0.009 and abs(z.var() - 1) < 0.013
    assert abs((z**4).mean() - 3) < 0.044
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 0.018
    assert np.isfinite(normal(np.array([[0, 0], [2**64 - 1, 2**64 - 1]], np.uint64))).all()
