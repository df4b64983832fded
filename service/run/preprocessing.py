"""How the pictures of a run's data set were made, and what its classes are called: what its network needs to be used.

It is saved with every checkpoint, so that a network can be used where its training pictures are not.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import FailFast, Field

from model.alexnet import TORCHVISION_MEAN
from pipeline.command import InputError
from pipeline.foreign import Count, checked, read_json, require_array
from pipeline.load.batch_loader import central_crop
from pipeline.load.graph import square_side
from pipeline.manifest import Dataset, PictureClass, Side, array_bytes, load_mean

PREPROCESSING_FILE: Final = "preprocessing.json"
MEAN_FILE: Final = "mean.npy"
MOST_CLASSES: Final = 10**6
DATASET_OPTIONS: Final = ("size", "quality", "seed", "val_fraction", "shard_samples", "encoder")  # of sharding


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessing:
    """What turns a picture file into what a network was trained on, before the crop."""

    size: int  # side of the stored pictures, pixels; 0 where each kept its own
    quality: int  # of the stored JPEGs; 0: they are not encoded again
    classes: tuple[PictureClass, ...]
    mean: NDArray[np.float32]  # (side, side, 3) RGB on 0..255: the training set's mean picture
    dataset: Mapping[str, Any] = field(default_factory=dict)  # its dataset_facts; empty where only a network is known

    @property
    def side(self) -> int:
        """Side of the square that crops are taken from, pixels."""
        return square_side(self.size)

    def mean_crop(self, crop: int, layout: Literal["towers", "torchvision", "cifar"]) -> NDArray[np.float32]:
        """(crop, crop, 3): what a network takes off a crop: the middle of the mean picture, or torchvision's colour."""
        if layout == "torchvision":
            return np.broadcast_to(np.array(TORCHVISION_MEAN, np.float32), (crop, crop, 3)).copy()
        return central_crop(self.mean, crop)

    def facts(self) -> dict[str, Any]:
        """All but the mean picture, as plain JSON values."""
        return {"size": self.size, "quality": self.quality, "classes": [asdict(each) for each in self.classes]}

    def files(self) -> dict[str, bytes]:
        """The files of a checkpoint that hold it, by name."""
        text = json.dumps({**self.facts(), **self.dataset}, indent=1) + "\n"
        return {PREPROCESSING_FILE: text.encode(), MEAN_FILE: array_bytes(self.mean)}


def preprocessing_of(dataset: Dataset, shards: Path) -> Preprocessing:
    """A data set's."""
    return Preprocessing(
        size=dataset.size,
        quality=dataset.quality,
        classes=dataset.classes,
        mean=load_mean(shards, dataset),
        dataset=dataset_facts(dataset),
    )


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """What decides a data set, as plain JSON values: by this people tell two of them apart."""
    return {
        **{name: getattr(dataset, name) for name in DATASET_OPTIONS},
        "source_sha256": dataset.source_sha256,
        "pictures": {name: split.samples for name, split in dataset.splits.items()},
        "classes": [asdict(each) for each in dataset.classes],
    }


@dataclass
class _Facts:
    """What a network's pictures were made like, as its file says."""

    size: Side
    quality: Count
    classes: Annotated[tuple[PictureClass, ...], FailFast(), Field(min_length=1, max_length=MOST_CLASSES)]


@dataclass
class _DatasetFacts(_Facts):
    """The same and, but for an earlier version, what decides the data set."""

    seed: Any = 0
    pictures: dict[str, Count] = field(default_factory=dict)


def preprocessing_from(facts: Mapping[str, Any], mean: NDArray[np.float32]) -> Preprocessing:
    """From the values of `facts` and the mean picture; ValueError where they are no such values."""
    found = checked(_Facts, facts)
    return Preprocessing(size=found.size, quality=found.quality, classes=found.classes, mean=mean)


def read_preprocessing(checkpoint: Path) -> Preprocessing | None:
    """A verified checkpoint's; None where an earlier version wrote it, without."""
    facts = read_dataset_facts(checkpoint)
    if not facts:
        return None
    path, side = checkpoint / MEAN_FILE, square_side(facts["size"])
    with _reading(path):
        require_array(path, np.float32, (side, side, 3))
    return preprocessing_from(facts, np.load(path, allow_pickle=False))


def read_dataset_facts(checkpoint: Path) -> dict[str, Any]:
    """What a verified checkpoint says of its data set; of an earlier version size, quality and classes, or nothing."""
    path = checkpoint / PREPROCESSING_FILE
    if not path.exists():
        return {}
    with _reading(path):
        facts = read_json(path)
        checked(_DatasetFacts, facts)
    return facts


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected as a run wrote it; mend that") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}), expected as a run wrote it; choose another one") from error
