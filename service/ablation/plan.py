"""An experiment's runs, each with the command line of its worker: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.ablation.experiments import BASE_LABEL, Changes, Experiment


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedRun:
    """A variant with a seed, and where its run is."""

    variant: str
    seed: int
    folder: Path
    recipe: str
    changes: Changes  # of the recipe
    every_epoch: bool  # whether the checkpoints of all epochs are kept, to be measured

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """That it trains."""
        return self.changes["epochs"]

    def steps(self, samples: int) -> int:
        """That it takes on so many training pictures."""
        return -(-self.epochs * samples // self.changes["batch_size"])

    def arguments(self, shards: str | Path) -> list[str]:
        """Of service.train."""
        place = ["--data.shards", str(shards), "--out", str(self.folder), "--seed", str(self.seed), "--port", "0"]
        # Checkpoints by the clock would count among those kept.
        kept = ["--checkpoint-seconds", "0", "--keep-checkpoints", str(self.epochs + 2)] if self.every_epoch else []
        return [self.recipe, *place, *kept, *options(self.changes)]


def plan(experiment: Experiment, *, out: Path, seeds: Sequence[int], epochs: int) -> list[PlannedRun]:
    """The runs, seed by seed, so that an experiment that is cut short has whole pairs; the base's come first.

    Experiments of the same base and epochs share its runs: a folder's name says all that distinguishes one.
    """
    base = experiment.base
    common = {**base.of_epochs(epochs), **experiment.changes}
    own = f"{experiment.name} " if experiment.changes else ""
    return [
        PlannedRun(
            variant=variant,
            seed=seed,
            folder=out / f"{base.name}-{epochs}-epochs" / f"{slug(own + variant)}-{seed}",
            recipe=base.recipe,
            changes={**common, **changes},
            every_epoch=experiment.measure == "training",
        )
        for seed in seeds
        for variant, changes in {BASE_LABEL: {}, **experiment.variants}.items()
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
