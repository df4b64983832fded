"""Dropout masks as a pure function of (seed, layer, position, unit): independent of ranks, layout, device and batch."""

from typing import TypeVar

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF
Bits = TypeVar("Bits", int, Tensor)


def _mix(x: Bits) -> Bits:
    """A bijection of 32-bit integers, held in 64 bits, that flips each output bit about half of the time.

    The multiply-xorshift constants are Chris Wellons' "lowbias32" (nullprogram.com/blog/2018/07/31).
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW_32
    return x ^ (x >> 16)


def _materialised(x: Tensor) -> Tensor:
    """x, which the compiler then stores; otherwise it would inline x's expression at each use.

    `_mix` uses its argument eight times, so two nested calls would make 64 copies, and three 512.
    """
    return x.as_strided(x.shape, x.stride())


def keep_mask(seed: int, layer: int, positions: Tensor, first_unit: int, units: int, drop: float) -> Tensor:
    """Which units to keep, (B, units) bool: the units first_unit .. first_unit + units - 1 of the whole layer.

    positions: (B,) int64, the pictures' training positions. Each unit is dropped with probability `drop`.
    """
    key = _mix(_mix(_mix(seed & _LOW_32) ^ (seed >> 32)) ^ layer)
    row = _materialised(_mix(_materialised(_mix(positions & _LOW_32 ^ key)) ^ (positions >> 32)))  # (B,)
    unit = torch.arange(first_unit, first_unit + units, device=positions.device) * 0x9E3779B1 & _LOW_32
    return _mix(row[:, None] ^ unit[None, :]) >= round(drop * 2**32)


def at_test_time(x: Tensor, drop: float, inverted: bool) -> Tensor:
    """What stands in for units x that training drops, without a training pass; inverted: as `drop_units` has it."""
    return x if inverted or drop == 0 else x * (1 - drop)


def drop_units(
    x: Tensor,
    seed: int,
    layer: int,
    positions: Tensor | None,
    first_unit: int,
    drop: float,
    inverted: bool = True,
) -> Tensor:
    """Dropout of (B, units): units are dropped in a training pass, which has positions, and their means kept without.

    layer, first_unit: whose outputs x are, and which of them its first column is.
    inverted: divide what is kept by 1 - drop in training, as torch does; else multiply all by it at test time, as the
    paper does (section 4.2). What either can compute the other can with other weights, but from the same first weights
    and at the same rate they do not train alike: the inverted one's layers take inputs twice as large, of drop 0.5.
    """
    if positions is None:
        return at_test_time(x, drop, inverted)
    if drop == 0:
        return x
    keep = keep_mask(seed, layer, positions, first_unit, x.shape[1], drop)
    return torch.where(keep, x / (1 - drop) if inverted else x, 0)
