"""Which sample stands at which training position: a pure function of (seed, position).

Randomness is counter-based (Philox 4x64, Salmon et al. 2011) and only its raw bits are used: numpy promises those
across versions, but not `Generator`'s streams. Every draw is a function of (seed, purpose, stream, row), so nothing
here has state, and a resume is one integer.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

# The second word of the Philox key: draws for different purposes never share bits.
ORDER: Final = 1
AUGMENT: Final = 2
SHARD: Final = 3
HOLD_OUT: Final = 4
SAMPLE: Final = 5
SUBSET: Final = 6

_WORDS_A_BLOCK = 4  # Philox 4x64 makes four 64-bit words a counter value


def random_words(seed: int, purpose: int, first: int, rows: int, words: int, stream: int = 0) -> NDArray[np.uint64]:
    """Raw bits for rows first .. first + rows - 1, (rows, words) uint64; the same row always gets the same words."""
    blocks = -(-words // _WORDS_A_BLOCK)
    # Counter words are little-endian; the stream sits above any row that 64 bits can count.
    generator = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=(stream << 128) + first * blocks)
    return generator.random_raw(rows * blocks * _WORDS_A_BLOCK).reshape(rows, -1)[:, :words]


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Doubles in [0, 1) with 53 random bits each."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard normals by Box-Muller: (rows, 2 n) words give (rows, 2 n) values."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(words[:, 0::2])))  # 1 - u is in (0, 1], so the logarithm is finite
    angle = 2.0 * np.pi * uniform(words[:, 1::2])
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def permutation(seed: int, purpose: int, n: int, stream: int = 0) -> NDArray[np.int64]:
    """A uniformly random permutation of range(n): the stable argsort of random 64-bit keys."""
    return np.argsort(random_words(seed, purpose, 0, n, 1, stream)[:, 0], kind="stable")


@lru_cache(maxsize=3)  # a batch and the prefetch ahead of it touch at most a few epochs; 10 MB each at ImageNet's size
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits all n samples, read-only."""
    order = permutation(seed, ORDER, n, stream=epoch)
    order.flags.writeable = False
    return order


def samples_at(seed: int, n: int, first: int, count: int) -> NDArray[np.int64]:
    """Sample indices of the positions first .. first + count - 1: position p is perm(seed, p // n)[p % n].

    Every sample comes once an epoch, nothing is dropped, and a run of positions may span epochs.
    """
    epochs = range(first // n, (first + count - 1) // n + 1)
    starts = [max(first - epoch * n, 0) for epoch in epochs]
    stops = [min(first + count - epoch * n, n) for epoch in epochs]
    parts = [epoch_order(seed, e, n)[i:j] for e, i, j in zip(epochs, starts, stops, strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def rank_slice(batch_size: int, rank: int, ranks: int) -> slice:
    """The contiguous part of a global batch that `rank` of `ranks` takes; parts differ by at most one sample."""
    return slice(batch_size * rank // ranks, batch_size * (rank + 1) // ranks)
