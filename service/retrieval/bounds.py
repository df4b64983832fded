"""Squared distances estimated from below, so that what is beyond a limit is so beyond rounding."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Some rows, as an engine sees them."""

    values: Tensor  # (n, width) float32
    norms: Tensor  # (n,) float32: squared lengths


@dataclass(frozen=True)
class Queries:
    """What is looked for, as an engine sees it."""

    values: Tensor  # (Q, width) float32
    norms: Float  # (Q,): squared lengths
    slack: float  # of lower bounds
    k: int

    def thresholds(self, squares: Float) -> Tensor:
        """(Q, 1) float32: what bounds of rows at squared distances of at most (Q,) do not exceed; rounded up."""
        least = (squares - (1 - self.slack) * self.norms).astype(np.float32)
        return torch.from_numpy(np.nextafter(least, np.float32(np.inf)))[:, None]


class LowerBounds(Protocol):
    """An engine: lower bounds on squared distances."""

    def __call__(self, queries: Queries, block: Block, thresholds: Tensor) -> Tensor:
        """(Q, n) float32: b where b + (1 - slack) |q|^2 is at most the squared distance of q and x, or infinity where
        the block has nearer rows to q, or none below its threshold (Q, 1).
        """
        ...


def slack_of(width: int) -> float:
    """e, by which e (|q|^2 + |x|^2) exceeds the error of a bound, for rows of `width` values.

    With u = 2^-24 and g(n) = n u / (1 - n u), a sum of n products in float32 errs by at most g(n) times the sum of
    their absolute values, in whatever order it is made (Higham, Accuracy and Stability of Numerical Algorithms, section
    3.1); by Cauchy that sum is at most |q| |x|, and 2 |q| |x| <= |q|^2 + |x|^2. So |x|^2 errs by g(n + 4) |x|^2, and by
    two factors more as it is scaled; the product that starts from it errs by g(n + 2) (|x|^2 + 2 |q| |x|): in all by
    less than g(n + 8) (3 |x|^2 + |q|^2). What is left of 3 g(n + 8) |q|^2 is more than float64's errors in distances.
    Values of float16 and their products neither overflow nor underflow in float32.
    """
    n = (width + 8) * 2.0**-24
    return 3 * n / (1 - n)


def product_bounds(queries: Queries, block: Block, thresholds: Tensor) -> Tensor:
    """Lower bounds of all pairs, by one matrix product."""
    return torch.addmm((1 - queries.slack) * block.norms, queries.values, block.values.T, alpha=-2)
