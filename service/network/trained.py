"""A trained network: pictures -> probabilities, features, words."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.alexnet import ModelConfig
from model.network import Network
from model.step import StepInputs, normalise_pictures
from model.views import Views, mean_probabilities, view_batch
from pipeline.manifest import PictureClass
from service.network.compute import map_chunks
from service.network.pictures import PictureSource, open_picture
from service.run.preprocessing import Preprocessing

CHUNK_ROWS: Final = 128  # views that are computed together
LIKELIEST: Final = 5

Key = TypeVar("Key")
Source = TypeVar("Source", bound=PictureSource)


@dataclass(frozen=True)
class Likely:
    """A class, and how probable it is."""

    index: int
    id: str  # of the class, as its folder was called
    words: str
    probability: float


@dataclass(frozen=True)
class Predicted(Generic[Key]):
    """A picture, and its likeliest classes, the likeliest first."""

    picture: Key
    likeliest: tuple[Likely, ...]

    @property
    def words(self) -> str:
        """What the likeliest class is called."""
        return self.likeliest[0].words


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork:
    """A network with what it needs to be used; it computes in float32, without dropout."""

    path: Path
    sha256: str  # of the checkpoint's manifest, or of the file
    model: Network
    preprocessing: Preprocessing
    crop: int  # side of what it sees of a picture, pixels
    mean: Tensor  # (crop, crop, 3) on the model's device
    dataset_sha256: str = ""  # of the `dataset.json` it was trained on; empty where that is not known
    step: int | None = None  # of training; None where that is not known

    @property
    def classes(self) -> tuple[PictureClass, ...]:
        """The classes that it tells apart, by index."""
        return self.preprocessing.classes

    @property
    def config(self) -> ModelConfig:
        """What distinguishes it from another AlexNet."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @torch.inference_mode()
    def logits(self, pictures: Tensor) -> Tensor:
        """(B, classes) float32 of (B, crop, crop, 3) uint8 RGB pictures."""
        with _whole_float32(self.device):
            return self.model(self._normalised(pictures))

    def probabilities(self, squares: Tensor | NDArray[np.uint8], views: Views = 1) -> Tensor:
        """(B, classes) float64 of (B, side, side, 3) uint8 RGB pictures: softmax, averaged over the views of each."""
        return self._by_chunks(squares, views, self._probabilities)

    def features(self, squares: Tensor | NDArray[np.uint8]) -> Tensor:
        """(B, hidden_width) float32: the last hidden layer, on the centre of (B, side, side, 3) pictures."""
        return self._by_chunks(squares, 1, self._features)

    def predict(self, pictures: Iterable[Source], views: Views = 1) -> "list[Predicted[Source]]":
        """The likeliest classes of pictures: files by their paths, files' bytes, arrays (height, width, 3), or PIL's.

        Each is prepared as the training pictures were. `views`: 1, the centre crop, or 10, the paper's, averaged.
        UnusablePicture, which says why, where one is no picture.
        """
        if isinstance(pictures, str | bytes | PathLike):
            raise TypeError(f"pictures is {pictures!r}, expected several; give [{pictures!r}]")
        pairs = ((picture, open_picture(picture, self.preprocessing)) for picture in pictures)
        return list(self.predict_squares(pairs, views))

    def predict_squares(
        self, squares: Iterable[tuple[Key, NDArray[np.uint8]]], views: Views = 1
    ) -> Iterator[Predicted[Key]]:
        """The likeliest classes of (side, side, 3) pictures, each with a key that comes back with them."""

        def work(pair: tuple[Key, NDArray[np.uint8]]) -> tuple[Key, Tensor]:
            # One picture at a time, so that its figures do not depend on those beside it.
            return pair[0], self.probabilities(pair[1][None], views)[0]

        for key, probabilities in map_chunks(work, squares, self.device):
            yield Predicted(key, self.likeliest(probabilities))

    def likeliest(self, probabilities: Tensor) -> tuple[Likely, ...]:
        """The most probable classes of (classes,) probabilities; of equal ones the first."""
        order = probabilities.sort(dim=0, descending=True, stable=True).indices[:LIKELIEST].tolist()
        return tuple(
            Likely(index, self.classes[index].id, self.classes[index].words, float(probabilities[index]))
            for index in order
        )

    @torch.inference_mode()
    def _probabilities(self, squares: Tensor, views: Views) -> Tensor:
        return mean_probabilities(self.logits(view_batch(squares, self.crop, views)), views)

    @torch.inference_mode()
    def _features(self, squares: Tensor, views: Views) -> Tensor:
        with _whole_float32(self.device):
            return self.model.hidden(self._normalised(view_batch(squares, self.crop, views)))

    def _by_chunks(
        self, squares: Tensor | NDArray[np.uint8], views: Views, work: Callable[[Tensor, Views], Tensor]
    ) -> Tensor:
        """`work` of any number of pictures, in a chunk's memory."""
        if isinstance(squares, np.ndarray):  # a copy of one that torch would warn of, because it must not be written to
            squares = torch.from_numpy(squares if squares.flags.writeable else squares.copy())
        if squares.dtype != torch.uint8 or squares.dim() != 4 or squares.shape[3] != 3:
            raise ValueError(
                f"squares are {tuple(squares.shape)} {squares.dtype}, expected (B, side, side, 3) torch.uint8"
            )
        if squares.shape[1] != squares.shape[2] or squares.shape[1] < self.crop:
            raise ValueError(f"squares are {tuple(squares.shape)}, expected squares of at least {self.crop} pixels")
        return torch.cat([work(part.to(self.device), views) for part in squares.split(chunk_size(views))])

    def _normalised(self, pictures: Tensor) -> Tensor:
        batch = len(pictures)
        zeros, ones = self.mean.new_zeros(batch, 3), self.mean.new_ones(batch)
        whole = torch.zeros(batch, dtype=torch.int64, device=self.device)
        inputs = StepInputs(pictures.contiguous(), zeros, ones, whole, whole, ones)
        return normalise_pictures(inputs, self.mean, self.config.channel_std)


def _whole_float32(device: torch.device) -> AbstractContextManager[None]:
    """Without TF32, in which cuDNN convolves float32 unless told otherwise."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def chunk_size(views: int) -> int:
    """How many pictures are computed together."""
    return CHUNK_ROWS // views


def padded_chunks(batches: Iterable[Sequence[Tensor]], size: int) -> Iterator[tuple[tuple[Tensor, ...], int]]:
    """Batches of any size, each of several columns (n, ...) -> chunks of `size` rows, and how many of them count.

    The last chunk is filled up with its last row: computed in one shape, a row's result depends on its place alone.
    """
    rows = (row for batch in batches for row in zip(*batch, strict=True))
    while taken := list(islice(rows, size)):
        count = len(taken)
        taken += [taken[-1]] * (size - count)
        yield tuple(torch.stack(column) for column in zip(*taken, strict=True)), count
