"""The ten classes of generated pictures: textures that first-layer filters can learn.

Stripes in three directions, diamonds, rings, rays, dots, a mosaic, a labyrinth and clouds, with a random phase, scale
and rotation in each picture. No class is the mirror image of another, because training mirrors pictures.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.randomness import SYNTHETIC, random_words, uniform

# (height, width) float64; not typed so, because type checkers, unlike numpy, widen a product with a Python float.
Field = NDArray[np.floating]

_DRAWS = 4096  # words for shapes and colours; no picture asks for more
GRAIN_SIDE = 256  # pixels; a larger picture repeats its tile of grain
_TABLE_SIDE = 16  # cells, a power of two; a larger lattice repeats
_TABLE_MASK = _TABLE_SIDE - 1
_WORDS = _DRAWS + GRAIN_SIDE * GRAIN_SIDE * 3 // 8


class RandomDraws:
    """The draws of one picture, handed out in the order in which they are asked for."""

    def __init__(self, seed: int, stream: int, index: int) -> None:
        words = random_words(seed, SYNTHETIC, index, 1, _WORDS, stream)[0]
        self._uniforms = uniform(words[:_DRAWS])
        self._next = 0
        self.grain = words[_DRAWS:].astype("<u8").view(np.uint8).reshape(3, GRAIN_SIDE, GRAIN_SIDE)

    def table(self, *shape: int) -> Field:
        """Uniform draws in [0, 1)."""
        start, self._next = self._next, self._next + math.prod(shape)
        return self._uniforms[start : self._next].reshape(shape)

    def between(self, low: float, high: float) -> float:
        """A uniform draw in [low, high)."""
        return low + (high - low) * float(self.table(1)[0])

    def sign(self) -> float:
        """-1 or 1."""
        return -1.0 if self.between(0, 1) < 0.5 else 1.0


class Plane(NamedTuple):
    """Coordinates of every pixel in units of the shorter side, the origin in the centre of the picture."""

    x: Field
    y: Field


def plane(height: int, width: int) -> Plane:
    """The coordinates of a height x width picture; pixels are square."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    shorter = min(height, width)
    return Plane((x - (width - 1) / 2) / shorter, (y - (height - 1) / 2) / shorter)


def rotated(at: Plane, degrees: float) -> Plane:
    """Coordinates along axes turned by `degrees`."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Plane(at.x * cosine + at.y * sine, at.y * cosine - at.x * sine)


def shifted(at: Plane, x: float, y: float) -> Plane:
    """Coordinates with the origin at (x, y)."""
    return Plane(at.x - x, at.y - y)


def warped(at: Plane, dice: RandomDraws) -> Plane:
    """Gently bent coordinates: no straight line stays quite straight."""
    bend, pace = dice.between(0, 0.015), dice.between(0.4, 1.2)
    shift_x = bend * np.sin(2 * math.pi * (pace * at.y + dice.between(0, 1)))
    shift_y = bend * np.sin(2 * math.pi * (pace * at.x + dice.between(0, 1)))
    return Plane(at.x + shift_x, at.y + shift_y)


def frequency(dice: RandomDraws) -> float:
    """Periods a shorter side, log-uniform: 9 to 21 pixels each where the shorter side is 128."""
    return 6 * (14 / 6) ** dice.between(0, 1)


def wave(phase: Field, dice: RandomDraws) -> Field:
    """A periodic profile in [0, 1], from a sine to nearly a square wave; phase in periods."""
    return hardened(np.sin(2 * math.pi * (phase + dice.between(0, 1))), dice)


def hardened(swing: Field, dice: RandomDraws) -> Field:
    """Values around zero squashed into [0, 1], softly or almost to a step; -1 and less is 0, 1 and more is 1."""
    hardness = 0.8 * 10 ** dice.between(0, 1)
    return 0.5 + 0.5 * np.tanh(hardness * np.clip(swing, -1, 1)) / math.tanh(hardness)


def stripes(at: Plane, dice: RandomDraws, degrees: float) -> Field:
    """Parallel stripes whose normal stands at about `degrees` from the x axis."""
    return wave(rotated(at, degrees + dice.between(-12, 12)).x * frequency(dice), dice)


def level_stripes(at: Plane, dice: RandomDraws) -> Field:
    return stripes(at, dice, 90)


def upright_stripes(at: Plane, dice: RandomDraws) -> Field:
    return stripes(at, dice, 0)


def slanted_stripes(at: Plane, dice: RandomDraws) -> Field:
    return stripes(at, dice, 45 * dice.sign())  # both slants in one class: each is the other one mirrored


def diamonds(at: Plane, dice: RandomDraws) -> Field:
    # A chequerboard on its corner; on its side it would have the spectrum of both slants.
    pace = 0.7 * frequency(dice)
    across = rotated(at, 45 + dice.between(-15, 15))
    columns = np.sin(2 * math.pi * (across.x * pace + dice.between(0, 1)))
    rows = np.sin(2 * math.pi * (across.y * pace + dice.between(0, 1)))
    return hardened(2 * columns * rows, dice)


def rings(at: Plane, dice: RandomDraws) -> Field:
    return wave(np.hypot(at.x, at.y) * frequency(dice), dice)


def rays(at: Plane, dice: RandomDraws) -> Field:
    count = 8 + int(dice.between(0, 13))  # whole, or there would be a seam
    return wave(np.arctan2(at.y, at.x) * (count / (2 * math.pi)), dice)


def dots(at: Plane, dice: RandomDraws) -> Field:
    distance, _ = nearest_site(at, dice, pace=0.6 * frequency(dice), disorder=dice.between(0.3, 0.7))
    return hardened(8 * (dice.between(0.22, 0.3) - distance), dice)


def mosaic(at: Plane, dice: RandomDraws) -> Field:
    _, shade = nearest_site(at, dice, pace=0.55 * frequency(dice), disorder=1.0)
    return shade


def clouds(at: Plane, dice: RandomDraws) -> Field:
    return hardened(isotropic_noise(at, dice, 1.2, 3.0, waves=10), dice)


def labyrinth(at: Plane, dice: RandomDraws) -> Field:
    pace = frequency(dice)
    return hardened(1.5 * isotropic_noise(at, dice, 0.92 * pace, 1.08 * pace, waves=12), dice)


class Texture(NamedTuple):
    """A class: its folder's name, its words and the field in [0, 1] that makes it."""

    wnid: str
    words: str
    draw: Callable[[Plane, RandomDraws], Field]


# Ids have the form of WordNet's, and begin with n9 because none of WordNet's does.
TEXTURES: Final = tuple(
    Texture(f"n9000{position:04}", draw.__name__.replace("_", " "), draw)
    for position, draw in enumerate(
        (level_stripes, upright_stripes, slanted_stripes, diamonds, rings, rays, dots, mosaic, labyrinth, clouds)
    )
)


def nearest_site(at: Plane, dice: RandomDraws, pace: float, disorder: float) -> tuple[Field, Field]:
    """Distance in cells to the nearest site, and that site's shade in [0, 1].

    Each cell of a turned square lattice, `pace` a shorter side, has one site: in its centre where disorder is 0,
    anywhere in it where disorder is 1.
    """
    offsets = 0.5 + disorder * (dice.table(2, _TABLE_SIDE, _TABLE_SIDE) - 0.5)
    shades = dice.table(_TABLE_SIDE, _TABLE_SIDE)
    grid = rotated(at, dice.between(-90, 90))
    u, v = grid.x * pace, grid.y * pace
    column, row = np.floor(u), np.floor(v)
    best, shade = np.full_like(u, np.inf), np.zeros_like(u)
    for step in np.ndindex(3, 3):
        i, j = column + (step[0] - 1), row + (step[1] - 1)
        cell = (i.astype(np.int32) & _TABLE_MASK) * _TABLE_SIDE + (j.astype(np.int32) & _TABLE_MASK)
        squared = (i + offsets[0].ravel()[cell] - u) ** 2 + (j + offsets[1].ravel()[cell] - v) ** 2
        closer = squared < best
        best, shade = np.where(closer, squared, best), np.where(closer, shades.ravel()[cell], shade)
    return np.sqrt(best), shade


def isotropic_noise(at: Plane, dice: RandomDraws, low: float, high: float, waves: int) -> Field:
    """Noise of unit variance with low to high periods a shorter side, in every direction alike."""
    total = np.zeros_like(at.x)
    for wave_index, (angle, pace, phase) in enumerate(dice.table(waves, 3)):
        direction = rotated(at, 180 * (wave_index + float(angle)) / waves).x
        total += np.cos(2 * math.pi * (direction * (low + (high - low) * pace) + phase))
    return math.sqrt(2 / waves) * total
