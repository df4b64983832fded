"""The DALI graph: JPEG files -> crops of their pixels on the device; it has no random operator and no state."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType
from PIL import Image

from pipeline.host.cpus import usable_cores
from pipeline.load.augment import JITTER_DRAWS
from pipeline.load.config import DataConfig

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
    threads: int = 0  # 0 means `decoding_threads` of all cores
    prefetch: int = 1  # batches ahead
    hw_decoder_load: float | None = None  # share that the GPU's JPEG engines decode; None: DALI's own choice
    decoder_hint: int | None = None  # pixels a side that those engines prepare for
    decoder_padding: int | None = None  # MB that each thread of the GPU's decoder takes at the start
    resize: int = 0  # shorter side that pictures are scaled to, pixels; 0: FULL_SIDE, and stored squares as they are
    resized: bool = False  # crops are regions of any size, scaled to the crop
    jitters: bool = False  # colours are jittered
    raw: bool = False  # the files are pixels, squares of `size`, not JPEG
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)  # divides RGB after the mean is off
    fast: bool = False  # the decoder's fast DCT and plain upsampling of chroma
    no_copy: bool = False  # whoever feeds keeps what it gave until its batch is out

    @property
    def side(self) -> int:
        """Side of the square that crops are taken from, pixels."""
        return self.resize or square_side(self.size)

    @property
    def margin(self) -> int:
        """Pixels by which a picture exceeds the crop: offsets are 0 .. margin."""
        return self.side - self.crop


def build_graph(feed: Callable[[], tuple[Any, ...]], config: GraphConfig) -> Pipeline:
    """A graph that runs over what `feed` returns until StopIteration.

    feed: a batch's files, pixels with the layout HWC; crop corners (n, 2) float32, or where crops are resized their
    regions (n, 4) int32: top, left, height, width; mirror flags (n,) int32; RGB to take off (n, 3) float32; and where
    colours are jittered, (n, 4) float32 as `augment.jitter_draws` has them.
    """
    graph = Pipeline(
        batch_size=config.batch_size,
        num_threads=config.threads or decoding_threads(usable_cores(), config.decoder),
        device_id=None if config.device == "cpu" else torch.cuda.current_device(),
        prefetch_queue_depth=config.prefetch,
        seed=0,  # there is no random operator
    )
    with graph:
        inputs = 4 + config.jitters
        # No `layout`: DALI would make each sample's tensor anew to give it one.
        files, place, mirror, mean, *jitter = fn.external_source(
            feed, num_outputs=inputs, batch=True, no_copy=config.no_copy
        )
        pictures = _decoded(files, place if config.resized else None, config)
        pictures, position = _scaled(pictures, place, config)
        if config.jitters:
            brightness, contrast, saturation, hue = (jitter[0][i] for i in range(JITTER_DRAWS))
            pictures = fn.color_twist(
                pictures, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
            )
        pictures = fn.crop_mirror_normalize(
            pictures,
            crop=(config.crop, config.crop),
            crop_pos_y=position[0],
            crop_pos_x=position[1],
            mirror=mirror,
            mean=mean,
            std=list(config.std),
            dtype=DALI_TYPES[config.output],
            output_layout="HWC",
        )
        graph.set_outputs(pictures)
    graph.build()
    return graph


def _decoded(files: Any, region: Any, config: GraphConfig) -> Any:
    """The pixels on the device: whole pictures, or `region` of each.

    On the CPU the decoder skips what is outside the region, and gives the same pixels; on the GPU decoders of regions
    are not to be trusted (NVIDIA/nvImageCodec issue 55).
    """
    options: dict[str, Any] = {"output_type": DALIImageType.RGB, **arithmetic_options(fast=config.fast)}
    inside: dict[str, Any] = {}
    if region is not None:
        inside = {"start": region[0:2], "shape": region[2:4], "axes": (0, 1)}
    pictures: Any
    if config.raw:
        pictures = fn.slice(files, **inside) if inside else files
    elif config.decoder == "cpu":
        decode = fn.decoders.image_slice if inside else fn.decoders.image
        pictures = decode(files, device="cpu", **inside, **options)
    else:
        pictures = fn.decoders.image(files, device="mixed", **options, **gpu_decoder_options(config))
        return fn.slice(pictures, **inside) if inside else pictures
    return pictures.gpu() if config.device == "gpu" else pictures


def arithmetic_options(*, fast: bool) -> dict[str, bool]:
    """How exactly DALI's decoder computes; 2.4's on the CPU upsamples smoothly whatever is asked for."""
    return {"jpeg_fancy_upsampling": not fast, "use_fast_idct": fast}


def gpu_decoder_options(config: GraphConfig | DataConfig) -> dict[str, Any]:
    """What DALI's decoder is told on a GPU beside what the CPU's is: nothing where DALI chooses."""
    hint, padding = config.decoder_hint, config.decoder_padding and config.decoder_padding * 10**6
    told = {
        "hw_decoder_load": config.hw_decoder_load,
        "preallocate_width_hint": hint,
        "preallocate_height_hint": hint,
        "device_memory_padding": padding,
        "host_memory_padding": padding,
    }
    return {name: value for name, value in told.items() if value is not None}


def decoding_threads(cores: int, decoder: Device) -> int:
    """Threads that decode where nobody says how many: all cores, or beside a GPU's decoder all but the two that the
    training loop and the threads that check samples keep busy."""
    return max(1, cores - 2) if decoder == "gpu" else cores


def _scaled(pictures: Any, corner: Any, config: GraphConfig) -> tuple[Any, Any]:
    """The pictures at the size that crops are taken from, and where in them the crop lies, 0 to 1 in each direction."""
    scaling: dict[str, Any] = {"interp_type": DALIInterpType.INTERP_TRIANGULAR}
    if config.resized:  # the picture is the crop
        return fn.resize(pictures, size=(config.crop, config.crop), **scaling), (0.5, 0.5)
    if config.size and config.side == config.size:
        return pictures, corner / max(config.margin, 1)
    pictures = fn.resize(pictures, size=config.side, mode="not_smaller", **scaling)
    sides = pictures.shape(device="cpu")[:2]
    spare = fn.cast(dali_math.max(sides - config.crop, 1), dtype=DALIDataType.FLOAT)
    return pictures, (corner + (sides - config.side) // 2) / spare


def picture_sizes(files: Iterable[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """(n, 2) height and width in pixels of JPEG files, by their headers, or of pictures that are pixels already.

    1 x 1 for a file without a header of JPEG: its decoding will fail, and say so.
    """
    return np.array([_size(file) for file in files], np.int64)


def _size(file: NDArray[np.uint8]) -> tuple[int, int]:
    if file.ndim == 3:
        return file.shape[0], file.shape[1]
    with suppress(ValueError, KeyError):  # KeyError: chroma of a layout that simplejpeg has no name for
        height, width, *_ = simplejpeg.decode_jpeg_header(file, strict=False)
        return int(height), int(width)
    with suppress(OSError, SyntaxError), Image.open(io.BytesIO(file.tobytes())) as picture:
        return picture.height, picture.width
    return 1, 1


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
