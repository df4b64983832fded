"""How a training position's picture is varied: a pure function of (seed, position).

The paper's crop, mirror and colour shift (sections 2 and 4.1); random-resized crops and colour jitter, as torchvision
means them. Each kind draws from bits of its own, so that an option changes no other's draws.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from pipeline.manifest import ColourStatistics
from pipeline.randomness import AUGMENT, COLOUR_JITTER, RESIZED_CROP, normal, random_words, uniform

TRIES: Final = 10  # at a region that fits into the picture; torchvision's RandomResizedCrop has as many
REGION_DRAWS: Final = 2 * TRIES + 2  # the height and width of each try, and where the one that fits is put
JITTER_DRAWS: Final = 4  # brightness, contrast, saturation, hue


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures are varied; the defaults are the paper's text."""

    crop: Literal["random", "centre", "resized"] = "random"
    """random: a square of the crop's side anywhere in the picture, section 4.1; centre: the one in the middle, as in
    validation; resized: a region of random area and aspect ratio, scaled to the crop (Inception's; torchvision's
    RandomResizedCrop)."""
    area: tuple[float, float] = (0.08, 1.0)
    """Of a resized crop's region: least and greatest share of the picture's area, uniform."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Of a resized crop's region: least and greatest width over height, its logarithm uniform."""
    mirror: bool = True
    """Mirror half of the pictures."""
    brightness: float = 0.0
    """Colour jitter: values times a factor from 1 - this to 1 + this, at least 0; uniform, as those below."""
    contrast: float = 0.0
    """Colour jitter: the distance of each value from mid-grey (128) times such a factor."""
    saturation: float = 0.0
    """Colour jitter: the distance of each pixel from its grey times such a factor."""
    hue: float = 0.0
    """Colour jitter: hues turned by up to this part of the circle either way, at most 0.5."""
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
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InputError(f"area is {self.area}, expected two shares of the picture, 0 < least <= greatest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1] < float("inf"):
            raise InputError(f"aspect is {self.aspect}, expected two ratios of width to height, 0 < least <= greatest")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise InputError(f"{name} is {value}, expected a number of at least 0, such as 0.4")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue is {self.hue}, expected a part of the circle from 0 to 0.5, such as 0.1")

    @property
    def jitters(self) -> bool:
        """Whether there is any colour jitter."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


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
    if config.crop == "centre":
        crop = np.full_like(crop, crop_margin // 2)
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


def region_draws(config: AugmentConfig, *, seed: int, first: int, count: int) -> NDArray[np.float64]:
    """(count, REGION_DRAWS): what the regions of resized crops are made from, before the pictures' sizes are known.

    The heights of the tries, then their widths, both as parts of the square root of the picture's area; then two
    uniform numbers, for the region's row and column. `regions` makes pixels of them.
    """
    draws = uniform(random_words(seed, RESIZED_CROP, first, count, REGION_DRAWS))
    area = _between(draws[:, 0 : 2 * TRIES : 2], *config.area)
    aspect = np.exp(_between(draws[:, 1 : 2 * TRIES : 2], *np.log(config.aspect)))
    return np.concatenate([np.sqrt(area / aspect), np.sqrt(area * aspect), draws[:, 2 * TRIES :]], axis=1)


def regions(
    draws: NDArray[np.float64], sizes: NDArray[np.int64], aspect: tuple[float, float] = (3 / 4, 4 / 3)
) -> NDArray[np.int32]:
    """(n, 4): top, left, height and width of each region in pixels, by torchvision's rule.

    The first try whose rounded sides fit into the picture; where none does, the largest central region whose aspect
    ratio is within `aspect`. sizes: (n, 2) height and width of the pictures, pixels.
    """
    tries = draws[:, : 2 * TRIES].reshape(-1, 2, TRIES)
    sides = np.rint(tries * np.sqrt(sizes.prod(axis=1))[:, None, None]).astype(np.int64)
    fits = ((sides > 0) & (sides <= sizes[:, :, None])).all(axis=1)  # (n, TRIES)
    found = fits.any(axis=1)[:, None]
    chosen = np.take_along_axis(sides, fits.argmax(axis=1)[:, None, None], axis=2)[:, :, 0]
    chosen = np.where(found, chosen, _largest(sizes, aspect))
    spare = sizes - chosen
    corner = np.where(found, (draws[:, 2 * TRIES :] * (spare + 1)).astype(np.int64), spare // 2)
    return np.concatenate([corner, chosen], axis=1).astype(np.int32)


def jitter_draws(config: AugmentConfig, *, seed: int, first: int, count: int) -> NDArray[np.float32]:
    """(count, JITTER_DRAWS): factors of brightness, contrast and saturation, and the turn of hues in degrees."""
    draws = uniform(random_words(seed, COLOUR_JITTER, first, count, JITTER_DRAWS))
    spread = np.array([config.brightness, config.contrast, config.saturation])
    factors = _between(draws[:, :3], np.maximum(1 - spread, 0), 1 + spread)
    turn = _between(draws[:, 3:], -360 * config.hue, 360 * config.hue)
    return np.concatenate([factors, turn], axis=1).astype(np.float32)


def _between(draws: NDArray[np.float64], least: Any, greatest: Any) -> NDArray[np.float64]:
    """Draws of [0, 1), stretched to [least, greatest)."""
    return least + (greatest - least) * draws


def _largest(sizes: NDArray[np.int64], aspect: tuple[float, float]) -> NDArray[np.int64]:
    """(n, 2): the sides of the largest region of each picture whose aspect ratio is within `aspect`."""
    height, width = sizes.T
    low, high = width < aspect[0] * height, width > aspect[1] * height
    within = np.where(low, np.rint(width / aspect[0]), height), np.where(high, np.rint(height * aspect[1]), width)
    return np.stack(within, axis=1).astype(np.int64)
