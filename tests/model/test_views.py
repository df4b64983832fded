"""The ten views of a picture, and probabilities averaged over them, against numpy."""

import numpy as np
import torch

from model.views import mean_probabilities, view_batch


def test_ten_views_are_corners_and_centre_and_their_mirrors() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    views = view_batch(torch.from_numpy(pictures), 4, 10).numpy().reshape(2, 10, 4, 4, 3)
    places = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]
    for picture, found in zip(pictures, views, strict=True):
        crops = [picture[y : y + 4, x : x + 4] for y, x in places]
        for got, expected in zip(found, [*crops, *(crop[:, ::-1] for crop in crops)], strict=True):
            assert np.array_equal(got, expected)
    centre = view_batch(torch.from_numpy(pictures), 4, 1).numpy()
    assert np.array_equal(centre, pictures[:, 2:6, 2:6])


def test_probabilities_are_averaged_not_logits() -> None:
    logits = np.random.default_rng(1).normal(0, 5, (20, 6)).astype(np.float32)
    exponentials = np.exp(logits.astype(np.float64))
    expected = (exponentials / exponentials.sum(1, keepdims=True)).reshape(2, 10, 6).mean(1)
    found = mean_probabilities(torch.from_numpy(logits), 10).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
