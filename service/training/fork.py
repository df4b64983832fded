"""A run that starts from another's network: a fork that goes on with everything, or new training of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from model.network import make_network
from model.optim import LearningRates, OptimConfig
from pipeline.command import InputError
from pipeline.foreign import checked_whole
from pipeline.manifest import Dataset
from service.network.read import load
from service.run.checkpoint import Checkpoint, RunState, find_checkpoint, identity_of, read_tensors
from service.run.config import MAY_CHANGE, Run, check_fields, differences, with_defaults
from service.run.dataset_change import change_since
from service.run.events import Event, make_fork_event, make_rate_event, rates_of

# What a fork that keeps all may have otherwise than its parent: where and how it computes, its schedule, its
# augmentation and its dropout. The rest decides which pictures a position is, or what the weights are of.
FORK_MAY_CHANGE: Final = (*MAY_CHANGE, "data.augment.", "model.dropout")
FORK_MUST_AGREE: Final = ("data.", "model.", "batch_size", "seed", "dataset_sha256")
LAST_LAYERS: Final = (".fc8.", "classifier.6.")
ADDED_LAYER: Final = ".conv6."  # of the paper's CNN*, on a start from the weights of a network without it


@dataclass(frozen=True)
class Start:
    """What a run starts from instead of initial weights."""

    state: RunState
    tensors: dict[str, Tensor]  # weights by name; where all is kept, velocities and averages too
    run: Mapping[str, Any]  # the parent's run.json; empty where only weights are kept
    event: Event  # that says so
    fresh: tuple[str, ...]  # parameters that keep their initial values


def start_from(run: Run, fields: Mapping[str, Any], dataset: Dataset) -> Start:
    """What `--from` and `--keep` bring; InputError where they do not suit this run. fields: its run.json."""
    assert run.parent
    samples = dataset.splits["train"].samples
    if run.keep == "all":
        return _fork(run.parent, run, fields, dataset, samples)
    return _weights(run.parent, run, dataset, samples)


def _fork(parent: Path, run: Run, fields: Mapping[str, Any], dataset: Dataset, samples: int) -> Start:
    if parent.is_file():
        raise InputError(f"{parent} holds weights alone, expected a run or a checkpoint of one; use --keep weights")
    checkpoint = find_checkpoint(parent)
    check_fields(checkpoint.path, checkpoint.run)
    theirs = with_defaults(checkpoint.run)
    names = [name for name in theirs if name.startswith(FORK_MUST_AGREE) and not name.startswith(FORK_MAY_CHANGE)]
    change = change_since(checkpoint, dataset)
    if values := differences(checkpoint.run, dict(fields), frozenset(theirs.keys() - names), change):
        raise InputError(f"{parent} cannot go on as this run ({values}); give the same options, or --keep weights")
    if checkpoint.state.position >= run.epochs * samples:
        done = checkpoint.state.position / samples
        raise InputError(f"{parent} has {done:.4g} epochs, expected fewer than the {run.epochs} to train; set --epochs")
    identity = {"path": str(checkpoint.path), "step": checkpoint.state.step, "sha256": identity_of(checkpoint.path)}
    ours = with_defaults(dict(fields))
    decisive = [name for name in ours if name.startswith("optim.") or (name == "epochs" and run.optim.follows_epochs)]
    new_schedule = any(theirs[name] != ours[name] for name in decisive)
    state = replace(checkpoint.state, restarts=0, evaluation=None)
    old = _rates(checkpoint, state, samples)
    event = make_fork_event(state, samples, identity, "all", new_schedule)
    state = replace(state, events=(*state.events, event))
    if (new := rates_of(run.optim, state, samples, run.epochs)) != old:
        state = replace(state, events=(*state.events, make_rate_event(state, samples, old, new, "command line")))
    return Start(state, read_tensors(checkpoint), checkpoint.run, event, ())


def _rates(checkpoint: Checkpoint, state: RunState, samples: int) -> LearningRates:
    """The learning rates of the parent's next step."""
    values = checkpoint.run["optim"]
    try:
        return rates_of(checked_whole(OptimConfig, values), state, samples, checkpoint.run["epochs"])
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = f"{checkpoint.path} has options --optim of another version ({error!r:.200})"
        raise InputError(f"{reason}, expected those of this one; use --keep weights") from error


def _weights(parent: Path, run: Run, dataset: Dataset, samples: int) -> Start:
    network = load(parent, "cpu")
    if network.config.layout != run.model.layout:
        raise InputError(
            f"{parent} holds a network of layout {network.config.layout}, expected {run.model.layout}; "
            f"set --model.layout {network.config.layout}"
        )
    if network.config.layout == "towers" and network.config.inverted_dropout != run.model.inverted_dropout:
        option = f"--model.{'' if network.config.inverted_dropout else 'no-'}inverted-dropout"
        raise InputError(
            f"{parent} was trained with inverted_dropout {network.config.inverted_dropout}, expected the same: its "
            f"weights are for hidden outputs of that scale; set {option}"
        )
    theirs, ours = [each.id for each in network.classes], [each.id for each in dataset.classes]
    same_classes = theirs == ours or (len(theirs) == len(ours) and not any(theirs))  # a file may not name them
    weights = {
        name: weight.detach() for name, weight in network.model.named_parameters() if same_classes or not _is_last(name)
    }
    needed = {name: tuple(weight.shape) for name, weight in _reference(run, len(ours)).items()}
    for name in sorted(weights.keys() | needed.keys()):
        has = tuple(weights[name].shape) if name in weights else None
        if has != needed.get(name) and (has or not (_is_last(name) or ADDED_LAYER in name)):
            raise InputError(
                f"{parent} holds {has or 'nothing'} as {name}, expected {needed.get(name, 'nothing')}; "
                "give the options of --model and --data.crop that it was trained with"
            )
    identity = {"path": str(network.path), "step": network.step, "sha256": network.sha256}
    event = make_fork_event(RunState(), samples, identity, "weights")
    return Start(RunState(events=(event,)), weights, {}, event, tuple(sorted(needed.keys() - weights.keys())))


def _is_last(name: str) -> bool:
    """Whether a parameter is of the layer that makes the logits."""
    return any(layer in name for layer in LAST_LAYERS)


def _reference(run: Run, classes: int) -> dict[str, Tensor]:
    """The parameters of the whole network, of which this process may train a part."""
    config = replace(run.model, precision="float32")
    try:
        return dict(make_network(config, classes=classes, crop=run.data.crop, seed=run.seed).named_parameters())
    except ValueError as error:
        raise InputError(str(error)) from error


def describe_start(start: Start) -> str:
    """What the run starts from, in a line."""
    fresh = f"; new: {', '.join(start.fresh)}" if start.fresh else ""
    return f"starts {start.event['reason']}{fresh}"
