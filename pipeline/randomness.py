"""Counter-based random bits: every draw is a function of (seed, purpose, stream, row), and nothing has state.

Philox 4x64 (Salmon et al. 2011), of which only the raw bits are used: numpy promises those across versions, but not
`Generator`'s streams.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# The second word of the Philox key: draws for different purposes never share bits.
ORDER: Final = 1
AUGMENT: Final = 2
SHARD: Final = 3
HOLD_OUT: Final = 4
SYNTHETIC: Final = 5
SUBSET: Final = 6
RESIZED_CROP: Final = 7
COLOUR_JITTER: Final = 8
SHUFFLED_BLOCKS: Final = 9
SHUFFLED_WINDOW: Final = 10
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
