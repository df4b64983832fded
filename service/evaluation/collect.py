"""Networks on the pictures of a split -> what each made of every picture: each counted once, for any ranks and batch.

The work is cut into chunks of one shape at fixed places of the split, and a rank takes a run of them; so a picture's
result does not depend on ranks, batch or cores, and sums are made at the end, in the order of the pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.step import classes_ahead
from model.views import Views
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.order import rank_slice
from service.network.compute import map_chunks
from service.network.trained import LIKELIEST, TrainedNetwork, chunk_size, padded_chunks

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What R predictors made of N pictures. A predictor is a mixture of the networks: one alone, or a weighted mean."""

    labels: NDArray[np.int64]  # (N,) the true classes; -1 where a picture has none
    ahead: NDArray[np.int32]  # (R, N) classes at least as probable as the true one, it left out: 0 is right
    predicted: NDArray[np.int32]  # (R, N) the most probable class
    confidence: Float  # (R, N) its probability
    at_label: Float  # (R, N) the probability of the true class
    likeliest: NDArray[np.int32]  # (N, 5) the last predictor's most probable classes, best first; -1 beyond the last


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The pictures of all parts."""
    return Outcomes(
        labels=np.concatenate([part.labels for part in parts]),
        likeliest=np.concatenate([part.likeliest for part in parts]),
        ahead=np.concatenate([part.ahead for part in parts], axis=1),
        predicted=np.concatenate([part.predicted for part in parts], axis=1),
        confidence=np.concatenate([part.confidence for part in parts], axis=1),
        at_label=np.concatenate([part.at_label for part in parts], axis=1),
    )


def collect(
    networks: Sequence[TrainedNetwork],
    mixtures: Float,
    loader: BatchLoader,
    split: str,
    *,
    views: Views,
    batch_size: int,
    samples: range,
    share: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] = lambda count: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcomes:
    """What predictors make of this rank's share of some samples of a split.

    mixtures: (R, M) weights of the M networks in each of R predictors, rows that sum to 1. loader: of whole pictures.
    samples: start is a multiple of the chunk. share: rank and number of ranks. advance: called with counts of pictures.
    should_stop: asked after each chunk; if so, the rest is left out.
    """
    size, device = chunk_size(views), networks[0].device
    chunks = -(-len(samples) // size)
    mine = rank_slice(chunks, *share)
    own = range(samples.start + mine.start * size, min(samples.start + mine.stop * size, samples.stop))
    weights = torch.from_numpy(mixtures).to(device)

    def work(chunk: tuple[tuple[Tensor, ...], int]) -> Outcomes:
        (squares, labels), count = chunk
        members = torch.stack([network.probabilities(squares, views) for network in networks])  # (M, B, C)
        return _outcomes(torch.einsum("rm,mbc->rbc", weights, members), labels, count)

    batches = ((batch.pictures, batch.labels) for batch in loader.pictures(split, own, batch_size))
    parts: list[Outcomes] = [_empty(len(mixtures))]
    for part in map_chunks(work, padded_chunks(batches, size), device):
        parts.append(part)
        advance(len(part.labels))
        if should_stop():
            break
    return joined(parts)


def _outcomes(probabilities: Tensor, labels: Tensor, count: int) -> Outcomes:
    """Those of (R, B, C) probabilities, the first `count` of B."""
    at_label = probabilities.gather(2, labels.clamp_min(0)[None, :, None].expand(len(probabilities), -1, 1))
    ahead = classes_ahead(probabilities, at_label)
    confidence, predicted = probabilities.max(2)
    best = probabilities[-1].sort(dim=1, descending=True, stable=True).indices[:, :LIKELIEST]
    best = torch.nn.functional.pad(best, (0, LIKELIEST - best.shape[1]), value=-1)
    return Outcomes(
        labels=_host(labels[:count]),
        ahead=_host(ahead[:, :count].int()),
        predicted=_host(predicted[:, :count].int()),
        confidence=_host(confidence[:, :count]),
        at_label=_host(at_label[:, :count, 0]),
        likeliest=_host(best[:count].int()),
    )


def _host(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def _empty(predictors: int) -> Outcomes:
    none = np.zeros((predictors, 0))
    whole = none.astype(np.int32)
    return Outcomes(np.zeros(0, np.int64), whole, whole, none, none, np.zeros((0, LIKELIEST), np.int32))
