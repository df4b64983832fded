"""The pictures of training positions as the network sees them, by the loader that a run uses; keys of the tars."""

from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.load.batch_loader import Batch, BatchLoader
from pipeline.load.storage import SampleStore


class Seen(NamedTuple):
    """A picture of a training position: cropped, mirrored and colour-shifted, before the mean is taken off."""

    picture: NDArray[np.uint8]  # (crop, crop, 3) RGB
    position: int
    label: int
    clipped: float  # share of its values that the colour shift takes beyond 0..255, where the network sees them


def batch_pictures(loader: BatchLoader, batch_size: int, first: int) -> list[Seen]:
    """The batch that a run has at position `first`."""
    with closing(loader.train(batch_size, first)) as batches:
        return seen(next(batches))


def pictures_at(loader: BatchLoader, positions: Sequence[int]) -> list[Seen]:
    """Each position's picture, which does not depend on the batch that it is in."""
    return [each for position in positions for each in batch_pictures(loader, 1, position)]


def seen(batch: Batch) -> list[Seen]:
    """A batch's pictures to look at: rounded, and clipped to 0..255."""
    exact = batch.pictures.to(torch.float32) + batch.offset[:, None, None, :]
    clipped = ((exact < 0) | (exact > 255)).float().mean((1, 2, 3)).tolist()
    shown = exact.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return [Seen(*each) for each in zip(shown, batch.positions.tolist(), batch.labels.tolist(), clipped, strict=True)]


def sample_of(store: SampleStore, key: int) -> int:
    """The sample with this key; InputError where the split has none. Keys ascend, so few headers are read."""
    low, high = 0, len(store)
    while low < high:
        middle = (low + high) // 2
        if store.key(middle) < key:
            low = middle + 1
        else:
            high = middle
    if low == len(store) or store.key(low) != key:
        ends = f"one of {store.key(0):08d} to {store.key(len(store) - 1):08d}"
        raise InputError(f"{store.split} has no sample {key:08d}, expected {ends} that was not rejected; give --sample")
    return low
