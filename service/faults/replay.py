"""One step of a run once more, from the checkpoint before it, to look at: layer by layer, and its pictures."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.optim import step_rates
from model.parallel import Parallel
from model.precision import set_arithmetic
from model.step import (
    StepControls,
    StepInputs,
    TrainingState,
    compiled_train_step,
    compute_gradients,
    local_logits,
    train_step,
    training_loss,
)
from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, say
from pipeline.files import make_folders, write_output
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.graph import Device
from pipeline.manifest import PictureClass, pictures_sha256
from pipeline.picture.contact_sheet import Tile, contact_sheet
from service.results.table import print_table
from service.run.checkpoint import Checkpoint, RunState, checkpoints, first_sound, read_tensors, restore, step_of
from service.run.config import Run, check_same_run, run_fields
from service.run.dataset_change import change_since
from service.run.events import rates_of
from service.run.log import LOG_FILE, last_step
from service.run.preprocessing import preprocessing_of
from service.run.threads import keep_within_quota
from service.telemetry.preview import drawable
from service.training.ranks import Ranks
from service.training.setup import build_training, decide_precision, open_loader, tuned_data

PICTURES: Final = 40  # that are drawn: those with the largest losses, and all whose loss is not finite first
LEFT: Final = 1  # columns of words


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Of a tensor: how many are not finite, and of the others the norm and the largest."""

    not_finite: int
    norm: float
    largest: float

    @classmethod
    def of(cls, tensor: Tensor) -> "Numbers":
        wide = tensor.detach().double().flatten()
        finite = wide[torch.isfinite(wide)]
        largest = finite.abs().max().item() if len(finite) else math.nan
        return cls(not_finite=len(wide) - len(finite), norm=finite.norm().item(), largest=largest)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a step was found to do."""

    step: int
    loss: float
    losses: list[float]  # of each picture
    outputs: dict[str, Numbers]  # by layer
    weights: dict[str, Numbers]  # by parameter
    gradients: dict[str, Numbers]

    @property
    def sound(self) -> bool:
        """Whether all of it is finite."""
        parts = (*self.outputs.values(), *self.weights.values(), *self.gradients.values())
        return math.isfinite(self.loss) and not any(part.not_finite for part in parts)


def replay(run: Run, device: Device) -> int:
    """Do step `run.replay` once more and write what it does beside the run; status 1 where numbers are not finite."""
    keep_within_quota()
    ranks, parallel = Ranks(), Parallel()
    data, _ = tuned_data(run, device, ranks)
    loader = open_loader(replace(run, data=data), device, ranks, parallel)
    newest = last_before(run.out, math.inf)
    if not newest:
        raise InputError(f"{run.out} holds no sound checkpoint, expected a run's; give its --out")
    # To verify one takes as long as to read it: not the same one twice.
    checkpoint = newest if newest.state.step < run.replay else last_before(run.out, run.replay)
    asked = run_fields(run, pictures_sha256(loader.dataset))
    check_same_run(run.out, newest.run, asked, change_since(newest, loader.dataset))
    known = max(newest.state.step, int(last_step(run.out / LOG_FILE)) + run.log_every)
    if run.replay > known:
        raise InputError(
            f"replay is {run.replay}, expected a step that {run.out} has done, up to {known}; set --replay"
        )
    if run.parent and not checkpoint:
        raise InputError(f"{run.out} has no checkpoint before step {run.replay}, expected one; choose a later step")
    torch_device = torch.device("cuda" if device == "gpu" else "cpu")
    precision, _ = decide_precision(run.model.precision, newest.run["model"]["precision"], torch_device)
    run = replace(run, model=replace(run.model, precision=precision))
    training = build_training(run, loader, preprocessing_of(loader.dataset, loader.root), torch_device, parallel)
    set_arithmetic(torch_device, precision, deterministic=run.deterministic)
    state = RunState()
    if checkpoint:
        restore(read_tensors(checkpoint).items(), training.model, training.optimizer)
        state = checkpoint.state
    say(f"from {checkpoint.path if checkpoint else 'the initial weights'}, {run.replay - state.step} steps")
    inputs = train_up_to(run, training, loader, state, newest.state)
    found = examine(training, inputs, run.replay)
    report(found, inputs, loader.dataset.classes, run.out / f"replay-{run.replay}")
    return EXIT_DONE if found.sound else EXIT_FAULTS


def last_before(out: Path, step: float) -> Checkpoint | None:
    """The newest sound checkpoint before a step; None where there is none."""
    return first_sound((path for path in checkpoints(out) if step_of(path) < step), lambda why: say(f"notice: {why}"))


def train_up_to(run: Run, training: TrainingState, loader: BatchLoader, state: RunState, later: RunState) -> StepInputs:
    """The steps from `state` to before `run.replay`, as the run did them; returns that step's batch.

    later: a state of the run that has the validations and events of these steps.
    """
    between = [event for event in later.events if state.step < event["step"] < run.replay]
    if back := [event["step"] for event in between if event["kind"] == "rollback"]:
        reason = f"{run.out} went back to a checkpoint at step {back[-1]}, expected one after that"
        raise InputError(f"{reason}; choose a step whose checkpoint is still there")
    left_out = {event["step"] for event in between if event["kind"] == "skip"}
    samples, step = loader.dataset.splits["train"].samples, compiled_train_step() if run.compile else train_step
    device, batches = training.mean.device, loader.train(run.batch_size, state.position)
    for number in range(state.step + 1, run.replay):
        inputs = StepInputs(*next(batches))
        known = replace(
            state,
            history=tuple(entry for entry in later.history if entry.step <= state.step),
            events=tuple(event for event in later.events if event["step"] <= state.step),
        )
        rates = step_rates(run.optim, rates_of(run.optim, known, samples, run.epochs), state.step)
        if number not in left_out:
            controls = StepControls(torch.tensor(rates, device=device), torch.zeros(3, device=device))
            step(training, controls, inputs)
            if not training.all_finite:
                raise InputError(f"step {number} is not finite, so there is none after it; set --replay {number}")
        state = replace(state, step=number, position=state.position + run.batch_size)
    return StepInputs(*(column.clone() for column in next(batches)))  # which the loader lends only until its end


def examine(training: TrainingState, inputs: StepInputs, step: int) -> Examined:
    """What the step does, eagerly; nothing is changed."""
    with outputs_of(cast(nn.Module, training.model)) as outputs:
        loss, _ = training_loss(training, inputs)
    with torch.no_grad():
        logits, _ = local_logits(training, inputs, train=True)
        smoothing = training.optimizer.config.label_smoothing
        losses = F.cross_entropy(logits, inputs.labels, reduction="none", label_smoothing=smoothing)
    return Examined(
        step=step,
        loss=loss.item(),
        losses=losses.tolist(),
        outputs={name: Numbers.of(output) for name, output in outputs.items()},
        weights={name: Numbers.of(weight) for name, weight in training.optimizer.parameters.items()},
        gradients={name: Numbers.of(gradient) for name, gradient in compute_gradients(loss, training).items()},
    )


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each layer with weights makes while the block runs, by the layer's name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.update({name: output.detach()})

    layers = {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def report(found: Examined, inputs: StepInputs, classes: tuple[PictureClass, ...], out: Path) -> None:
    """Print the layers, and write all of it as JSON, and the pictures with the largest losses as PNG."""
    try:
        make_folders(out)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}), expected a folder; mend its rights") from error
    rows = [
        (
            layer,
            *_words(numbers),
            *_words(found.weights.get(f"{layer}.weight")),
            *_words(found.gradients.get(f"{layer}.weight")),
        )
        for layer, numbers in found.outputs.items()
    ]
    columns = [f"{what} {kind}" for what in ("outputs", "weights", "gradients") for kind in ("largest", "not finite")]
    print_table(("layer", *columns), rows, LEFT)
    write_output(out / "step.json", (json.dumps(_plain(asdict(found)), indent=1) + "\n").encode(), "--out")
    order = sorted(range(len(found.losses)), key=lambda row: -_badness(found.losses[row]))[:PICTURES]
    pixels = drawable(inputs.pictures, inputs.offset)
    tiles = [
        Tile(
            pixels[row],
            classes[int(inputs.labels[row])].words or classes[int(inputs.labels[row])].id,
            f"loss {found.losses[row]:.4g}, position {int(inputs.positions[row]):,}",
        )
        for row in order
    ]
    write_output(out / "pictures.png", contact_sheet(tiles), "--out")
    say(f"step {found.step}: loss {found.loss:.6g}; {'all finite' if found.sound else 'not all finite'}; {out}")


def _badness(loss: float) -> float:
    return loss if np.isfinite(loss) else math.inf


def _words(numbers: Numbers | None) -> tuple[str, str]:
    return (f"{numbers.largest:.3g}", f"{numbers.not_finite:,}") if numbers else ("", "")


def _plain(value: Any) -> Any:
    """Strict JSON has no NaN and no infinity: they become words."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
