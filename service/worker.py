"""A run in progress: opened or resumed, stepped, validated, saved, and everyone told."""

import gc
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.alexnet import AlexNet
from model.optim import Momentum, Rates, rates_at
from model.step import Examples, StepResult, compiled_train_step, eval_step, train_step
from pipeline.command import InputError
from pipeline.loader import Batch, Loader, choose_device, mean_crop
from pipeline.manifest import DATASET_FILE, sha256_of
from service.api import Heart
from service.checkpoint import Checkpoint, State, Validation, copy_tensors, newest, restore
from service.config import Run, check_same_run, run_fields
from service.console import Display, Speed
from service.log import JsonLines
from service.metrics import Metrics
from service.saver import Saver


@dataclass(frozen=True)
class Setup:
    """A run made ready: new, or restored from its newest sound checkpoint."""

    loader: Loader
    model: AlexNet
    optimizer: Momentum
    state: State
    resumed_from: Path | None
    fields: dict[str, Any]
    total_steps: int


def set_up(run: Run, say: Callable[[str], None]) -> Setup:
    """Open the data, build the network, and restore what the run's folder holds."""
    loader = Loader(run.data, seed=run.seed, device=choose_device(run.device))
    dataset = loader.dataset
    fields = run_fields(run, sha256_of(run.data.shards / DATASET_FILE))
    checkpoint = newest(run.out, say)
    if checkpoint:
        check_same_run(run.out, checkpoint.run, fields)
    try:
        model = AlexNet(run.model, classes=len(dataset.classes), crop=run.data.crop, seed=run.seed)
    except ValueError as error:
        raise InputError(str(error)) from error
    model.to("cuda" if loader.device == "gpu" else "cpu")
    optimizer = Momentum(run.optim, dict(model.named_parameters()))
    state = State()
    if checkpoint:
        restore(checkpoint, model, optimizer)
        state = resumed(checkpoint, run, dataset.splits["train"].samples)
        say(f"resumed from {checkpoint.path}, restart {state.restarts}")
    if "val" not in dataset.splits:
        say(f"{run.data.shards} has no validation split: training without it; a plateau schedule keeps its rate")
    steps = -(-run.epochs * dataset.splits["train"].samples // run.batch_size)
    total = min(steps, run.max_steps or steps)
    return Setup(loader, model, optimizer, state, checkpoint.path if checkpoint else None, fields, total)


def resumed(checkpoint: Checkpoint, run: Run, samples: int) -> State:
    """The checkpoint's state, once more restarted; a rate that was changed by hand since is an event."""
    state = replace(checkpoint.state, restarts=checkpoint.state.restarts + 1)
    old, new = checkpoint.run["optim"]["lr"], run.optim.lr
    if old == new:
        return state
    event = rate_event(state, samples, Rates(old, old), Rates(new, new), "command line")
    return replace(state, events=(*state.events, event))


def rate_event(state: State, samples: int, old: Rates, new: Rates, author: str) -> dict[str, Any]:
    """A change of the learning rate: when, from what to what, and by whom; samples: an epoch's."""
    where = {"kind": "learning-rate", "step": state.step, "epoch": state.position / samples}
    return {**where, "old": asdict(old), "new": asdict(new), "author": author}


class NonFinite(Exception):
    """A step's loss or gradient was NaN or infinite; the weights are as they were before it."""


class Stop:
    """Whether a signal has asked for the run to end."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def request(self, number: int, _frame: object) -> None:
        """Note the signal; a second one of any kind ends the process at once."""
        self.signal = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)


class Late(NamedTuple):
    """A step's result on its way to the host."""

    step: int
    position: int
    rates: Rates
    values: Tensor  # (3,) on the host: loss, gradient norm, healthy
    arrived: "torch.cuda.Event | None"


def send(step: int, position: int, rates: Rates, result: StepResult) -> Late:
    """Start copying a result to the host; no step waits for it."""
    values = torch.stack([result.loss.float(), result.grad_norm.float(), result.healthy.float()])
    if not values.is_cuda:
        return Late(step, position, rates, values, None)
    host = torch.empty(3, pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Late(step, position, rates, host, arrived)


class Worker:
    """A run in progress: the network, its data, its state and everyone who hears of it."""

    LAG = 2  # steps that may be under way on the device before the host looks at a result

    def __init__(self, run: Run, display: Display, metrics: Metrics, heart: Heart, setup: Setup):
        self.run, self.display, self.metrics, self.heart = run, display, metrics, heart
        self.loader, self.state = setup.loader, setup.state
        self.device = torch.device("cuda" if setup.loader.device == "gpu" else "cpu")
        self.model, self.optimizer = setup.model, setup.optimizer
        self.mean = mean_crop(self.loader.dataset, run.data).to(self.device)
        self.healthy = torch.tensor(True, device=self.device)
        self.train_step = compiled_train_step() if run.compile else train_step
        self.samples = self.loader.dataset.splits["train"].samples
        self.validates = "val" in self.loader.dataset.splits
        self.total_steps = setup.total_steps
        self.log = JsonLines.cut(run.out / "log.jsonl", self.state.step)
        self.events = JsonLines.holding(run.out / "events.jsonl", self.state.events)
        self.rates_tensor: tuple[Rates, Tensor] | None = None
        self.saver = Saver(
            run.out,
            setup.fields,
            metrics,
            keep=run.keep_checkpoints,
            resumed_from=setup.resumed_from,
            say=display.say,
        )
        self.saved: State | None = self.state if setup.resumed_from else None
        self.pending: deque[Late] = deque()
        self.speed, self.waited = Speed(), 0.0

    def batches(self, stop: Stop) -> Iterator[Batch]:
        """Batches from where the run stands, until it is done or told to stop."""
        batches = self.loader.train(self.run.batch_size, self.state.position)
        while self.state.step < self.total_steps and stop.signal is None:
            start = time.monotonic()
            batch = next(batches)
            self.waited = time.monotonic() - start
            yield batch

    def step(self, batch: Batch) -> None:
        """Train on a batch, and read what has arrived of earlier ones."""
        start = time.monotonic()
        rates = self.rates()
        result = self.train_step(
            self.model, self.optimizer, self.mean, self.on_device(rates), self.healthy, Examples(*batch)
        )
        position = self.state.position + self.run.batch_size
        self.state = replace(self.state, step=self.state.step + 1, position=position)
        self.pending.append(send(self.state.step, position, rates, result))
        self.read_results(self.LAG if self.device.type == "cuda" else 0)
        now = time.monotonic()
        self.speed.add(now, self.run.batch_size, self.waited)
        self.metrics.step_seconds.labels("data_wait").observe(self.waited)
        self.metrics.step_seconds.labels("compute").observe(now - start)
        self.heart.beat("training")

    def rates(self) -> Rates:
        """The learning rates of the next step; a change since the step before is an event."""
        errors = [entry.top1 for entry in self.state.history]
        rates = rates_at(self.run.optim, self.state.position / self.samples, errors)
        past = [Rates(**event["new"]) for event in self.state.events if event["kind"] == "learning-rate"]
        old = past[-1] if past else Rates(self.run.optim.lr, self.run.optim.lr)
        if rates != old:
            event = rate_event(self.state, self.samples, old, rates, f"schedule {self.run.optim.schedule}")
            self.state = replace(self.state, events=(*self.state.events, event))
            self.events.append(event)
            self.display.say(f"step {self.state.step}: learning rate {old} -> {rates}")
        return rates

    def on_device(self, rates: Rates) -> Tensor:
        """(2,) tensor of the rates; made anew only at a change, because the copy would wait for the device."""
        if not self.rates_tensor or self.rates_tensor[0] != rates:
            self.rates_tensor = rates, torch.tensor([rates.base, rates.conv1], device=self.device)
        return self.rates_tensor[1]

    def read_results(self, lag: int) -> None:
        """Read all but the last `lag` results; NonFinite at the first that is not healthy."""
        while len(self.pending) > lag:
            late = self.pending.popleft()
            if late.arrived:
                late.arrived.synchronize()
            self.record(late)

    def record(self, late: Late) -> None:
        """Log a step and show it."""
        loss, grad_norm, healthy = late.values.tolist()
        if not healthy:
            self.metrics.nonfinite.inc()
            raise NonFinite(f"loss {loss} and gradient norm {grad_norm} at step {late.step}, expected finite numbers")
        pictures_per_second, wait_share = self.speed.rates()
        if late.step % self.run.log_every == 0:
            self.log.append(
                {
                    "step": late.step,
                    "epoch": late.position / self.samples,
                    "loss": loss,
                    "gradient_norm": grad_norm,
                    "learning_rate": late.rates.base,
                    "images_per_second": round(pictures_per_second, 1),
                    "data_wait_ratio": round(wait_share, 4),
                }
            )
        self.metrics.steps.inc()
        self.metrics.samples.inc(self.run.batch_size)
        self.metrics.epoch.set(late.position / self.samples)
        self.metrics.progress.set(late.step / self.total_steps)
        self.metrics.loss.set(loss)
        self.metrics.gradient_norm.set(grad_norm)
        self.metrics.learning_rate.set(late.rates.base)
        self.metrics.rate.set(pictures_per_second)
        self.metrics.data_wait.set(wait_share)
        self.display.update(late.step, loss, pictures_per_second, wait_share, self.run.batch_size)

    def validate_if_due(self, stop: Stop) -> None:
        """Measure the error after each epoch; a stop meanwhile leaves it to the resume."""
        epoch = self.state.position // self.samples
        done = self.state.history[-1].epoch if self.state.history else 0
        if not self.validates or epoch <= done:
            return
        self.read_results(0)
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for batch in self.loader.validation(self.run.batch_size):
            totals += eval_step(self.model, self.mean, Examples(*batch))
            self.heart.beat("validating")
            if stop.signal is not None:
                return
        gc.collect()  # a DALI pipeline is part of reference cycles, and holds the device's memory
        loss, top1, top5 = (totals / self.loader.dataset.splits["val"].samples).tolist()
        entry = Validation(epoch=epoch, step=self.state.step, loss=loss, top1=top1, top5=top5)
        self.state = replace(self.state, history=(*self.state.history, entry))
        self.log.append({"validation": True, **asdict(entry)})
        self.metrics.error.labels("1").set(top1)
        self.metrics.error.labels("5").set(top5)
        self.display.say(f"epoch {epoch}: validation loss {loss:.4f}, top-1 error {top1:.2%}, top-5 error {top5:.2%}")

    def save_if_due(self) -> None:
        """A checkpoint every `checkpoint_every` steps, and of the weights that were just validated."""
        validated = self.state.history[-1].step if self.state.history else 0
        if self.state.step % self.run.checkpoint_every == 0 or self.state.step == validated:
            self.save()

    def save(self) -> None:
        """Copy the state off the device and hand it to the writer."""
        if self.state == self.saved:
            return
        self.read_results(0)  # nothing that a NaN has touched is ever saved
        start = time.monotonic()
        tensors = copy_tensors(self.model, self.optimizer)
        self.metrics.step_seconds.labels("checkpoint_copy").observe(time.monotonic() - start)
        self.saver.submit(self.state, tensors)
        self.saved = self.state

    def close(self) -> bool:
        """Wait for the writer and close the files; whether the last checkpoint was written."""
        saved = self.saver.close()
        self.log.close()
        self.events.close()
        return saved
