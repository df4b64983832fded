"""What a run of positions needs of the host, drawn before any byte is read: place, label, crop, mirror, shift."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.augment import AugmentConfig, Draws, draw
from pipeline.manifest import ColourStatistics
from pipeline.order import samples_at
from pipeline.storage import Location, SampleStore

# Positions are drawn this many at a time. A numpy call on long arrays lets other Python threads in and may wait 5 ms
# for its turn to come back (sys.getswitchinterval); a block spreads the few dozen of them over many batches.
BLOCK = 1 << 15


class Rows(NamedTuple):
    """One row a position."""

    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    locations: list[Location]
    draws: Draws

    def part(self, start: int, stop: int) -> "Rows":
        draws = Draws._make(values[start:stop] for values in self.draws)
        return Rows(self.positions[start:stop], self.labels[start:stop], self.locations[start:stop], draws)


class TrainRows:
    """Rows of training positions: the order, the augmentation, and where the bytes stand."""

    def __init__(self, store: SampleStore, config: AugmentConfig, colour: ColourStatistics, *, seed: int, border: int):
        self.store, self.config, self.colour, self.seed, self.border = store, config, colour, seed, border
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def __call__(self, first: int, count: int) -> Rows:
        """Rows of the positions first .. first + count - 1."""
        stop = first + count
        blocks = range(first // BLOCK, (stop - 1) // BLOCK + 1)
        spans = [(max(first - b * BLOCK, 0), min(stop - b * BLOCK, BLOCK)) for b in blocks]
        parts = [self._block(b).part(*span) for b, span in zip(blocks, spans, strict=True)]
        return parts[0] if len(parts) == 1 else _join(parts)

    def _draw_block(self, block: int) -> Rows:
        first, n = block * BLOCK, len(self.store)
        samples = samples_at(self.seed, n, first, BLOCK)
        draws = draw(
            self.config,
            self.colour,
            seed=self.seed,
            border=self.border,
            samples=n,
            first=first,
            count=BLOCK,
        )
        positions = np.arange(first, first + BLOCK)
        return Rows(positions, self.store.labels[samples], self.store.locate(samples), draws)


def _join(parts: list[Rows]) -> Rows:
    draws = Draws._make(np.concatenate(values) for values in zip(*(part.draws for part in parts), strict=True))
    return Rows(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [location for part in parts for location in part.locations],
        draws,
    )


def validation_rows(store: SampleStore, border: int, first: int, count: int) -> Rows:
    """Centre crops of the samples first .. first + count - 1, as they are."""
    samples = np.arange(first, first + count)
    draws = Draws(
        np.full((count, 2), border // 2),
        np.zeros(count, bool),
        np.zeros((count, 3), np.float32),
        np.ones(count, np.float32),
    )
    return Rows(samples, store.labels[samples], store.locate(samples), draws)
