"""Which sample stands at which training position: a pure function of (seed, position).

Nothing here has state, because `randomness` has none: a resume is one integer.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.randomness import ORDER, SHUFFLED_BLOCKS, SHUFFLED_WINDOW, permutation, random_words, uniform


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """How far samples are mixed: over the whole data set, or block by block for disks that read best in sequence.

    Blocks are samples that follow one another in the shards. They are visited in random order, and each of a block's
    samples is put off by a random way of at most `window_blocks` blocks. So a block is read as a whole when it is first
    needed, at a steady pace, and at no time are more than `window_blocks` of them needed. The first and the last window
    of an epoch mix fewer blocks.
    """

    kind: Literal["global", "block"] = "global"
    block_samples: int = 256
    window_blocks: int = 16

    def __post_init__(self) -> None:
        if self.block_samples < 1 or self.window_blocks < 1:
            raise InputError(
                f"block_samples {self.block_samples}, window_blocks {self.window_blocks}: expected at least 1 of each; "
                "set --data.block-samples and --data.window-blocks"
            )

    @property
    def window(self) -> int:
        """Samples by which a sample may be put off."""
        return self.block_samples * self.window_blocks

    def by_block(self, n: int) -> bool:
        """Whether n samples are more than one window: else the order is the global one, which mixes better."""
        return self.kind == "block" and n > self.window


GLOBAL = Shuffle()


@lru_cache(maxsize=3)  # a batch and the prefetch ahead of it touch at most a few epochs; 10 MB each at ImageNet's size
def epoch_order(seed: int, epoch: int, n: int, shuffle: Shuffle = GLOBAL) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits all n samples, read-only."""
    order = _block_order(seed, epoch, n, shuffle) if shuffle.by_block(n) else permutation(seed, ORDER, n, stream=epoch)
    order.flags.writeable = False
    return order


def samples_at(seed: int, n: int, first: int, count: int, shuffle: Shuffle = GLOBAL) -> NDArray[np.int64]:
    """Sample indices of the positions first .. first + count - 1: position p is order(seed, p // n)[p % n].

    Every sample comes once an epoch, nothing is dropped, and a run of positions may span epochs.
    """
    epochs = range(first // n, (first + count - 1) // n + 1)
    starts = [max(first - epoch * n, 0) for epoch in epochs]
    stops = [min(first + count - epoch * n, n) for epoch in epochs]
    parts = [epoch_order(seed, e, n, shuffle)[i:j] for e, i, j in zip(epochs, starts, stops, strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _block_order(seed: int, epoch: int, n: int, shuffle: Shuffle) -> NDArray[np.int64]:
    """The samples sorted by where their blocks put them, and by how far each is put off."""
    blocks = permutation(seed, SHUFFLED_BLOCKS, -(-n // shuffle.block_samples), stream=epoch)
    visited = (blocks[:, None] * shuffle.block_samples + np.arange(shuffle.block_samples)).ravel()
    visited = visited[visited < n]  # the table's last block may be shorter
    put_off = uniform(random_words(seed, SHUFFLED_WINDOW, 0, n, 1, epoch)[:, 0]) * shuffle.window
    return visited[np.argsort(np.arange(n) + put_off, kind="stable")]


def blocks_needed(seed: int, n: int, first: int, stop: int, shuffle: Shuffle) -> list[tuple[int, int]]:
    """Blocks of which the first sample comes at one of the positions first .. stop - 1, as ranges of samples."""
    found: list[tuple[int, int]] = []
    for epoch in range(first // n, (stop - 1) // n + 1):
        begin = _begin(seed, epoch, n, shuffle)
        (blocks,) = np.nonzero((begin >= first - epoch * n) & (begin < stop - epoch * n))
        starts = blocks[np.argsort(begin[blocks])] * shuffle.block_samples
        found += [(start, min(start + shuffle.block_samples, n)) for start in starts.tolist()]
    return found


@lru_cache(maxsize=3)
def _begin(seed: int, epoch: int, n: int, shuffle: Shuffle) -> NDArray[np.int64]:
    """The place in an epoch of the first sample of each block."""
    blocks = epoch_order(seed, epoch, n, shuffle) // shuffle.block_samples
    first, places = np.unique(blocks, return_index=True)
    assert len(first) == -(-n // shuffle.block_samples)
    return places


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The contiguous part of a global batch that `rank` of `ranks` takes; parts differ by at most one sample."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)
