"""The first layer's kernels as one picture, as in figure 3, and how oriented and how coloured each of them is.

Both indexes are of a kernel as a linear filter, from its responses to gratings, and lie between 0 and 1 whatever the
kernel's scale. Where the paper's section 6.1 says "largely color-agnostic" and "largely color-specific", they measure.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

COLUMNS: Final = 16
GAP: Final = 1  # pixels between kernels, before enlarging
SPECTRUM: Final = 64  # side of the zero-padded spectrum: six samples for each of an 11 x 11 kernel's own


def filter_grid(kernels: torch.Tensor, columns: int = COLUMNS, enlarge: int = 4) -> NDArray[np.uint8]:
    """(n, 3, k, k) kernels -> (height, width, 3) RGB: rows of kernels, each stretched to its own range of 0..255."""
    rgb = kernels.detach().float().permute(0, 2, 3, 1)
    low, high = rgb.amin((1, 2, 3), keepdim=True), rgb.amax((1, 2, 3), keepdim=True)
    unit = ((rgb - low) / (high - low).clamp_min(1e-12) * 255).round().byte().numpy()
    side = kernels.shape[-1]
    rows = -(-len(unit) // columns)
    grid = np.full((rows * (side + GAP) + GAP, columns * (side + GAP) + GAP, 3), 255, np.uint8)
    for i, kernel in enumerate(unit):
        top, left = (GAP + (side + GAP) * place for place in divmod(i, columns))
        grid[top : top + side, left : left + side] = kernel
    return grid.repeat(enlarge, 0).repeat(enlarge, 1)


def filters_picture(towers: list[torch.Tensor], columns: int = COLUMNS, enlarge: int = 4) -> NDArray[np.uint8]:
    """The towers' grids one above the other, a grey line between them."""
    grids = [filter_grid(kernels, columns, enlarge) for kernels in towers]
    line = np.full((enlarge, grids[0].shape[1], 3), 128, np.uint8)
    return np.concatenate([part for grid in grids for part in (line, grid)][1:])


def orientation_index(kernels: torch.Tensor) -> torch.Tensor:
    """(n, 3, k, k) kernels -> (n,) float64: 0 for a blob, towards 1 for a long grating; NaN for zeros or not finite.

    |sum P(f) exp(2i theta(f))| / sum P(f), where P(f) is the kernel's power at the frequency f, of the three colours
    together, and theta(f) the direction of f: the energy of its responses to gratings of every direction and period.
    That is 1 - circular variance (Ringach, Shapley and Hawken 2002, J. Neurosci. 22:5639), with the response's energy
    where they have a neuron's firing rate. The double angle, because a grating turned by half a turn is the same.
    """
    assert kernels.shape[-1] <= SPECTRUM
    power = torch.fft.fft2(_to_unit_range(kernels), s=(SPECTRUM, SPECTRUM)).abs().square().sum(1)  # (n, 64, 64)
    frequency = torch.fft.fftfreq(SPECTRUM, dtype=torch.float64)  # cycles a pixel, -0.5 to 0.5
    down, right = torch.meshgrid(frequency, frequency, indexing="ij")
    radius = torch.hypot(down, right)
    # Without a grey picture, which has no direction, and without the corners beyond the Nyquist circle: there a square
    # grid of pixels has frequencies along its diagonals only.
    power = power * ((radius > 0) & (radius < 0.5))
    turns = torch.polar(torch.ones_like(radius), 2 * torch.atan2(down, right))
    return (power * turns).sum((1, 2)).abs() / power.sum((1, 2))


def colour_index(kernels: torch.Tensor) -> torch.Tensor:
    """(n, 3, k, k) kernels -> (n,) float64: 0 sees luminance only, 1 colour only; NaN for zeros or not finite.

    The share of the kernel's energy that is chromatic: 1 - |its part along (1, 1, 1) / sqrt(3)|^2 / |kernel|^2. For a
    linear filter this is the share of the energy of its responses to gratings of colours whose R, G and B sum to
    nothing, in all its responses to gratings of unit contrast; white noise has 2/3. Johnson, Hawken and Shapley (2001,
    Nature Neuroscience 4:409) class neurons by their responses to equiluminant gratings against those to luminance
    gratings; this index is in their spirit, with R, G and B in place of a monkey's cones.
    """
    unit = _to_unit_range(kernels)
    luminance = unit.sum(1).square().sum((1, 2)) / 3
    return (1 - luminance / unit.square().sum((1, 2, 3))).clamp(0, 1)  # which rounding may leave by 1e-16


def _to_unit_range(kernels: torch.Tensor) -> torch.Tensor:
    """float64, each kernel's largest value 1, so that no square under- or overflows; a kernel that has none is NaN."""
    kernels = kernels.detach().double()
    return kernels / kernels.abs().amax((1, 2, 3), keepdim=True)
