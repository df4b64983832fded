"""The views of a picture that a network is tested on: its centre, or the paper's ten (section 4.1)."""

from typing import Literal

import torch
from torch import Tensor

Views = Literal[1, 10]


def view_batch(squares: Tensor, crop: int, views: Views) -> Tensor:
    """(B, side, side, 3) pictures -> (B * views, crop, crop, 3), a picture's views one after the other.

    One view is the centre. Ten are the four corners and the centre, then their mirrors.
    """
    corners = view_corners(squares.shape[1], crop)
    crops = [
        squares[:, top : top + crop, left : left + crop] for top, left in (corners if views == 10 else corners[-1:])
    ]
    mirrored = [each.flip(2) for each in crops] if views == 10 else []
    return torch.stack([*crops, *mirrored], dim=1).flatten(0, 1)


def view_corners(side: int, crop: int) -> list[tuple[int, int]]:
    """Top and left of the five crops, pixels: the four corners and, last, the centre."""
    far, middle = side - crop, (side - crop) // 2
    return [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]


def mean_probabilities(logits: Tensor, views: Views) -> Tensor:
    """(B * views, classes) logits -> (B, classes) float64: softmax, averaged over each picture's views."""
    return logits.double().softmax(1).unflatten(0, (-1, views)).mean(1)
