"""Networks, alone and together, measured on a split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.views import Views
from pipeline.command import InputError
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.graph import Device, square_side
from pipeline.manifest import load_dataset
from pipeline.reading.place import CACHE_BYTES, open_place
from service.evaluation.collect import Float, Outcomes, collect, joined
from service.evaluation.measures import (
    Bin,
    ClassErrors,
    Confusion,
    ErrorRate,
    calibration_bins,
    error_rate,
    errors_by_class,
    expected_calibration_error,
    worst_confusions,
)
from service.evaluation.mixture import equal_weights, fitted_weights
from service.network.trained import TrainedNetwork, chunk_size
from service.training.ranks import Ranks

CONFUSIONS = 20  # that are kept

Weighting = Literal["equal", "fit"]


@dataclass(frozen=True)
class Predictor:
    """A network, or an ensemble of several, and how it did."""

    name: str
    weights: tuple[float, ...]  # of the networks in it
    top1: ErrorRate
    top5: ErrorRate
    calibration_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """A split, measured; of several predictors the last is the one that counts, the others stand beside it."""

    split: str
    views: int
    samples: int
    held_out: int  # pictures that weights were fitted to, and that are not counted
    predictors: tuple[Predictor, ...]
    by_class: tuple[ClassErrors, ...]
    confusions: tuple[Confusion, ...]
    bins: tuple[Bin, ...]
    damaged: tuple[str, ...]  # samples that others stood in for
    likeliest: NDArray[np.int32]  # (samples, 5) the result's most probable classes, best first

    @property
    def result(self) -> Predictor:
        """The predictor that counts."""
        return self.predictors[-1]


def open_pictures(
    shards: str | Path, device: Device, threads: int = 0, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES
) -> BatchLoader:
    """A loader of whole pictures, which views are cut from; InputError where there is no data set."""
    side = square_side(load_dataset(open_place(shards, cache, cache_bytes)).size)
    data = DataConfig(shards=shards, crop=side, output="uint8", threads=threads, cache=cache, cache_bytes=cache_bytes)
    return BatchLoader(data, device=device)


def check_fits(network: TrainedNetwork, loader: BatchLoader) -> None:
    """InputError where a network was trained on other classes or another size of pictures than the loader's."""
    dataset, shards = loader.dataset, loader.config.shards
    theirs, ours = [each.id for each in network.classes], [each.id for each in dataset.classes]
    if len(theirs) != len(ours):
        raise InputError(
            f"{network.path} tells {len(theirs)} classes apart, expected the {len(ours)} of {shards}; "
            "give its own shards"
        )
    if any(theirs) and theirs != ours:
        first = next(f"{a} there, {b} here" for a, b in zip(theirs, ours, strict=True) if a != b)
        raise InputError(
            f"{network.path} was trained on other classes than those of {shards} ({first}); give its own shards"
        )
    if network.preprocessing.side != loader.config.crop:
        raise InputError(
            f"{network.path} was trained on pictures of {network.preprocessing.side} pixels, "
            f"expected the {loader.config.crop} of {shards}; shard with --size {network.preprocessing.size}"
        )


def check_split(loader: BatchLoader, split: str) -> int:
    """The samples of a split; InputError where there is none of that name."""
    splits = loader.dataset.splits
    if split not in splits:
        raise InputError(
            f"{loader.config.shards} has no split {split}, expected one of: {', '.join(splits)}; set --split"
        )
    return splits[split].samples


def short_names(networks: Sequence[TrainedNetwork]) -> list[str]:
    """What to call each network: its path, a run's name where that is enough."""
    paths = [str(network.path.parent.parent if network.path.is_dir() else network.path) for network in networks]
    return [
        path if paths.count(path) == 1 else str(network.path) for path, network in zip(paths, networks, strict=True)
    ]


class Stopped(Exception):
    """The evaluation was asked to end before it was done."""


class Evaluator:
    """Measures networks on a split, on all ranks together."""

    def __init__(
        self,
        networks: Sequence[TrainedNetwork],
        loader: BatchLoader,
        split: str,
        *,
        views: Views = 1,
        batch_size: int = 128,
        ranks: Ranks | None = None,
        advance: Callable[[int], None] = lambda count: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        """advance: called with counts of pictures. should_stop: asked now and then; one rank's yes ends it for all."""
        self.networks, self.loader, self.split = networks, loader, split
        self.views: Views = views
        self.batch_size, self.ranks, self.advance, self.should_stop = batch_size, ranks or Ranks(), advance, should_stop
        self.samples = check_split(loader, split)

    def outcomes(self, mixtures: Float, samples: range | None = None) -> tuple[Outcomes, list[str]]:
        """What predictors make of pictures, on every rank, and where damaged samples lie; Stopped where asked to."""
        ranks = self.ranks
        mine = collect(
            self.networks,
            mixtures,
            self.loader,
            self.split,
            views=self.views,
            batch_size=self.batch_size,
            samples=samples or range(self.samples),
            share=(ranks.rank, ranks.world_size),
            advance=self.advance,
            should_stop=self.should_stop,
        )
        found, self.loader.damaged = self.loader.damaged, []
        parts = ranks.all_gather((mine, found, self.should_stop()))
        if any(stopped for _, _, stopped in parts):
            raise Stopped
        return joined([part for part, _, _ in parts]), [place for _, places, _ in parts for place in places]

    def evaluate(self, weighting: Weighting = "equal") -> Evaluated:
        """Error rates and the rest; weighting fit: the ensemble's weights are fitted to the first half of the pictures
        (sharding has shuffled them), and everything is measured on the second.
        """
        members = len(self.networks)
        rows = [*np.eye(members), equal_weights(members)] if members > 1 else [np.ones(1)]
        names = [*short_names(self.networks), f"mean of {members}"][: len(rows)]
        held_out, damaged = 0, []
        if weighting == "fit":
            held_out = self._half()
            fit, damaged = self.outcomes(np.eye(members), range(held_out))
            rows.append(fitted_weights(fit.at_label))
            names.append(f"fitted mean of {members}")
        found, more = self.outcomes(np.array(rows), range(held_out, self.samples))
        return self._summary(found, names, rows, held_out, [*damaged, *more])

    def _half(self) -> int:
        """Half of the samples, up to a whole number of chunks."""
        size = chunk_size(self.views)
        half = self.samples // 2 // size * size or size
        if half >= self.samples:
            raise InputError(
                f"{self.split} has {self.samples} pictures, expected more than {size} to fit weights to half of them; "
                "use --weights equal"
            )
        return half

    def _summary(
        self, found: Outcomes, names: list[str], rows: list[NDArray[np.float64]], held_out: int, damaged: list[str]
    ) -> Evaluated:
        classes = len(self.loader.dataset.classes)
        bins = [calibration_bins(found.confidence[row], found.ahead[row] < 1) for row in range(len(rows))]
        return Evaluated(
            split=self.split,
            views=self.views,
            samples=len(found.labels),
            held_out=held_out,
            predictors=tuple(
                Predictor(
                    name,
                    tuple(map(float, weights)),
                    error_rate(found.ahead[row] >= 1),
                    error_rate(found.ahead[row] >= 5),
                    expected_calibration_error(bins[row]),
                )
                for row, (name, weights) in enumerate(zip(names, rows, strict=True))
            ),
            by_class=tuple(errors_by_class(found.labels, found.ahead[-1], classes)),
            confusions=tuple(worst_confusions(found.labels, found.predicted[-1], classes, CONFUSIONS)),
            bins=tuple(bins[-1]),
            damaged=tuple(damaged),
            likeliest=found.likeliest,
        )
