"""The first layer's kernels as one picture, as in figure 3: tower 0's above tower 1's."""

import numpy as np
import torch
from numpy.typing import NDArray

COLUMNS = 16
GAP = 1  # pixels between kernels, before enlarging


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
