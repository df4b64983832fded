"""Weights of an ensemble's members: equal, or fitted to pictures that are then not counted."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

STEPS: Final = 1000
ENOUGH: Final = 1e-9  # a change of every weight by less ends the fit

Float = NDArray[np.float64]


def equal_weights(members: int) -> Float:
    """(M,) each the same."""
    return np.full(members, 1 / members)


def fitted_weights(at_label: Float) -> Float:
    """(M,) non-negative weights that sum to 1 and make the true classes of (M, N) probabilities likeliest.

    Expectation maximisation of sum log(w @ p), a concave problem; each step raises it (Dempster, Laird, Rubin 1977).
    """
    probabilities = np.maximum(at_label, np.finfo(np.float64).tiny)
    weights = equal_weights(len(probabilities))
    for _ in range(STEPS):
        parts = weights[:, None] * probabilities
        new = (parts / parts.sum(0)).mean(1)
        if np.abs(new - weights).max() < ENOUGH:
            break
        weights = new
    return weights
