"""Batches on the device: DALI decodes, crops, mirrors and normalises what `order` and `augment` have drawn.

The graph has no random operator and no state: `fn.external_source` hands it JPEG bytes and the drawn parameters, so a
batch is a pure function of (data set, seed, position), on CPU and GPU alike.
"""

from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline

from pipeline.command import InputError
from pipeline.load.config import DataConfig
from pipeline.load.graph import Device, GraphConfig, Output, build_graph, square_side
from pipeline.load.inputs import SampleInputs, TrainInputs, replace_damaged, validation_inputs
from pipeline.load.order import rank_slice
from pipeline.load.probe import gpu_decoder_works
from pipeline.load.storage import SampleStore
from pipeline.manifest import Dataset, load_dataset


class Batch(NamedTuple):
    """B pictures on the device. The network sees (pictures + offset - central crop of the mean picture) * scale."""

    pictures: torch.Tensor  # (B, crop, crop, 3) uint8, float16 or float32 RGB on 0..255, less `offset`'s mean
    offset: torch.Tensor  # (B, 3) float32
    scale: torch.Tensor  # (B,) float32
    labels: torch.Tensor  # (B,) int64
    positions: torch.Tensor  # (B,) int64: training positions, or sample indices in validation
    weights: torch.Tensor  # (B,) float32: 1 / the global batch size (in validation 1), and 0 for padding


def crop_margin(dataset: Dataset, config: DataConfig) -> int:
    """Pixels by which a picture exceeds the crop: offsets are 0 .. crop_margin."""
    side = square_side(dataset.size)
    if config.crop > side:
        raise InputError(f"crop is {config.crop} pixels, expected at most the {side} of the shards; set --data.crop")
    return side - config.crop


def central_crop(picture: NDArray[np.float32], crop: int) -> NDArray[np.float32]:
    """(crop, crop, 3): the middle of a square picture."""
    start = (len(picture) - crop) // 2
    return picture[start : start + crop, start : start + crop].copy()


class BatchLoader:
    """Batches of one data set, for training from any position and for validation."""

    def __init__(
        self, config: DataConfig, *, seed: int = 0, device: Device = "cpu", rank: int = 0, world_size: int = 1
    ):
        self.config, self.seed = config, seed
        self.device: Device = device
        self.rank, self.world_size = rank, world_size
        self.dataset = load_dataset(config.shards)
        self.crop_margin = crop_margin(self.dataset, config)
        self.output: Output = _output(config, device)
        self.decoder: Device = _decoder(config, device)
        # uint8 cannot hold a mean or a shift: the step adds the shift then.
        self.mean = None if self.output == "uint8" else np.array(self.dataset.colour.mean, np.float32)
        self.damaged: list[str] = []  # where damaged samples lie, which were replaced; its reader empties it
        self._copies: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def train(self, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch from position `first` on, endlessly.

        All ranks' parts have one length: a part that is one short is padded with the next picture, at weight 0.
        """
        store = SampleStore(self.config.shards, self.dataset, "train")
        rows = TrainInputs(
            store,
            self.config.augment,
            self.dataset.colour,
            seed=self.seed,
            crop_margin=self.crop_margin,
            mean=self.mean,
        )
        mine, rows_each = self._part(batch_size)
        weights = _weights(mine, rows_each, 1 / batch_size)
        starts = (first + step * batch_size + mine.start for step in count())
        return self._batches(store, (rows(start, rows_each)._replace(weights=weights) for start in starts), rows_each)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        """This rank's part of each batch of validation pictures, in order; the last batch may be shorter."""
        store = SampleStore(self.config.shards, self.dataset, "val")
        return self._batches(store, self._validation_rows(store, batch_size), self._part(batch_size)[1])

    def pictures(self, split: str, samples: range, batch_size: int) -> Iterator[Batch]:
        """These samples of a split, in order and whatever the rank, each picture's centre crop as it is."""
        store = SampleStore(self.config.shards, self.dataset, split)
        starts = range(samples.start, samples.stop, batch_size)
        rows = (
            validation_inputs(
                store, self.crop_margin, self.mean, np.arange(start, min(start + batch_size, samples.stop))
            )
            for start in starts
        )
        return self._batches(store, rows, batch_size)

    def _validation_rows(self, store: SampleStore, batch_size: int) -> Iterator[SampleInputs]:
        for start in range(0, len(store), batch_size):
            mine, rows_each = self._part(min(batch_size, len(store) - start))
            samples = np.minimum(np.arange(rows_each) + start + mine.start, len(store) - 1)
            rows = validation_inputs(store, self.crop_margin, self.mean, samples)
            yield rows._replace(weights=_weights(mine, rows_each, 1.0))

    def _part(self, batch_size: int) -> tuple[slice, int]:
        """Which of a batch's rows are this rank's, and how many rows each rank takes."""
        return rank_slice(batch_size, self.rank, self.world_size), -(-batch_size // self.world_size)

    def _batches(self, store: SampleStore, rows: Iterator[SampleInputs], batch_size: int) -> Iterator[Batch]:
        """Run the DALI graph over rows; columns that the graph does not need wait in a queue beside it."""
        waiting: deque[SampleInputs] = deque()
        ahead: deque[SampleInputs] = deque()

        def feed() -> tuple[Any, ...]:
            # The kernel is asked for a batch's pages as many batches early as DALI's own queue is long.
            while len(ahead) <= self.config.prefetch and (row := next(rows, None)) is not None:
                store.prefetch(row.locations)
                ahead.append(row)
            if not ahead:
                raise StopIteration
            row, damaged = replace_damaged(store, ahead.popleft())
            shards = self.dataset.splits[store.split].shards
            self.damaged += [f"{store.split}/{shards[shard].name}, byte {offset}" for shard, offset, *_ in damaged]
            waiting.append(row)
            return graph_inputs(store, row)

        graph = self._graph(feed, batch_size)
        while True:
            try:
                (pictures,) = graph.run()
            except StopIteration:
                return
            yield self._batch(pictures, waiting.popleft())

    def _graph(self, feed: Any, batch_size: int) -> Pipeline:
        return build_graph(
            feed,
            GraphConfig(
                batch_size=batch_size,
                size=self.dataset.size,
                crop=self.config.crop,
                output=self.output,
                decoder=self.decoder,
                device=self.device,
                threads=self.config.threads,
                prefetch=self.config.prefetch,
            ),
        )

    def _batch(self, pictures: Any, rows: SampleInputs) -> Batch:
        tensor = torch.from_dlpack(pictures.as_tensor())
        if self.device == "gpu":
            tensor = self._copy(tensor)
        columns = rows.offset, rows.scale, rows.labels, rows.positions, rows.weights
        host = (torch.from_numpy(np.array(column)) for column in columns)
        return Batch(tensor, *(v.to(tensor.device, non_blocking=True) for v in host))

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the order of torch's stream; DALI's buffer is held until that copy has been made."""
        copy, made = tensor.clone(), torch.cuda.Event()
        made.record()
        self._copies.append((tensor, made))
        while self._copies[0][1].query() and len(self._copies) > 1:
            self._copies.popleft()
        return copy


def _weights(mine: slice, rows: int, each: float) -> NDArray[np.float32]:
    """The weight of each of a rank's rows: `each`, and 0 for the padding beyond its own part."""
    return np.where(np.arange(rows) < mine.stop - mine.start, each, 0).astype(np.float32)


def graph_inputs(store: SampleStore, rows: SampleInputs) -> tuple[Any, ...]:
    """What the graph takes for a batch: JPEG files, crop corners, mirror flags, and RGB to take off."""
    return store.read(rows.locations), rows.corner, rows.mirror, rows.subtract


def choose_device(device: Literal["auto", "cpu", "gpu"]) -> Device:
    """auto is the GPU where there is one; InputError when a GPU is asked for and there is none."""
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("device is gpu, expected a CUDA GPU and its driver, found none; use --device cpu")
    return "gpu" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _output(config: DataConfig, device: Device) -> Output:
    if config.output != "auto":
        return config.output
    return "float16" if device == "gpu" else "uint8"


def _decoder(config: DataConfig, device: Device) -> Device:
    if config.decoder == "gpu" and device == "cpu":
        raise InputError("decoder is gpu, expected cpu or auto where pictures stay on the CPU; set --data.decoder cpu")
    if config.decoder != "auto":
        return config.decoder
    return "gpu" if device == "gpu" and gpu_decoder_works() else "cpu"
