"""Set-up of a run: opens its data and builds its network, new or restored from its newest sound checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.alexnet import Precision, PrecisionOption
from model.network import make_network
from model.optim import LearningRates, MomentumSGD
from model.parallel import Parallel
from model.precision import ChosenPrecision, choose_precision, device_name, emulated, set_arithmetic
from model.step import TrainingState
from pipeline.command import InputError
from pipeline.host.machine import this_machine
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.graph import Device
from pipeline.manifest import TUNED_FILE, Dataset, pictures_sha256
from pipeline.measure.tuned import apply_tuned
from pipeline.reading.place import open_place
from service.run.checkpoint import Checkpoint, RunState, newest_checkpoint, read_tensors, restore
from service.run.config import Run, check_same_call, check_same_run, run_fields
from service.run.dataset_change import change_since, describe_change
from service.run.events import make_precision_event, make_rate_event, manual_base_rate, since_new_schedule
from service.run.preprocessing import Preprocessing, dataset_facts, preprocessing_of
from service.training.fork import Start, describe_start, start_from
from service.training.ranks import Ranks


@dataclass(frozen=True)
class Setup:
    """What a process of a run holds before the first step."""

    run: Run  # with the precision that was chosen, not auto
    ranks: Ranks
    loader: BatchLoader
    training: TrainingState
    state: RunState
    resumed_from: Path | None
    fields: dict[str, Any]
    preprocessing: Preprocessing
    total_steps: int


def set_up(run: Run, device: Device, ranks: Ranks, parallel: Parallel, say: Callable[[str], None]) -> Setup:
    """Open the data, build the network, and restore what rank 0 finds in the run's folder; all ranks call it together.

    InputError where the call is wrong: on every rank, before any waits for another.
    """
    data, taken = ranks.on_all_ranks(lambda: tuned_data(run, device, ranks))
    if taken:
        say(taken)
    loader = ranks.on_all_ranks(lambda: open_loader(replace(run, data=data), device, ranks, parallel))
    dataset = pictures_sha256(loader.dataset)
    asked, facts = run_fields(run, dataset), dataset_facts(loader.dataset)
    splits = loader.dataset.splits
    leaders, leaders_facts = ranks.broadcast((asked, facts))
    change = describe_change(leaders_facts, facts)
    ranks.on_all_ranks(lambda: check_same_call(ranks.rank, leaders, asked, change))
    checkpoint = ranks.on_all_ranks(
        lambda: find_resumable(run, asked, loader.dataset, say) if ranks.is_leader else None
    )
    torch_device = torch.device("cuda" if device == "gpu" else "cpu")
    start = ranks.on_all_ranks(
        lambda: start_from(run, asked, loader.dataset) if ranks.is_leader and run.parent and not checkpoint else None
    )
    before = checkpoint.run if checkpoint else start.run if start else {}
    so_far = before["model"]["precision"] if before else None
    precision, why = ranks.broadcast(decide_precision(run.model.precision, so_far, torch_device))
    run = replace(run, model=replace(run.model, precision=precision))
    preprocessing = ranks.on_all_ranks(lambda: preprocessing_of(loader.dataset, loader.root))
    training = ranks.on_all_ranks(lambda: build_training(run, loader, preprocessing, torch_device, parallel))
    arithmetic = set_arithmetic(torch_device, precision, deterministic=run.deterministic)
    say(f"precision {precision}: {'; '.join(filter(None, [why, arithmetic]))}")
    path = ranks.broadcast(checkpoint.path if checkpoint else None)
    samples = splits["train"].samples
    initial = initial_state(start, run, samples) if start else RunState()
    state = ranks.broadcast(resumed_state(checkpoint, run, samples) if checkpoint else initial)
    if path:
        tensors = ranks.broadcast_tensors(read_tensors(checkpoint) if checkpoint else {})
        restore(tensors, training.model, training.optimizer)
        say(f"resumed from {path}, restart {state.restarts}")
    elif run.parent:
        tensors = ranks.broadcast_tensors(start.tensors if start else {})
        restore(tensors, training.model, training.optimizer, complete=run.keep == "all")
        say(describe_start(start) if start else "")
    if run.optim.average_decay:
        say(
            f"weights are averaged (decay {run.optim.average_decay:g}): "
            "validation, evaluation, predictions and exports are the averaged network's"
        )
    if "val" not in splits:
        say(f"{run.data.shards} has no validation split: training without it; a plateau schedule keeps its rate")
    steps = -(-run.epochs * samples // run.batch_size)
    fields = run_fields(run, dataset)
    return Setup(run, ranks, loader, training, state, path, fields, preprocessing, min(steps, run.max_steps or steps))


def tuned_data(run: Run, device: Device, ranks: Ranks) -> tuple[DataConfig, str]:
    """The options of loading with those that pipeline.bench found fastest here where none are given; that in a line."""
    tuned = open_place(run.data.shards, run.data.cache, run.data.cache_bytes) / TUNED_FILE
    machine = this_machine(torch.cuda.get_device_name() if device == "gpu" else "")
    return apply_tuned(run.data, tuned, machine, share=ranks.threads_per_rank / machine.cores)


def open_loader(run: Run, device: Device, ranks: Ranks, parallel: Parallel) -> BatchLoader:
    """This rank's part of the data set."""
    data = run.data
    if data.output == "auto" and parallel.pair:
        data = replace(data, output="uint8")  # what a pair exchanges: on a GPU half the bytes of the usual float16
    return BatchLoader(
        data,
        seed=run.seed,
        device=device,
        rank=ranks.rank,
        world_size=ranks.world_size,
        lends=True,
        cores=ranks.threads_per_rank,
    )


def decide_precision(wanted: PrecisionOption, so_far: Precision | None, device: torch.device) -> ChosenPrecision:
    """The precision, and why: the one asked for, else a resumed run's so far, else what suits the device."""
    if wanted != "auto":
        chosen = ChosenPrecision(wanted, f"as asked, {so_far} before" if so_far not in (None, wanted) else "as asked")
    elif so_far:
        chosen = ChosenPrecision(so_far, "as this run has it so far")
    else:
        return choose_precision(device)
    if not emulated(chosen.precision, device):
        return chosen
    remedy = "several times slower than --model.precision float32"
    return chosen._replace(
        reason=f"{chosen.reason}, but emulated: {device_name(device)} has no bfloat16 instructions; {remedy}"
    )


def build_training(
    run: Run, loader: BatchLoader, preprocessing: Preprocessing, device: torch.device, parallel: Parallel
) -> TrainingState:
    """The network and its optimiser, with their initial values."""
    try:
        model = make_network(
            run.model,
            classes=len(loader.dataset.classes),
            crop=run.data.crop,
            seed=run.seed,
            placement=parallel.placement,
        ).to(device)
        optimizer = MomentumSGD(run.optim, dict(model.named_parameters()))
    except ValueError as error:
        raise InputError(str(error)) from error
    mean = torch.from_numpy(preprocessing.mean_crop(run.data.crop, run.model.layout)).to(device)
    return TrainingState(model, optimizer, mean, torch.tensor(True, device=device), parallel)


def initial_state(start: Start, run: Run, samples: int) -> RunState:
    """The state that a run starts from, and an event where a fork computes in another precision than its parent."""
    old, new = start.run["model"]["precision"] if start.run else run.model.precision, run.model.precision
    if old == new:
        return start.state
    event = make_precision_event(start.state, samples, old, new, "command line")
    return replace(start.state, events=(*start.state.events, event))


def find_resumable(run: Run, asked: dict[str, Any], dataset: Dataset, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint in the run's folder; InputError when it is another run's."""
    checkpoint = newest_checkpoint(run.out, say)
    if checkpoint:
        check_same_run(run.out, checkpoint.run, asked, change_since(checkpoint, dataset))
    return checkpoint


def resumed_state(checkpoint: Checkpoint, run: Run, samples: int) -> RunState:
    """The checkpoint's state, one restart more, and an event for a precision or rate that the command line changes."""
    state = replace(checkpoint.state, restarts=checkpoint.state.restarts + 1)
    old, new = checkpoint.run["model"]["precision"], run.model.precision
    if old != new:
        state = replace(state, events=(*state.events, make_precision_event(state, samples, old, new, "command line")))
    old, new = checkpoint.run["optim"]["lr"], run.optim.lr
    if old == new:
        return state
    by_hand = manual_base_rate(since_new_schedule(state).events)
    current = old if by_hand is None else by_hand
    event = make_rate_event(
        state, samples, LearningRates(current, current), LearningRates(new, new), "command line", manual=True
    )
    return replace(state, events=(*state.events, event))
