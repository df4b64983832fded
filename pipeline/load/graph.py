"""The DALI graph: JPEG files -> crops of their pixels on the device; it has no random operator and no state."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

from pipeline.host.cpus import usable_cores

FULL_SIDE: Final = 256  # pixels: what pictures of original size are resized to, their shorter side; section 2


Device = Literal["cpu", "gpu"]
Output = Literal["uint8", "float16", "float32"]
DALI_TYPES: Final = {"uint8": DALIDataType.UINT8, "float16": DALIDataType.FLOAT16, "float32": DALIDataType.FLOAT}


def square_side(size: int) -> int:
    """Side of the square that crops are taken from, pixels; size: of the stored pictures, 0 where each has its own."""
    return size or FULL_SIDE


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """What the graph is given and gives."""

    batch_size: int
    size: int  # side of the stored pictures, pixels; 0 where each has its own
    crop: int  # side of the crops, pixels
    output: Output
    decoder: Device
    device: Device
    threads: int = 0  # 0 means one for each core
    prefetch: int = 1  # batches ahead

    @property
    def margin(self) -> int:
        """Pixels by which a picture exceeds the crop: offsets are 0 .. margin."""
        return square_side(self.size) - self.crop


def build_graph(feed: Callable[[], tuple[Any, ...]], config: GraphConfig) -> Pipeline:
    """A graph that runs over what `feed` returns until StopIteration.

    feed: a batch's JPEG files, crop corners (n, 2) float32, mirror flags (n,) int32, RGB to take off (n, 3) float32.
    """
    graph = Pipeline(
        batch_size=config.batch_size,
        num_threads=config.threads or usable_cores(),
        device_id=None if config.device == "cpu" else torch.cuda.current_device(),
        prefetch_queue_depth=config.prefetch,
        seed=0,  # there is no random operator
    )
    crop = config.crop
    with graph:
        jpegs, corner, mirror, mean = fn.external_source(feed, num_outputs=4, batch=True)
        pictures: Any = fn.decoders.image(
            jpegs,
            device="mixed" if config.decoder == "gpu" else "cpu",
            output_type=DALIImageType.RGB,
            jpeg_fancy_upsampling=True,
        )
        if config.decoder != config.device:
            pictures = pictures.gpu()
        if config.size:
            position = corner / max(config.margin, 1)
        else:
            pictures = fn.resize(
                pictures, size=FULL_SIDE, mode="not_smaller", interp_type=DALIInterpType.INTERP_TRIANGULAR
            )
            sides = pictures.shape(device="cpu")[:2]
            spare = fn.cast(dali_math.max(sides - crop, 1), dtype=DALIDataType.FLOAT)
            position = (corner + (sides - FULL_SIDE) // 2) / spare
        pictures = fn.crop_mirror_normalize(
            pictures,
            crop=(crop, crop),
            crop_pos_y=position[0],
            crop_pos_x=position[1],
            mirror=mirror,
            mean=mean,
            dtype=DALI_TYPES[config.output],
            output_layout="HWC",
        )
        graph.set_outputs(pictures)
    graph.build()
    return graph


def decode_squares(jpegs: Iterable[bytes], size: int) -> Iterator[NDArray[np.uint8]]:
    """JPEG files outside any data set, by the same graph on the CPU: (side, side, 3) RGB, the central square of each.

    size: pixels a side, as the files have it; 0 where each has its own, and `side` is FULL_SIDE.
    """
    files = iter(jpegs)
    nothing = np.zeros((1, 2), np.float32), np.zeros(1, np.int32), np.zeros((1, 3), np.float32)

    def feed() -> tuple[Any, ...]:
        return [np.frombuffer(next(files), np.uint8)], *nothing

    config = GraphConfig(batch_size=1, size=size, crop=square_side(size), output="uint8", decoder="cpu", device="cpu")
    graph = build_graph(feed, config)
    while True:
        try:
            pictures: Any = graph.run()[0]
        except StopIteration:
            return
        yield np.array(pictures.as_array()[0])
