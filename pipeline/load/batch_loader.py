"""Batches on the device: the pictures that `order` and `augment` have drawn, decoded, cropped, mirrored, normalised.

On the CPU crops of stored squares are made by threads (`crops`); the DALI graph (`graph`, `feed`) makes all else.
Neither draws anything or has state, so a batch is a pure function of (data set, seed, position), on CPU and GPU alike.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, count, repeat
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline

from pipeline.command import InputError
from pipeline.host.cpus import usable_cores
from pipeline.load.augment import regions
from pipeline.load.config import PREFETCH, DataConfig, shuffle_of
from pipeline.load.crops import CropConfig, crop_batches, mirrored, square_reader
from pipeline.load.feed import graph_batches
from pipeline.load.graph import (
    Device,
    GraphConfig,
    Output,
    arithmetic_options,
    build_graph,
    decoding_threads,
    gpu_decoder_options,
    picture_sizes,
    square_side,
)
from pipeline.load.inputs import (
    Replacements,
    SampleInputs,
    TrainInputs,
    copied_at_once,
    most_damaged,
    validation_inputs,
)
from pipeline.load.order import rank_slice
from pipeline.load.probe import gpu_decoder_works
from pipeline.load.read_ahead import Ask, ask_for_blocks, ask_for_samples, asked_ahead
from pipeline.load.storage import SampleStore
from pipeline.manifest import Dataset, Store, Triple, load_dataset
from pipeline.picture.raw import npy_square
from pipeline.reading.place import open_place


class Batch(NamedTuple):
    """B pictures on the device. The network sees (pictures + offset - central crop of the mean picture) * scale."""

    pictures: torch.Tensor  # (B, crop, crop, 3) uint8, float16 or float32 RGB on 0..255, less `offset`'s mean
    offset: torch.Tensor  # (B, 3) float32
    scale: torch.Tensor  # (B,) float32
    labels: torch.Tensor  # (B,) int64
    positions: torch.Tensor  # (B,) int64: training positions, or sample indices in validation
    weights: torch.Tensor  # (B,) float32: 1 / the global batch size (in validation 1), and 0 for padding


def crop_margin(dataset: Dataset, config: DataConfig, resize: int = 0) -> int:
    """Pixels by which a picture exceeds the crop: offsets are 0 .. crop_margin."""
    side = resize or square_side(dataset.size)
    if config.crop > side:
        whose = "that pictures are resized to" if resize else "of the shards"
        raise InputError(f"crop is {config.crop} pixels, expected at most the {side} {whose}; set --data.crop")
    return side - config.crop


def central_crop(picture: NDArray[np.float32], crop: int) -> NDArray[np.float32]:
    """(crop, crop, 3): the middle of a square picture."""
    start = (len(picture) - crop) // 2
    return picture[start : start + crop, start : start + crop].copy()


class BatchLoader:
    """Batches of one data set, for training from any position and for validation."""

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int = 0,
        device: Device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        mean: Triple | None = None,
        std: Triple = (1.0, 1.0, 1.0),
        resize: int = 0,
        lends: bool = False,
        cores: int = 0,
    ):
        """mean, std: where the output is of floats, RGB on 0..255 to take off (None: the data set's), and to divide by
        after that; a std other than 1 is for users who need no `Batch.offset`. resize: shorter side that pictures are
        scaled to before the crop, pixels; 0: 256 for pictures of sizes of their own, stored squares as they are.
        lends: whoever takes a batch is done with its pictures, but for work that torch's stream already has, when it
        asks for the next one or drops the iterator; then a GPU need not copy them. cores: of this process, where
        config.threads does not say how many threads decode; 0: all that it may use."""
        self.config = replace(config, prefetch=config.prefetch or PREFETCH)
        self.seed = seed
        self.device: Device = device
        self.rank, self.world_size = rank, world_size
        self.root = open_place(config.shards, config.cache, config.cache_bytes)
        self.shuffle = shuffle_of(config)
        self.dataset = load_dataset(self.root)
        self.lends, self.cores = lends, cores or usable_cores()
        self.resize, self.crop_margin = resize, crop_margin(self.dataset, config, resize)
        self.output: Output = _output(config, device, self.dataset.store)
        self.decoder: Device = _decoder(config, device, self.dataset.store)
        # uint8 cannot hold a mean or a shift: the step adds the shift then.
        self.mean = None if self.output == "uint8" else np.array(mean or self.dataset.colour.mean, np.float32)
        self.std = (1.0, 1.0, 1.0) if self.output == "uint8" else std
        self.damaged: list[str] = []  # where damaged samples lie, which were replaced; its reader empties it
        self._held: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def train(self, batch_size: int, first: int = 0) -> Generator[Batch, None, None]:
        """This rank's part of each global batch from position `first` on, endlessly.

        All ranks' parts have one length: a part that is one short is padded with the next picture, at weight 0.
        """
        store = SampleStore(self.root, self.dataset, "train")
        rows = self._train_inputs(store)
        mine, rows_each = self._part(batch_size)
        weights = _weights(mine, rows_each, 1 / batch_size)
        starts = (first + step * batch_size + mine.start for step in count())
        made = (rows(start, rows_each)._replace(weights=weights) for start in starts)
        return self._batches(store, made, rows_each, varied=True)

    def train_spans(self, spans: Iterable[range], batch_size: int) -> Generator[Batch, None, None]:
        """The training pictures of each span of positions, whatever the rank; none is longer than batch_size."""
        store = SampleStore(self.root, self.dataset, "train")
        rows = self._train_inputs(store)
        return self._batches(store, (rows(span.start, len(span)) for span in spans), batch_size, varied=True)

    def validation(self, batch_size: int, *, repeated: bool = False) -> Generator[Batch, None, None]:
        """This rank's part of each batch of validation pictures, in order; the last batch may be shorter.

        repeated: the same again and again, endlessly; the next time's first batches are prepared meanwhile.
        """
        store = SampleStore(self.root, self.dataset, "val")
        times = repeat(None) if repeated else repeat(None, 1)
        rows = chain.from_iterable(self._validation_rows(store, batch_size) for _ in times)
        return self._batches(store, rows, self._part(batch_size)[1])

    def pictures(self, split: str, samples: range, batch_size: int) -> Generator[Batch, None, None]:
        """These samples of a split, in order and whatever the rank, each picture's centre crop as it is."""
        return self.picture_spans(
            split, (samples[i : i + batch_size] for i in range(0, len(samples), batch_size)), batch_size
        )

    def picture_spans(self, split: str, spans: Iterable[range], batch_size: int) -> Generator[Batch, None, None]:
        """The same of each span of samples; none is longer than batch_size."""
        store = SampleStore(self.root, self.dataset, split)
        rows = (validation_inputs(store, self.crop_margin, self.mean, np.array(span, np.int64)) for span in spans)
        return self._batches(store, rows, batch_size)

    def _train_inputs(self, store: SampleStore) -> TrainInputs:
        return TrainInputs(
            store,
            self.config.augment,
            self.dataset.colour,
            seed=self.seed,
            crop_margin=self.crop_margin,
            mean=self.mean,
            shuffle=self.shuffle,
        )

    def _validation_rows(self, store: SampleStore, batch_size: int) -> Iterator[SampleInputs]:
        for start in range(0, len(store), batch_size):
            mine, rows_each = self._part(min(batch_size, len(store) - start))
            samples = np.minimum(np.arange(rows_each) + start + mine.start, len(store) - 1)
            rows = validation_inputs(store, self.crop_margin, self.mean, samples)
            yield rows._replace(weights=_weights(mine, rows_each, 1.0))

    def _part(self, batch_size: int) -> tuple[slice, int]:
        """Which of a batch's rows are this rank's, and how many rows each rank takes."""
        return rank_slice(batch_size, self.rank, self.world_size), -(-batch_size // self.world_size)

    def _batches(
        self, store: SampleStore, rows: Iterator[SampleInputs], batch_size: int, varied: bool = False
    ) -> Generator[Batch, None, None]:
        """Batches of these rows, by threads of our own where crops are all that is made, else by the DALI graph."""
        most = most_damaged(self.config.most_damaged, len(store) // self.world_size)
        replacements = Replacements(store, most, self._report)
        rows = asked_ahead(
            rows, self._ask(store, varied), batches=self.config.prefetch, most_bytes=self.config.read_ahead * 10**6
        )
        if self._only_crops(varied):
            reader = square_reader(self.dataset.store, self.config.decoding)
            for pictures, row in crop_batches(store, reader, rows, replacements, self._crop_config(batch_size)):
                yield self._batch(self._upload(pictures, row.mirror) if self.device == "gpu" else pictures, row)
            return
        inputs = partial(graph_inputs, store, aspect=self.config.augment.aspect)
        build = partial(self._graph, batch_size=batch_size, varied=varied)
        on_gpu = self.device == "gpu"
        for pictures, row in graph_batches(store, rows, replacements, inputs, build, on_gpu):
            tensor = torch.from_dlpack(pictures.as_tensor())
            if not on_gpu:
                yield self._batch(tensor, row)
            elif self.lends:
                try:
                    yield self._batch(tensor, row)
                finally:
                    self._hold(tensor)
            else:
                copy = tensor.clone()
                self._hold(tensor)
                yield self._batch(copy, row)

    def _ask(self, store: SampleStore, varied: bool) -> Ask:
        """Who is told of the samples that will be needed."""
        if varied and self.shuffle.by_block(len(store)):
            return ask_for_blocks(store, self.seed, self.shuffle)
        return ask_for_samples(store)

    def _report(self, place: str) -> None:
        self.damaged.append(place)

    def _only_crops(self, varied: bool) -> bool:
        """Whether the pictures are crops of stored squares, neither scaled nor jittered, that the CPU can make.

        For a GPU it makes those that need no decoder, and no arithmetic.
        """
        augment, size = self.config.augment, self.dataset.size
        scales = self.resize not in (0, size) or (varied and augment.crop == "resized")
        by_cpu = self.device == "cpu" or (self.dataset.store == "raw" and self.output == "uint8")
        return by_cpu and size > 0 and not scales and not (varied and augment.jitters)

    def _crop_config(self, batch_size: int) -> CropConfig:
        return CropConfig(
            batch_size=batch_size,
            side=self.dataset.size,
            crop=self.config.crop,
            output=self.output,
            std=self.std,
            threads=self.config.threads or self.cores,
            prefetch=self.config.prefetch,
            pinned=self.device == "gpu",
            mirrors=self.device == "cpu",
        )

    def _graph(self, feed: Any, batch_size: int, varied: bool) -> Pipeline:
        augment = self.config.augment
        return build_graph(
            feed,
            GraphConfig(
                batch_size=batch_size,
                size=self.dataset.size,
                crop=self.config.crop,
                output=self.output,
                decoder=self.decoder,
                device=self.device,
                threads=self.config.threads or decoding_threads(self.cores, self.decoder),
                prefetch=self.config.prefetch,
                hw_decoder_load=self.config.hw_decoder_load,
                decoder_hint=self.config.decoder_hint,
                decoder_padding=self.config.decoder_padding,
                resize=self.resize,
                resized=varied and augment.crop == "resized",
                jitters=varied and augment.jitters,
                raw=self.dataset.store == "raw",
                std=self.std,
                fast=self.config.decoding == "fast",
                no_copy=True,
            ),
        )

    def _batch(self, pictures: torch.Tensor, rows: SampleInputs) -> Batch:
        columns = rows.offset, rows.scale, rows.labels, rows.positions, rows.weights
        if pictures.is_cuda:
            return Batch(pictures, *copied_at_once(columns, pictures.device))
        return Batch(pictures, *(torch.from_numpy(np.array(column)) for column in columns))

    def _upload(self, pictures: torch.Tensor, mirror: NDArray[np.int32]) -> torch.Tensor:
        """Pictures in pinned memory, copied to the GPU and mirrored there, beside what it computes; torch's stream
        waits for that."""
        computing = torch.cuda.current_stream()
        with torch.cuda.stream(self._uploading):
            copy = pictures.to("cuda", non_blocking=True)
            self._hold(pictures)
            copy = mirrored(copy, *copied_at_once([mirror], copy.device))
        computing.wait_stream(self._uploading)
        copy.record_stream(computing)
        return copy

    @cached_property
    def _uploading(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()

    def _hold(self, tensor: torch.Tensor) -> None:
        """Keep what the current stream reads until it has done so: DALI's memory, and ours, is used again at once."""
        made = torch.cuda.Event()
        made.record()
        self._held.append((tensor, made))
        while self._held[0][1].query() and len(self._held) > 1:
            self._held.popleft()


def _weights(mine: slice, rows: int, each: float) -> NDArray[np.float32]:
    """The weight of each of a rank's rows: `each`, and 0 for the padding beyond its own part."""
    return np.where(np.arange(rows) < mine.stop - mine.start, each, 0).astype(np.float32)


def graph_inputs(store: SampleStore, rows: SampleInputs, aspect: tuple[float, float] = (1.0, 1.0)) -> tuple[Any, ...]:
    """What the graph takes for a batch: JPEG files or squares of pixels, crop corners or regions, mirror flags, RGB to
    take off, jitter.

    aspect: of resized crops; the pictures' own sizes decide which regions are within it.
    """
    files = store.read(rows.locations)
    if store.kind == "raw":
        files = [npy_square(file, store.size) for file in files]
    place = regions(rows.region, picture_sizes(files), aspect) if rows.region.size else rows.corner
    jitter = [rows.jitter] if rows.jitter.size else []
    return files, place, rows.mirror, rows.subtract, *jitter


def choose_device(device: Literal["auto", "cpu", "gpu"]) -> Device:
    """auto is the GPU where there is one; InputError when a GPU is asked for and there is none."""
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("device is gpu, expected a CUDA GPU and its driver, found none; use --device cpu")
    return "gpu" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _output(config: DataConfig, device: Device, store: Store) -> Output:
    if config.output != "auto":
        return config.output
    return "float16" if device == "gpu" and store == "jpeg" else "uint8"


def _decoder(config: DataConfig, device: Device, store: Store) -> Device:
    if store == "raw" and config.decoding == "fast":
        raise InputError("decoding is fast, expected exact: raw shards are decoded; set --data.decoding exact")
    if config.decoder == "gpu" and device == "cpu":
        raise InputError("decoder is gpu, expected cpu or auto where pictures stay on the CPU; set --data.decoder cpu")
    if config.decoder != "auto":
        return config.decoder
    if device == "cpu" or store != "jpeg":
        return "cpu"
    options = arithmetic_options(fast=config.decoding == "fast") | gpu_decoder_options(config)
    return "gpu" if gpu_decoder_works(torch.cuda.current_device(), options) else "cpu"
