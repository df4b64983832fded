"""Which pictures, and how they reach the network: the options of loading."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig
from pipeline.load.order import Shuffle
from pipeline.reading.place import CACHE_BYTES

PREFETCH: Final = 2  # batches ahead where nobody says
MOST_SIDE: Final = 2**16  # pixels; JPEG's own limit
MOST_PADDING: Final = 2000  # MB; DALI counts bytes in 32 bits
# Options of DataConfig that say where the pictures are and how fast they come, and change none.
PLACE_AND_SPEED: Final = (
    "shards",
    "threads",
    "prefetch",
    "hw_decoder_load",
    "decoder_hint",
    "decoder_padding",
    "tuned",
    "read_ahead",
    "cache",
    "cache_bytes",
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pictures are and how they reach the network."""

    shards: str | Path = "shards"
    """Folder that python -m pipeline.shard made, or its URL: s3://bucket/prefix, or any other of fsspec."""
    crop: int = 224
    """Side of the square crop, pixels; section 4.1 takes 224 of 256."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training pictures are varied."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEG is decoded; auto: on the GPU where pictures go there and a trial in a subprocess succeeds."""
    decoding: Literal["exact", "fast"] = "exact"
    """exact: libjpeg's integer DCT and smooth upsampling of chroma; fast: fast DCT, plain upsampling, other pixels."""
    most_damaged: float = 0.0001
    """Share of an epoch's samples that may be replaced because they are damaged, or 10 samples if that is more."""
    output: Literal["auto", "uint8", "float16", "float32"] = "auto"
    """What is handed over: uint8 pixels (auto on a CPU, and of raw shards), or float16 or float32 less mean and shift
    (float16 is auto on a GPU)."""
    threads: int = 0
    """CPU threads that decode; 0 means one for each core this process may use, less two where a GPU decodes too."""
    prefetch: int = 0
    """Batches that are prepared ahead; 0 means 2."""
    hw_decoder_load: float | None = None
    """Share of a batch that the GPU's JPEG engines decode, where it has them, 0 to 1; without: DALI's own choice."""
    decoder_hint: int | None = None
    """Side of pictures, pixels, for which the GPU's JPEG engines prepare memory at the start; without: DALI's own
    choice."""
    decoder_padding: int | None = None
    """Megabytes of memory that each thread of the GPU's decoder takes at the start, of the device and, twice, of the
    host; without: DALI's own choice."""
    tuned: bool = True
    """Let the worker take threads, prefetch and the GPU's decoder's options that are not given from tuned.json, which
    `pipeline.bench DIR --tune` saves beside the data set."""

    shuffle: Literal["global", "block"] = "global"
    """global: any sample may come at any time; block: blocks of samples in random order, mixed within a window, for
    disks that read best in sequence and memory smaller than the data set."""
    block_samples: int = 256
    """Samples of a block, which follow one another in the shards and are read as one: 4 MB of 256-pixel JPEG."""
    window_blocks: int = 16
    """Blocks that are mixed at a time, which memory should hold: 80 MB of 256-pixel JPEG; a window of all samples is
    the global shuffle."""
    read_ahead: int = 64
    """Megabytes of samples that are asked for before they are needed, of the disk or the store."""
    cache: Path | None = None
    """Folder of this host for samples of a store; without: below $XDG_CACHE_HOME or ~/.cache."""
    cache_bytes: int = CACHE_BYTES
    """Bytes of samples in it at most, of all data sets together; less where its disk has less room."""

    def __post_init__(self) -> None:
        if self.crop < 1 or self.threads < 0 or self.prefetch < 0:
            raise InputError(
                f"crop {self.crop}, threads {self.threads}, prefetch {self.prefetch}: "
                "expected at least 1 pixel, 0 threads and 0 batches"
            )
        if not 0 <= self.most_damaged <= 1:
            raise InputError(f"most_damaged is {self.most_damaged}, expected 0 to 1; set --data.most-damaged")
        shuffle_of(self)
        if self.read_ahead < 0 or self.cache_bytes < 0:
            raise InputError(
                f"read_ahead {self.read_ahead}, cache_bytes {self.cache_bytes}: expected at least 0 of each; "
                "set --data.read-ahead and --data.cache-bytes"
            )
        room = {"decoder_hint": MOST_SIDE, "decoder_padding": MOST_PADDING}
        for name, most in room.items():
            if not 0 <= (value := getattr(self, name) or 0) <= most:
                raise InputError(f"{name} is {value}, expected 0 to {most:,}; set --data.{name.replace('_', '-')}")
        if isinstance(self.shards, Path) and (url := _flattened_url(self.shards)):
            raise InputError(f"shards is Path({str(self.shards)!r}), expected the URL as text: {url!r}")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise InputError(f"hw_decoder_load is {self.hw_decoder_load}, expected 0 to 1; set --data.hw-decoder-load")


def shuffle_of(config: DataConfig) -> Shuffle:
    """How far samples are mixed; InputError where the options are wrong."""
    return Shuffle(kind=config.shuffle, block_samples=config.block_samples, window_blocks=config.window_blocks)


def _flattened_url(path: Path) -> str:
    """The URL of which a Path was made, which takes one of its two slashes; empty where it was none."""
    found = re.match(r"([a-z][a-z0-9+.-]+):/(?!/)(.*)", str(path))
    return f"{found[1]}://{found[2]}" if found else ""
