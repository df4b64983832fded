"""A generated picture: a texture in a soft window, on a coloured ground, under clutter, slanting light and grain.

All of it varies from picture to picture, so that single pixels say next to nothing about the class. In float64, so that
pixels are the same on every processor: their sines and powers differ in the last bit, and 8 bits do not show it.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.textures import (
    GRAIN_SIDE,
    TEXTURES,
    Field,
    Plane,
    RandomDraws,
    isotropic_noise,
    plane,
    rotated,
    shifted,
    warped,
)

GENERATOR: Final = 2  # raise it whenever a picture changes, so that trees of an older version are recognised

Canvas = NDArray[np.floating]  # (3, height, width) float64 RGB on 0..1, cut off at the end; a plain colour is (3, 1, 1)


class Palette(NamedTuple):
    """The plain colours of one picture."""

    paper: Canvas
    ink: Canvas
    ground: Canvas
    far_ground: Canvas


def colour(dice: RandomDraws) -> Canvas:
    """A plain colour: any hue, from grey to vivid, neither black nor white."""
    hue, vividness, lightness = dice.between(0, 1), dice.between(0.1, 1) ** 0.7, dice.between(0.25, 0.75)
    circle = np.cos(2 * math.pi * (hue - np.arange(3) / 3))
    return (lightness + 0.38 * vividness * circle).reshape(3, 1, 1)


def palette(dice: RandomDraws) -> Palette:
    """Colours of one picture; ink stands out from paper by the contrast drawn here, in hue, in lightness or in both."""
    paper, ink, ground, far_ground = (colour(dice) for _ in range(4))
    contrast = dice.between(0.4, 1.0)  # distance in RGB
    middle, way = (paper + ink) / 2, ink - paper
    reach = way * (contrast / 2 / max(float(np.linalg.norm(way)), 1e-3))
    return Palette(middle - reach, middle + reach, ground, far_ground)


def blended(zero: Canvas, one: Canvas, share: Field) -> Canvas:
    """`zero` where share is 0, `one` where it is 1."""
    return zero + (one - zero) * share


def window(at: Plane, dice: RandomDraws) -> Field:
    """A soft-edged patch in [0, 1] around the middle of the picture: where the texture shows."""
    here = rotated(shifted(at, dice.between(-0.1, 0.1), dice.between(-0.1, 0.1)), dice.between(-90, 90))
    half_width, half_height = dice.between(0.35, 0.9), dice.between(0.35, 0.9)
    squareness = dice.between(2, 6)  # exponent: 2 is an ellipse
    radius = np.abs(here.x / half_width) ** squareness + np.abs(here.y / half_height) ** squareness
    return np.clip((1.3 - radius) * dice.between(1.5, 6), 0, 1)


def with_clutter(canvas: Canvas, at: Plane, dice: RandomDraws) -> Canvas:
    """The picture with up to four coloured ellipses and bars on it."""
    canvas = canvas.copy()
    for _ in range(int(dice.between(0, 5))):
        x, y, length, breadth = (dice.between(*span) for span in ((-0.6, 0.6), (-0.6, 0.6), (0.05, 0.22), (0.02, 0.09)))
        around = np.s_[slice_near(at.y[:, 0], y, length), slice_near(at.x[0], x, length)]
        here = rotated(shifted(Plane(at.x[around], at.y[around]), x, y), dice.between(-90, 90))
        along, across = (here.x / length) ** 2, (here.y / breadth) ** 2
        outside = along + across if dice.sign() > 0 else along**4 + across**4  # an ellipse or nearly a box
        patch = canvas[:, *around]
        patch[:] = blended(patch, colour(dice), dice.between(0.6, 1) * np.clip(6 * (1 - outside), 0, 1))
    return canvas


def slice_near(axis: Field, middle: float, length: float) -> slice:
    """The slice of an ascending axis that a shape of this half-length at `middle` can reach, at any rotation."""
    low, high = np.searchsorted(axis, [middle - 1.1 * length, middle + 1.1 * length])
    return slice(int(low), int(high))


def with_light(canvas: Canvas, at: Plane, dice: RandomDraws) -> Canvas:
    """The picture under light that falls off towards one side."""
    slope = rotated(at, dice.between(0, 360)).x * dice.between(0, 0.5)
    return canvas * (dice.between(0.85, 1.15) + slope)


def with_noise(canvas: Canvas, dice: RandomDraws) -> Canvas:
    """The picture with noise on every pixel and channel."""
    _, height, width = canvas.shape
    repeats = (1, -(-height // GRAIN_SIDE), -(-width // GRAIN_SIDE))
    grain = np.tile(dice.grain, repeats)[:, :height, :width] / 255 - 0.5
    return canvas + dice.between(0.05, 0.2) * grain


def picture(seed: int, split: int, label: int, index: int, sides: tuple[int, int]) -> NDArray[np.uint8]:
    """Picture `index` of class `label` in split 0 or 1: (height, width, 3) RGB, each side within `sides` pixels."""
    dice = RandomDraws(seed, stream=split * len(TEXTURES) + label, index=index)
    height, width = (round(dice.between(*sides)) for _ in range(2))
    flat = plane(height, width)
    bent = shifted(warped(flat, dice), dice.between(-0.15, 0.15), dice.between(-0.15, 0.15))
    colours = palette(dice)
    ground = blended(colours.ground, colours.far_ground, 0.5 + 0.4 * isotropic_noise(flat, dice, 0.3, 1.2, waves=4))
    texture = blended(colours.paper, colours.ink, TEXTURES[label].draw(bent, dice))
    canvas = blended(ground, texture, window(flat, dice))
    canvas = with_noise(with_light(with_clutter(canvas, flat, dice), flat, dice), dice)
    return np.ascontiguousarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))
