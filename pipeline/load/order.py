"""Which sample stands at which training position: a pure function of (seed, position).

Nothing here has state, because `randomness` has none: a resume is one integer.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.randomness import ORDER, permutation


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


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The contiguous part of a global batch that `rank` of `ranks` takes; parts differ by at most one sample."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)
