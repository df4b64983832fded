"""conv1 kernels as one picture."""

import torch

from model.filters import filter_grid, filters_picture


def test_filters_keep_their_places_and_fill_their_range() -> None:
    kernels = torch.zeros(5, 3, 2, 2)
    kernels[4, 0, 0, 1] = 1.0  # red, upper right
    grid = filter_grid(kernels, columns=3, enlarge=1)
    assert grid.shape == (2 * 3 + 1, 3 * 3 + 1, 3)
    assert grid[4, 5].tolist() == [255, 0, 0] and grid[4, 4].tolist() == [0, 0, 0]
    assert (grid[0] == 255).all() and (grid[3] == 255).all()
    assert filter_grid(kernels, columns=3, enlarge=4).shape == (28, 40, 3)
    assert filters_picture([kernels, kernels], columns=3, enlarge=1).shape == (15, 10, 3)
