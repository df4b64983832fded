"""Which pictures, and how they reach the network: the options of loading."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pictures are and how they reach the network."""

    shards: Path = Path("shards")
    """Folder that python -m pipeline.shard made."""
    crop: int = 224
    """Side of the square crop, pixels; section 4.1 takes 224 of 256."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training pictures are varied."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEG is decoded; auto: on the GPU where pictures go there and a trial in a subprocess succeeds."""
    output: Literal["auto", "uint8", "float16", "float32"] = "auto"
    """What DALI hands over: uint8 pixels (auto on a CPU), or float16 or float32 less mean and shift (auto on a GPU)."""
    threads: int = 0
    """DALI's CPU threads; 0 means one for each core this process may use."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""

    def __post_init__(self) -> None:
        if self.crop < 1 or self.threads < 0 or self.prefetch < 1:
            raise InputError(
                f"crop {self.crop}, threads {self.threads}, prefetch {self.prefetch}: "
                "expected at least 1 pixel, 0 threads and 1 batch"
            )
