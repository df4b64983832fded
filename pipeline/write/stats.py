"""Mean image and RGB principal components of the training set, in one pass and exactly.

The sums are integers, so any split of the work over workers, merged in any order, gives the same bits.
"""

import math
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest import ColourStatistics, Triple

_MOST_RECENT: Final = 257  # times 255 just fits 16 bits
_NEXT_TO_NOTHING: Final = 1e-60  # its square is still a number
_ROTATIONS: Final = ((0, 1), (0, 2), (1, 2)) * 12  # what lies off the diagonal is squared in each round; 6 are enough
_MOST_SUMMED: Final = 2**16  # times 255 * 255 just fits 32 bits


@dataclass(kw_only=True)
class PixelSums:
    """Sums over square RGB pictures; 64 bits hold them for 2e9 pictures of 256 x 256."""

    pictures: int
    pixels: NDArray[np.int64]  # (size, size, 3): sum of the values at each place, but for the recent pictures
    moments: NDArray[np.int64]  # (3, 3): sum of value times value over all pixels
    recent_pictures: int
    recent: NDArray[np.uint16]  # (3, size * size): sum over these pictures; narrow, since adding is bound by memory


def empty_sums(size: int) -> PixelSums:
    """The sums over no pictures of size x size."""
    return restore_sums(0, np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64))


def restore_sums(pictures: int, pixels: NDArray[np.int64], moments: NDArray[np.int64]) -> PixelSums:
    """The sums whose `pictures`, `pixels` and `moments` were stored."""
    size = len(pixels)
    recent = np.zeros((3, size * size), np.uint16)
    return PixelSums(pictures=pictures, pixels=pixels, moments=moments, recent_pictures=0, recent=recent)


def pixel_sums(sums: PixelSums) -> NDArray[np.int64]:
    """The sum of the values at each place, (size, size, 3), over all pictures."""
    return sums.pixels + sums.recent.T.reshape(sums.pixels.shape)


def add_picture(sums: PixelSums, picture: NDArray[np.uint8]) -> None:
    """Add one (size, size, 3) picture to `sums`, in place."""
    channels = picture.reshape(-1, 3).T.astype(np.uint16, order="C")  # (3, pixels)
    if sums.recent_pictures == _MOST_RECENT:
        sums.pixels, sums.recent_pictures = pixel_sums(sums), 0
        sums.recent[:] = 0
    sums.pictures += 1
    sums.recent_pictures += 1
    sums.recent += channels
    sums.moments += _moments(channels)


def merge(first: PixelSums, second: PixelSums) -> PixelSums:
    """The sums over the pictures of both."""
    pixels = pixel_sums(first) + pixel_sums(second)
    return restore_sums(first.pictures + second.pictures, pixels, first.moments + second.moments)


def mean_and_colour(sums: PixelSums) -> tuple[NDArray[np.float32], ColourStatistics]:
    """The mean image, (size, size, 3) on 0..255, and the colour statistics; `sums` must hold a picture."""
    pixels = pixel_sums(sums)
    mean_image = (pixels / sums.pictures).astype(np.float32)
    count = sums.pictures * pixels.shape[0] * pixels.shape[1]
    totals: list[int] = pixels.sum(axis=(0, 1)).tolist()
    return mean_image, _principal_components(count, totals, sums.moments.tolist())


def _moments(channels: NDArray[np.uint16]) -> NDArray[np.int64]:
    # No BLAS: it would need floats, and would start threads in every worker.
    moments = np.zeros((3, 3), np.int64)
    for start in range(0, channels.shape[1], _MOST_SUMMED):
        part = channels[:, start : start + _MOST_SUMMED].astype(np.uint32)
        for i in range(3):
            for j in range(i, 3):
                moments[i, j] += np.einsum("p,p->", part[i], part[j])
                moments[j, i] = moments[i, j]
    return moments


def _principal_components(count: int, totals: list[int], moments: list[list[int]]) -> ColourStatistics:
    # Python's integers: the covariance is exact up to its one division, so there is no cancellation.
    covariance = [[(count * moments[i][j] - totals[i] * totals[j]) / count**2 for j in range(3)] for i in range(3)]
    diagonal, vectors = _diagonalised(covariance)
    descending = np.argsort(-diagonal, kind="stable")
    eigenvalues = np.maximum(diagonal[descending], 0.0)  # rounding may put a zero variance just below zero
    eigenvectors = _fix_signs(vectors[:, descending])
    return ColourStatistics(
        mean=_triple(np.array([total / count for total in totals])),
        eigenvalues=_triple(eigenvalues),
        eigenvectors=(_triple(eigenvectors[0]), _triple(eigenvectors[1]), _triple(eigenvectors[2])),
        standard_deviations=_triple(np.sqrt(eigenvalues)),
    )


def _diagonalised(matrix: list[list[float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, (3,), and eigenvectors, (3, 3), a column each, of a symmetric matrix of 3 x 3.

    By Jacobi's rotations (Golub and Van Loan, Matrix Computations, section 8.5) in single sums, products and roots,
    which every processor rounds alike; LAPACK's results differ in the last digits between AVX2 and AVX-512.
    """
    rotated, vectors = np.array(matrix), np.eye(3)
    for p, q in _ROTATIONS:
        shared, apart = rotated[p, q], rotated[q, q] - rotated[p, p]
        if abs(shared) > _NEXT_TO_NOTHING:
            root = math.sqrt(apart * apart + 4 * shared * shared)
            tangent = 2 * shared / (apart + math.copysign(root, apart))
            cosine = 1 / math.sqrt(tangent * tangent + 1)
            sine = tangent * cosine
            for each in (rotated, rotated.T, vectors):  # columns, rows, columns
                each[:, p], each[:, q] = (
                    cosine * each[:, p] - sine * each[:, q],
                    sine * each[:, p] + cosine * each[:, q],
                )
    return rotated.diagonal(), vectors


def _fix_signs(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    # An eigenvector's sign is free: the component of largest magnitude shall be positive.
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(3)])


def _triple(values: NDArray[np.float64]) -> Triple:
    return cast(Triple, tuple(values.tolist()))
