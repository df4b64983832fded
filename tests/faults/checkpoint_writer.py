"""A worker's writes without its training: a line of the log a step, a checkpoint every third; for crash states.

Program: RUN MODE. A start on what a crash has left of RUN: `recovered`, and then it trains on.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

import torch
from prometheus_client import CollectorRegistry

from pipeline.command import InputError
from pipeline.files import make_folders
from service.run.checkpoint import (
    FOLDER,
    LATEST,
    Checkpoint,
    RunState,
    Tensors,
    checkpoints,
    clear_unfinished,
    newest_checkpoint,
    read_tensors,
    step_of,
)
from service.run.log import EVENTS_FILE, LOG_FILE, JsonLog, read_records
from service.telemetry.metrics import Metrics
from service.training.checkpoint_writer import CheckpointWriter

STEPS: Final = 12
EVERY: Final = 3
KEEP: Final = 2
RECOVERS: Final = "recovers"  # the mode of a start on what a crash has left, which trains to the next checkpoint

# Writers that leave out what makes a write durable: crash states must find each of them.
BROKEN: Final = {
    "no sync of folders": "pipeline.files.fsync_folder",
    "no sync of a checkpoint's folder": "service.run.checkpoint.fsync_folder",
    "no sync of files": "pipeline.files.fsync_file",
    "no sync of the log": "service.run.log.fsync_file",
}


def tensors_of(step: int) -> Tensors:
    """Of a network at a step: two files of some blocks, whose numbers are the step's."""
    return {f"towers-{tower}.safetensors": {"w": torch.full((1500,), float(step + tower))} for tower in (0, 1)}


def state_of(step: int) -> RunState:
    return RunState(step=step, position=step * 4, events=({"kind": "checkpoint", "step": 1, "epoch": 0.5},))


def train(run: Path, first: int, last: int) -> Iterator[int]:
    """The steps from `first` to `last`, as a worker writes them; gives each whose checkpoint is durable."""
    said: list[str] = []
    log = JsonLog.truncated_to(run / LOG_FILE, first - 1, said.append)
    events = JsonLog.with_records(run / EVENTS_FILE, state_of(first).events, said.append)
    metrics = Metrics(CollectorRegistry())
    writer = CheckpointWriter(run, {}, metrics, keep=KEEP, resumed_from=None, say=said.append, logs=(log, events))
    for step in range(first, last + 1):
        log.append({"step": step, "loss": 1 / step, "filling": "." * 700})
        if step % EVERY == 0:
            assert writer(state_of(step), tensors_of(step)), said
            yield step
            if step % (2 * EVERY) == 0:  # once more, as after a validation that was still to be done
                assert writer(state_of(step), tensors_of(step)), said
    log.close()
    events.close()
    assert not said, said


def prepare(_: Path) -> None:
    """It reads nothing."""


def recovered(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """What a start does before its first step; the checkpoint that it goes on from. InputError where it cannot."""
    clear_unfinished(run)
    found = newest_checkpoint(run, say)
    make_folders(run)
    JsonLog.truncated_to(run / LOG_FILE, found.state.step if found else 0, say).close()
    return found


def faults_after_a_crash(run: Path, _: Path, __: dict[str, bytes], promises: Sequence[str]) -> Iterator[str]:
    """What a start finds wrong; promises: the steps whose checkpoints were said to be durable."""
    warnings: list[str] = []
    try:
        found = recovered(run, warnings.append)
    except InputError as error:
        yield f"no start: {error}"
        return
    yield from warnings
    step, promised = found.state.step if found else 0, max(map(int, promises), default=0)
    if step < promised:
        yield f"the newest checkpoint is of step {step}, promised was {promised}"
    if found:
        if found.state != state_of(step):
            yield "the state is another one"
        for tower in (0, 1):
            if not torch.equal(read_tensors(found)["w"], torch.full((1500,), float(step + 1))):
                yield f"tower {tower}'s weights are others"
    logged = [record["step"] for record in read_records(run / LOG_FILE)]
    if logged != list(range(1, step + 1)):
        yield f"the log has steps {logged}, expected 1 to {step}"
    # And the run goes on as if nothing had been.
    goes_on = list(train(run, step + 1, step + 2 * EVERY))
    if goes_on != [step + EVERY, step + 2 * EVERY]:
        yield f"it went on with checkpoints of steps {goes_on}"
    kept = [step_of(path) for path in checkpoints(run)]
    if kept != goes_on[::-1]:
        yield f"checkpoints of steps {kept} are left, expected the newest two"
    left = {path.name for path in (run / FOLDER).iterdir()} - {path.name for path in checkpoints(run)} - {LATEST}
    if left:
        yield f"left over: {sorted(left)}"


def main(run: Path, mode: str) -> None:
    """Train, and mark in the recording each checkpoint that is durable."""
    with mock.patch(BROKEN[mode], return_value=True) if mode in BROKEN else mock.MagicMock():
        first = 1 + (found.state.step if (found := recovered(run, lambda _: None)) else 0)
        for step in train(run, first, first + EVERY - 1 if mode == RECOVERS else STEPS):
            with open(os.environ["RECORDED_IN"], "a", encoding="utf-8") as recording:
                recording.write(f"mark\t{step}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
