"""An experiment's runs, each with the command line of its worker: pure functions."""

from collections.abc import Mapping, Sequence
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
    rate: float | None  # where the experiment tries several
    is_trial: bool  # to find the learning rate
    until: int  # epochs after which it is stopped
    every_epoch: bool  # whether the checkpoints of all epochs are kept, to be measured

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.variant}{f' at {self.rate:g}' if self.rate else ''}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """That it trains."""
        return self.changes["epochs"]

    def steps(self, samples: int) -> int:
        """That it takes on so many training pictures."""
        return -(-self.until * samples // self.changes["batch_size"])

    def arguments(self, shards: str | Path) -> list[str]:
        """Of service.train."""
        place = ["--data.shards", str(shards), "--out", str(self.folder), "--seed", str(self.seed), "--port", "0"]
        # Checkpoints by the clock would count among those kept.
        kept = ["--checkpoint-seconds", "0", "--keep-checkpoints", str(self.epochs + 2)] if self.every_epoch else []
        return [self.recipe, *place, *kept, *options(self.changes)]


def plan(
    experiment: Experiment, *, out: Path, seeds: Sequence[int], epochs: int, rates: Mapping[str, float] | None = None
) -> list[PlannedRun]:
    """The runs, seed by seed, so that an experiment that is cut short has whole pairs; the base's come first.

    Experiments of the same base and epochs share its runs: a folder's name says all that distinguishes one.
    rates: by variant, of an experiment that tries some.
    """
    variants = {BASE_LABEL: {}, **experiment.variants}
    return [
        _run(experiment, variant, seed, out=out, epochs=epochs, rate=rates[variant] if rates else None)
        for seed in seeds
        for variant in variants
    ]


def trials(experiment: Experiment, *, out: Path, epochs: int) -> list[PlannedRun]:
    """The runs of seed 0 that try the experiment's rates, those of each variant together; the best ones go on."""
    return [
        _run(experiment, variant, 0, out=out, epochs=epochs, trial=True, rate=rate)
        for variant in (BASE_LABEL, *experiment.variants)
        for rate in experiment.rates
    ]


def _run(
    experiment: Experiment, variant: str, seed: int, *, out: Path, epochs: int, rate: float | None, trial: bool = False
) -> PlannedRun:
    base = experiment.base
    name = variant if rate is None else f"{variant} lr {rate:g}"
    own = f"{experiment.name} " if experiment.changes else ""
    changes = {} if variant == BASE_LABEL else experiment.variants[variant]
    return PlannedRun(
        variant=variant,
        seed=seed,
        folder=out / f"{base.name}-{epochs}-epochs" / f"{slug(own + name)}-{seed}",
        recipe=base.recipe,
        changes={
            **base.of_epochs(epochs),
            **experiment.changes,
            **changes,
            **({} if rate is None else {"optim.lr": rate}),
        },
        rate=rate,
        is_trial=trial,
        until=min(experiment.trial_epochs, epochs) if trial else epochs,
        every_epoch=experiment.measure == "training",
    )


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
