"""An experiment's runs as command lines of service.train: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.ablation.experiments import BASE_NAME, Base, Changes, Experiment


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A variant with a seed, and where its run is."""

    variant: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]  # of service.train


def plan(
    experiment: Experiment, base: Base, *, shards: str, out: Path, seeds: Sequence[int], epochs: int
) -> list[PlannedRun]:
    """The runs, seed by seed, so that an experiment that is cut short has whole pairs; the base's come first.

    Experiments of the same base and epochs share its runs: the folder's name says all that distinguishes one.
    """
    common = base.of_epochs(epochs)
    return [
        PlannedRun(
            variant=variant,
            seed=seed,
            folder=(folder := out / f"{base.name}-{epochs}-epochs" / f"{slug(variant)}-{seed}"),
            arguments=(
                base.recipe,
                *("--data.shards", shards, "--out", str(folder), "--seed", str(seed), "--port", "0"),
                *options({**common, **changes}),
            ),
        )
        for seed in seeds
        for variant, changes in {BASE_NAME: {}, **experiment.variants}.items()
    ]


def options(changes: Changes) -> list[str]:
    """Options of service.train that set a run's fields, by their dotted names."""
    return [word for name, value in changes.items() for word in _option(name.replace("_", "-"), value)]


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        *folders, last = name.split(".")
        return ["--" + ".".join([*folders, last if value else f"no-{last}"])]
    return [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def slug(name: str) -> str:
    """The name as a folder's: letters, digits and hyphens."""
    words = "".join(character if character.isalnum() else " " for character in name.lower()).split()
    return "-".join(words)
