"""Crop, mirror and colour shift of a training position: a pure function of (seed, position), sections 2 and 4.1."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.manifest import ColourStatistics
from pipeline.randomness import AUGMENT, normal, random_words, uniform


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures are varied; the defaults are the paper's text."""

    mirror: bool = True
    """Mirror half of the pictures."""
    colour: Literal["eigenvalues", "deviations", "off"] = "eigenvalues"
    """Shift RGB along the principal components by N(0, colour_std) times the eigenvalues (of values on 0..1; the
    paper's text), or times the standard deviations, the sum then divided by 1 + colour_std (the 2012 source)."""
    colour_std: float = 0.1
    """Standard deviation of the shift's random factors."""
    colour_epochs: float | None = None
    """The colour shift ends after this many epochs; 67 in the 2012 source."""

    def __post_init__(self) -> None:
        if self.colour_std < 0 or (self.colour_epochs or 0) < 0:
            raise InputError(
                f"colour_std is {self.colour_std} and colour_epochs {self.colour_epochs}, expected at least 0"
            )


class AugmentParameters(NamedTuple):
    """The random part of n positions."""

    crop: NDArray[np.int64]  # (n, 2): row and column of the crop's corner, 0 .. crop_margin
    mirror: NDArray[np.bool_]  # (n,)
    shift: NDArray[np.float32]  # (n, 3): added to every RGB pixel on 0..255
    scale: NDArray[np.float32]  # (n,): multiplies the picture after mean and shift


def augment_parameters(
    config: AugmentConfig,
    colour: ColourStatistics,
    *,
    seed: int,
    crop_margin: int,
    samples: int,
    first: int,
    count: int,
) -> AugmentParameters:
    """Draws for positions first .. first + count - 1 of a data set of `samples`.

    crop_margin: pixels by which a picture exceeds the crop.
    """
    words = random_words(seed, AUGMENT, first, count, 8)  # two for the crop, one for the mirror, four for the colour
    crop = (uniform(words[:, 0:2]) * (crop_margin + 1)).astype(np.int64)
    mirror = (words[:, 2] >> np.uint64(63)).astype(bool) & config.mirror
    epochs = np.arange(first, first + count) / samples
    until = np.inf if config.colour_epochs is None else config.colour_epochs
    on = (epochs < until) & (config.colour != "off")
    alpha = normal(words[:, 3:7])[:, :3] * config.colour_std * on[:, None]
    shift = (alpha * _shift_lengths(config, colour)) @ np.array(colour.eigenvectors).T
    scale = np.where(on & (config.colour == "deviations"), 1 / (1 + config.colour_std), 1.0)
    return AugmentParameters(crop, mirror, shift.astype(np.float32), scale.astype(np.float32))


def _shift_lengths(config: AugmentConfig, colour: ColourStatistics) -> NDArray[np.float64]:
    """(3,): the shift along each component at a factor of 1, on 0..255."""
    if config.colour == "deviations":
        return np.array(colour.standard_deviations)
    # The statistics are on 0..255. A variance on 0..1 is smaller by 255^2, and its shift back on 0..255 larger by 255.
    return np.array(colour.eigenvalues) / 255.0
