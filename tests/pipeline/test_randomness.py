"""Random bits: golden values, independence of how a range is asked for, and their distributions."""

import numpy as np
import pytest

from pipeline.randomness import AUGMENT, ORDER, normal, permutation, random_words, uniform


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


def test_permutation_is_uniform() -> None:
    # Where sample 0 lands over 4,000 epochs of 8: chi-squared with 7 degrees of freedom is below 24.3 with p = 0.999.
    places = [int(np.flatnonzero(permutation(0, ORDER, 8, stream) == 0)[0]) for stream in range(4000)]
    counts = np.bincount(places, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 24.3


def test_uniforms_and_normals_have_their_distributions() -> None:
    words = random_words(11, AUGMENT, 0, 50_000, 4)
    u, z = uniform(words), normal(words)
    assert u.min() >= 0 and u.max() < 1
    # Standard errors over 200,000 draws: mean 0.0022, variance 0.0032, kurtosis 0.011; four of each.
    assert abs(z.mean()) < 0.009 and abs(z.var() - 1) < 0.013
    assert abs((z**4).mean() - 3) < 0.044
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 0.018
    assert np.isfinite(normal(np.array([[0, 0], [2**64 - 1, 2**64 - 1]], np.uint64))).all()
