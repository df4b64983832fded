"""What the host provides for a range of positions, before any byte is read: location, label, crop, mirror, shift.

And how what the training step takes of it reaches a device: as one piece of memory.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig, augment_parameters, jitter_draws, region_draws
from pipeline.load.order import GLOBAL, Shuffle, samples_at
from pipeline.load.storage import Location, SampleStore
from pipeline.manifest import ColourStatistics

# Positions are drawn this many at a time. A numpy call on long arrays releases the GIL and may wait 5 ms to get it back
# (sys.getswitchinterval); a block spreads the few dozen such calls over many batches.
BLOCK = 1 << 15

ALIGNMENT: Final = 64  # bytes: where columns begin in one piece of memory; Inductor copies what lies at less than 16

LEAST_BUDGET: Final = 10  # damaged samples that any epoch may have, however few samples it has


class SampleInputs(NamedTuple):
    """One row a position, each column in the form in which it is used, so that a batch is slices and no arithmetic."""

    locations: list[Location]
    corner: NDArray[np.float32]  # (n, 2): row and column of the crop's corner, pixels
    mirror: NDArray[np.int32]  # (n,): 1 to mirror
    subtract: NDArray[np.float32]  # (n, 3): RGB that the graph takes off every pixel
    offset: NDArray[np.float32]  # (n, 3): RGB that the step adds to every pixel
    scale: NDArray[np.float32]  # (n,): multiplies the picture after that
    labels: NDArray[np.int64]  # (n,)
    positions: NDArray[np.int64]  # (n,)
    weights: NDArray[np.float32]  # (n,): weight of each sample's loss; 1 unless the caller sets another
    region: NDArray[np.float64]  # (n, REGION_DRAWS) for `augment.regions`; (n, 0) where crops are not resized
    jitter: NDArray[np.float32]  # (n, JITTER_DRAWS) for the graph; (n, 0) where colours are not jittered

    def part(self, start: int, stop: int) -> "SampleInputs":
        """The rows start .. stop - 1."""
        return SampleInputs._make(column[start:stop] for column in self)


def concatenate(parts: list[SampleInputs]) -> SampleInputs:
    """The rows of all parts."""
    if len(parts) == 1:
        return parts[0]
    locations = [location for part in parts for location in part.locations]
    return SampleInputs(
        locations, *(np.concatenate(columns) for columns in zip(*(part[1:] for part in parts), strict=True))
    )


class TrainInputs:
    """Makes the SampleInputs of training positions: their order, augmentation, and where the bytes lie.

    mean: (3,) RGB that the graph subtracts together with the colour shift, or None where the step adds the shift.
    """

    def __init__(
        self,
        store: SampleStore,
        config: AugmentConfig,
        colour: ColourStatistics,
        *,
        seed: int,
        crop_margin: int,
        mean: NDArray[np.float32] | None,
        shuffle: Shuffle = GLOBAL,
    ):
        self.shuffle = shuffle
        self.store, self.config, self.colour = store, config, colour
        self.seed, self.crop_margin, self.mean = seed, crop_margin, mean
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def __call__(self, first: int, count: int) -> SampleInputs:
        """Rows of the positions first .. first + count - 1."""
        stop = first + count
        blocks = range(first // BLOCK, (stop - 1) // BLOCK + 1)
        spans = [(max(first - b * BLOCK, 0), min(stop - b * BLOCK, BLOCK)) for b in blocks]
        return concatenate([self._block(b).part(*span) for b, span in zip(blocks, spans, strict=True)])

    def _draw_block(self, block: int) -> SampleInputs:
        first, n = block * BLOCK, len(self.store)
        samples = samples_at(self.seed, n, first, BLOCK, self.shuffle)
        draws = augment_parameters(
            self.config,
            self.colour,
            seed=self.seed,
            crop_margin=self.crop_margin,
            samples=n,
            first=first,
            count=BLOCK,
        )
        return SampleInputs(
            self.store.locate(samples),
            draws.crop.astype(np.float32),
            draws.mirror.astype(np.int32),
            *split_mean_and_shift(draws.shift, self.mean),
            draws.scale,
            self.store.labels[samples],
            np.arange(first, first + BLOCK),
            np.ones(BLOCK, np.float32),
            *self._draw_more(first),
        )

    def _draw_more(self, first: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The columns `region` and `jitter` of a block: empty rows where the option is off."""
        config, where = self.config, {"seed": self.seed, "first": first, "count": BLOCK}
        return (
            region_draws(config, **where) if config.crop == "resized" else np.empty((BLOCK, 0)),
            jitter_draws(config, **where) if config.jitters else np.empty((BLOCK, 0), np.float32),
        )


# Gives others in the place of those rows of a batch whose samples are damaged; which locations can be used, it is told.
Replace = Callable[[SampleInputs, Sequence[int], Callable[[Location], bool]], SampleInputs]


class Replacements:
    """Puts usable samples in the place of damaged ones, and ends what has too many of them.

    most: how many different samples of an epoch may be replaced. report: is told where each lies.
    """

    def __init__(self, store: SampleStore, most: int, report: Callable[[str], None]):
        self.store, self.most, self.report = store, most, report
        self._epoch, self._damaged = 0, set[Location]()

    def __call__(
        self, rows: SampleInputs, damaged: Sequence[int], is_usable: Callable[[Location], bool]
    ) -> SampleInputs:
        """A `Replace`, labels included; InputError where there are too many."""
        if not damaged:
            return rows
        for row in damaged:
            self.report(self.store.place(rows.locations[row]))
            self._count(int(rows.positions[row]) // len(self.store), rows.locations[row])
        replacements = np.array([self.store.replacement(rows.locations[row], is_usable) for row in damaged])
        locations, labels = list(rows.locations), rows.labels.copy()
        for row, location in zip(damaged, self.store.locate(replacements), strict=True):
            locations[row] = location
        labels[damaged] = self.store.labels[replacements]
        return rows._replace(locations=locations, labels=labels)

    def _count(self, epoch: int, location: Location) -> None:
        if epoch != self._epoch:
            self._epoch, self._damaged = epoch, set()
        self._damaged.add(location)
        if len(self._damaged) <= self.most:
            return
        shards = Counter(self.store.shards[shard].name for shard, *_ in self._damaged)
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(shards.items()))
        raise InputError(
            f"{len(self._damaged)} samples of {self.store.root / self.store.split} are damaged ({counts}), expected at "
            f"most {self.most} an epoch (--data.most-damaged); python -m pipeline.verify names what is damaged: "
            "shard the data set again, or restore those files"
        )


def most_damaged(share: float, samples: int) -> int:
    """How many of so many samples may be damaged where this share may be."""
    return max(LEAST_BUDGET, int(share * samples))


def split_mean_and_shift(
    shift: NDArray[np.float32], mean: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the graph subtracts and what the step adds, (n, 3) each; in both cases the two together give the shift."""
    if mean is None:
        return np.zeros_like(shift), shift
    return mean - shift, np.tile(mean, (len(shift), 1))


def validation_inputs(
    store: SampleStore, crop_margin: int, mean: NDArray[np.float32] | None, samples: NDArray[np.int64]
) -> SampleInputs:
    """Centre crops of these samples, as they are."""
    count = len(samples)
    return SampleInputs(
        store.locate(samples),
        np.full((count, 2), crop_margin // 2, np.float32),
        np.zeros(count, np.int32),
        *split_mean_and_shift(np.zeros((count, 3), np.float32), mean),
        np.ones(count, np.float32),
        store.labels[samples],
        samples,
        np.ones(count, np.float32),
        np.empty((count, 0)),
        np.empty((count, 0), np.float32),
    )


def pack(columns: Sequence[NDArray[Any]], to: NDArray[np.uint8]) -> None:
    """Put columns into the first `packed_bytes` bytes of one piece of memory, one after another."""
    for column, start in zip(columns, _starts(columns), strict=False):
        to[start : start + column.nbytes].view(column.dtype)[...] = column.ravel()


def unpack(packed: torch.Tensor, columns: Sequence[NDArray[Any]]) -> tuple[torch.Tensor, ...]:
    """Views of packed memory, (bytes,) uint8 on any device, of the shapes and types of the columns that it holds."""
    return tuple(
        packed[start : start + column.nbytes].view(torch.from_numpy(np.empty(0, column.dtype)).dtype).view(column.shape)
        for column, start in zip(columns, _starts(columns), strict=False)
    )


def packed_bytes(columns: Sequence[NDArray[Any]]) -> int:
    """How much memory these columns take as one piece."""
    return _starts(columns)[-1]


def _starts(columns: Sequence[NDArray[Any]]) -> list[int]:
    """Where each column begins, and where one more would, bytes."""
    return list(accumulate((-(-column.nbytes // ALIGNMENT) * ALIGNMENT for column in columns), initial=0))


def copied_at_once(columns: Sequence[NDArray[Any]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The columns on a device, by one copy that the host does not wait for.

    Pinned memory is torch's: it is used again when the copy from it, of which torch keeps an event, has been made.
    """
    packed = torch.empty(packed_bytes(columns), dtype=torch.uint8, pin_memory=device.type == "cuda")
    pack(columns, packed.numpy())
    return unpack(packed.to(device, non_blocking=True), columns)
