from functools import reduce

import numpy as np

from pipeline.write.stats import PixelSums, add_picture, empty_sums, mean_and_colour, merge

SIZE = 8


def some_pictures(count: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    noise[..., 1] = noise[..., 0] // 2 + noise[..., 1] // 4  # channels that go together, unequally
    return noise


def sums_of(pictures: np.ndarray) -> PixelSums:
    sums = empty_sums(SIZE)
    for picture in pictures:
        add_picture(sums, picture)
    return sums


def test_statistics_equal_the_plain_computation() -> None:
    pictures = some_pictures(20)
    mean, colour = mean_and_colour(sums_of(pictures))
    pixels = pictures.reshape(-1, 3).astype(np.float64)
    np.testing.assert_array_equal(mean, pictures.mean(axis=0).astype(np.float32))
    # The reference rounds in float64 over 1,280 pixels.
    np.testing.assert_allclose(colour.mean, pixels.mean(axis=0), rtol=1e-12)
    vectors = np.array(colour.eigenvectors)
    covariance = vectors @ np.diag(colour.eigenvalues) @ vectors.T
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(np.square(colour.standard_deviations), colour.eigenvalues, rtol=1e-12)


def test_components_are_orthonormal_descending_and_of_fixed_sign() -> None:
    _, colour = mean_and_colour(sums_of(some_pictures(20)))
    vectors = np.array(colour.eigenvectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert list(colour.eigenvalues) == sorted(colour.eigenvalues, reverse=True)
    assert all(column[np.abs(column).argmax()] > 0 for column in vectors.T)


def test_any_partition_merged_in_any_order_gives_the_same_bits() -> None:
    pictures = some_pictures(12)
    whole_mean, whole_colour = mean_and_colour(sums_of(pictures))
    parts = [sums_of(pictures[9:]), sums_of(pictures[:2]), empty_sums(SIZE), sums_of(pictures[2:9])]
    mean, colour = mean_and_colour(reduce(merge, parts))
    assert mean.tobytes() == whole_mean.tobytes()
    assert colour == whole_colour


def test_extreme_values_do_not_overflow() -> None:
    white = np.full((2, SIZE, SIZE, 3), 255, np.uint8)
    mean, colour = mean_and_colour(sums_of(white))
    assert (mean == 255).all()
    assert colour.mean == (255.0, 255.0, 255.0)
    assert colour.eigenvalues == (0.0, 0.0, 0.0)


def test_more_pictures_than_fit_the_narrow_sums_are_exact() -> None:
    white = np.full((600, SIZE, SIZE, 3), 255, np.uint8)
    sums = sums_of(white)
    assert (mean_and_colour(sums)[0] == 255).all()
    assert (mean_and_colour(merge(sums, sums_of(white[:1])))[0] == 255).all()


def test_a_large_white_picture_does_not_overflow() -> None:
    size = 600  # several blocks, the last one not full
    sums = empty_sums(size)
    add_picture(sums, np.full((size, size, 3), 255, np.uint8))
    assert (sums.moments == size * size * 255**2).all()


def test_the_second_moment_is_exact() -> None:
    pictures = some_pictures(3)
    pixels = pictures.reshape(-1, 3).astype(object)  # Python's integers
    assert sums_of(pictures).moments.tolist() == (pixels.T @ pixels).tolist()


def test_eigenvalues_are_numpys_where_channels_are_alike_or_flat() -> None:
    noise = some_pictures(6)
    grey = np.repeat(noise[..., :1], 3, axis=3)
    flat = np.where(np.arange(3) == 1, noise, 77).astype(np.uint8)
    nearly_grey = grey.copy()
    nearly_grey[0, 0, 0, 0] ^= 1
    for pictures in (noise, grey, flat, nearly_grey, grey[:, :, :, ::-1] // 255):
        _, colour = mean_and_colour(sums_of(pictures))
        expected = np.linalg.eigvalsh(np.cov(pictures.reshape(-1, 3).astype(float).T, bias=True))[::-1]
        np.testing.assert_allclose(colour.eigenvalues, expected, atol=1e-11 * expected[0])
        vectors = np.array(colour.eigenvectors)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
