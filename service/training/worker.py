"""A run in progress: it trains, validates, saves, does operators' acts, and reports to log, metrics and console."""

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from model.flop import training_flops_per_picture
from model.optim import LearningRates, changes_each_step, step_rates
from model.step import StepControls, StepInputs, compiled_train_step, train_step
from pipeline.host.memory import HolesInHeap
from pipeline.load.batch_loader import Batch
from pipeline.load.order import rank_slice
from service.run.checkpoint import Evaluation, RunState, Validation
from service.run.events import (
    Event,
    describe_change,
    make_act_event,
    make_rate_event,
    proposed_rate_drop,
    rate_changes,
    rates_of,
    reason_to_refuse,
)
from service.run.log import EVENTS_FILE, LOG_FILE, NOWHERE, JsonLog, StepRecord, sample_steps
from service.telemetry.console import ProgressDisplay, Throughput
from service.telemetry.heartbeat import COMPILE_FACTOR, Heartbeat
from service.telemetry.loss_curve import LossCurve, Point
from service.telemetry.metrics import Metrics
from service.telemetry.preview import Preview
from service.training.checkpoint_writer import (
    BackgroundSaver,
    CheckpointClock,
    CheckpointWriter,
    collect_towers,
    must_copy_tensors,
    send_tower,
)
from service.training.control_queue import ControlQueue, ControlRequest, Refused
from service.training.graceful_stop import GracefulStop
from service.training.rank_agreement import RankAgreement
from service.training.setup import Setup
from service.training.snapshot import Snapshots
from service.training.step_result import PendingResult, RecentLosses, StepFault, start_copy
from service.training.validation import Validator

# As measured: docs/benchmarks.md.
COMPILING: Final = "compiling the step, usually half a minute to two minutes; a few seconds the next time"
PAUSE_SECONDS: Final = 0.5  # between checks for a signal or an act, and between heartbeats, while the run is paused


class Worker:
    """A run in progress: the network, its data and state, and the checkpoints, log, metrics and console of it."""

    LAG = 2  # steps that may be under way on the device before the host reads a result

    def __init__(
        self,
        display: ProgressDisplay,
        metrics: Metrics,
        heartbeat: Heartbeat,
        stop: GracefulStop,
        control_queue: ControlQueue,
        setup: Setup,
    ):
        self.display, self.metrics, self.heartbeat, self.stop = display, metrics, heartbeat, stop
        self.control_queue = control_queue
        self.run = run = setup.run
        self.preprocessing = setup.preprocessing
        self.loader, self.training, self.state = setup.loader, setup.training, setup.state
        self.device = setup.training.mean.device
        self.train_step = compiled_train_step() if run.compile else train_step
        self.samples = self.loader.dataset.splits["train"].samples
        self.validates = "val" in self.loader.dataset.splits
        self.total_steps = setup.total_steps
        self.ranks = ranks = setup.ranks
        self.clock = CheckpointClock(run.checkpoint_seconds)
        self.agreement = RankAgreement(ranks, stop, control_queue, self.clock.due, self.device)
        self.validator = Validator(setup.training, self.loader, run.batch_size, self.agreement, run.compile)
        self.paused, self.ended_by = False, ""  # ended_by: the operator who stopped the run
        parallel = setup.training.parallel
        mine = rank_slice(run.batch_size, ranks.rank, ranks.world_size)
        self.own_pictures = mine.stop - mine.start
        flop = training_flops_per_picture(run.model, len(self.loader.dataset.classes), run.data.crop)
        # Of all ranks' devices together; NaN where no peak is stated, which makes the MFU NaN too.
        self.peak_pictures_per_second = ranks.world_size * run.peak_tflops * 1e12 / flop or float("nan")
        log, events = (run.out / LOG_FILE, run.out / EVENTS_FILE) if ranks.is_leader else (NOWHERE, NOWHERE)
        self.log = JsonLog.truncated_to(log, self.state.step, display.say)
        self.events = JsonLog.with_records(events, self.state.events, display.say)
        metrics.failed_writes |= {"log": lambda: self.log.failures, "events": lambda: self.events.failures}
        self.rates_sent: tuple[list[float], Tensor] | None = None
        self.writer = CheckpointWriter(
            run.out,
            setup.fields,
            metrics,
            files=setup.preprocessing.files(),
            keep=run.keep_checkpoints,
            resumed_from=setup.resumed_from,
            say=display.say,
            logs=(self.log, self.events),
            collect=partial(collect_towers, ranks, parallel),
        )
        self.saver = BackgroundSaver(self.writer if ranks.is_leader else lambda _, tensors: send_tower(ranks, tensors))
        self.snapshots = Snapshots(setup.training.model, setup.training.optimizer)
        self.saved: RunState | None = self.state if setup.resumed_from else None
        self.pending: deque[PendingResult] = deque()
        self.losses = RecentLosses(self.state.recent_losses)
        self.speed, self.waited = Throughput(), 0.0
        self.heap = HolesInHeap()
        self.rates = self.current_rates()
        self.latest: StepRecord | None = None
        logged = sample_steps(run.out / LOG_FILE) if ranks.is_leader else []
        self.curve = LossCurve.resumed([Point(each["step"], each["epoch"], each["loss"]) for each in logged])
        self.preview = Preview()
        self.update_run_metrics()

    @property
    def validation_due(self) -> bool:
        """Whether the error after the epochs done so far is still to be measured."""
        done = self.state.history[-1].epoch if self.state.history else 0
        return self.validates and self.state.position // self.samples > done

    @property
    def evaluation_due(self) -> bool:
        """Whether all epochs are done and validated, and the network is still to be measured on the paper's views."""
        if not self.validates or self.validation_due or self.state.position < self.run.epochs * self.samples:
            return False
        return self.state.evaluation is None or self.state.evaluation.step != self.state.step

    @property
    def finished(self) -> bool:
        """Whether nothing of the run is left to do."""
        return self.state.step >= self.total_steps and not self.validation_due and not self.evaluation_due

    def announce_compiling(self) -> None:
        """Allow more time for the first step, which compiles, and say so."""
        self.heartbeat.beat("compiling", COMPILE_FACTOR)
        if self.run.compile and self.state.step < self.total_steps:
            self.display.show_waiting(COMPILING)

    def batches(self) -> Iterator[Batch]:
        """Batches from where the run stands, until it is done or the ranks have agreed to end it."""
        batches = self.loader.train(self.run.batch_size, self.state.position)
        while self.state.step < self.total_steps and not self.agreement.should_end:
            start = time.monotonic()
            batch = next(batches)
            self.waited = time.monotonic() - start
            yield batch

    def step(self, batch: Batch) -> None:
        """Train on a batch, and read what has arrived of earlier ones."""
        start = time.monotonic()
        rates = self.next_rates()
        controls = StepControls(self.rates_on_device(rates), self.agreement.local_flags(), self.loss_limit())
        result = self.train_step(self.training, controls, StepInputs(*batch))
        position = self.state.position + self.run.batch_size
        self.state = replace(self.state, step=self.state.step + 1, position=position)
        self.pending.append(start_copy(self.state, rates, result))
        if self.preview.requested:
            self.preview.capture(self.state.step, batch)
        self.read_results(self.LAG if self.device.type == "cuda" else 0)
        self.report_damage()
        now = time.monotonic()
        self.speed.add(now, self.run.batch_size, self.waited)
        self.metrics.step_seconds.labels("data_wait").observe(self.waited)
        self.metrics.step_seconds.labels("compute").observe(now - start)
        self.heartbeat.beat("training")
        self.heap.after_step()

    def current_rates(self) -> LearningRates:
        """The learning rates as the run stands."""
        return rates_of(self.run.optim, self.state, self.samples, self.run.epochs)

    def next_rates(self) -> LearningRates:
        """The learning rates of the next step; a change without an event, which the schedule made, gets one.

        But not where the schedule changes them with every step: those are in the log of steps.
        """
        rates = self.current_rates()
        changes = rate_changes(self.state.events)
        old = LearningRates(**changes[-1]["new"]) if changes else LearningRates(self.run.optim.lr, self.run.optim.lr)
        if rates != old and not changes_each_step(self.run.optim, self.state.position / self.samples):
            self.record_event(
                make_rate_event(self.state, self.samples, old, rates, f"schedule {self.run.optim.schedule}")
            )
        self.rates = rates
        return rates

    def record_event(self, event: Event) -> None:
        """Add an event to the state, events.jsonl and the metrics, and print it."""
        self.state = replace(self.state, events=(*self.state.events, event))
        self.rates = self.current_rates()
        self.events.append(event)
        self.metrics.events.labels(event["kind"]).inc()
        self.update_run_metrics()
        words = [
            event["kind"],
            describe_change(event),
            f"by {event['author']}",
            event["reason"] and f"({event['reason']})",
        ]
        self.display.say(f"step {self.state.step}: {' '.join(word for word in words if word)}")

    def update_run_metrics(self) -> None:
        """Set the metrics of the run's progress, which are known before the first step of a resume."""
        self.metrics.epoch.set(self.state.position / self.samples)
        self.metrics.progress.set(self.state.step / self.total_steps)
        self.metrics.learning_rate.set(self.rates.base)
        for entry in self.state.history[-1:]:
            self.metrics.error.labels("1").set(entry.top1)
            self.metrics.error.labels("5").set(entry.top5)
        self.metrics.latest_events = self.state.events
        self.metrics.paused.set(self.paused)
        self.metrics.drop_proposed.set(proposed_rate_drop(self.run.optim, self.state, self.rates.base) is not None)

    def rates_on_device(self, rates: LearningRates) -> Tensor:
        """(2,) tensor of the rates, (3,) where weights are averaged; made anew only at a change."""
        values = step_rates(self.run.optim, rates, self.state.step)
        if not self.rates_sent or self.rates_sent[0] != values:
            # To a GPU from pinned memory, because the copy would else wait for all steps that are under way.
            host = torch.tensor(values, pin_memory=self.device.type == "cuda")
            self.rates_sent = values, host.to(self.device, non_blocking=True)
        return self.rates_sent[1]

    def loss_limit(self) -> Tensor | None:
        """Beyond which the next step's loss is a fault, on the device; None where there is no such limit."""
        if not self.run.loss_limit:
            return None
        limit = self.losses.limit(self.run.loss_limit, self.state.step + 1)
        host = torch.tensor(limit, pin_memory=self.device.type == "cuda")
        return host.to(self.device, non_blocking=True)

    def report_damage(self) -> None:
        """Count the damaged samples that were replaced since the last call, and print where they are."""
        found, self.loader.damaged = self.loader.damaged, []
        for place in found:
            self.metrics.replaced.labels("damaged").inc()
            self.display.say(f"damaged sample ({place}): another stands in; shard the data set again")

    def act(self) -> None:
        """Do operators' acts, on all ranks after the same step; a pause lasts until an act or a signal ends it."""
        if not self.agreement.should_act:
            return
        self.read_results(0)
        self.speed = Throughput()  # the time that acts take must not count as the steps'
        for request in self.agreement.requests():
            self.perform(request)
        while self.paused and not self.agreement.should_end:
            self.heartbeat.beat("paused")
            for request in self.agreement.requests(PAUSE_SECONDS):
                self.perform(request)

    def perform(self, request: ControlRequest) -> None:
        """Do an operator's act; it is answered when the checkpoint that has its event is on disk."""
        act = request.act
        if problem := reason_to_refuse(act, self.rates, self.paused):
            request.response.set_exception(Refused(409, problem))
            return
        self.paused = act.kind == "pause" or (self.paused and act.kind != "resume")
        event = make_act_event(act, self.state, self.samples, self.rates)
        self.record_event(event)
        if act.kind == "stop":
            self.ended_by = act.author
            self.agreement.request_end()
        self.save()
        self.saver.when_done(partial(self.answer, request, event))

    def answer(self, request: ControlRequest, event: Event, saved: Future[bool]) -> None:
        """Answer the operator: the act's event and its checkpoint, or Refused where the save failed."""
        if not saved.exception() and saved.result():
            good = self.writer.last_good
            request.response.set_result({"event": event, "checkpoint": good and good.name})
        else:
            request.response.set_exception(
                Refused(503, f"done, but not on disk: {saved.exception() or self.writer.failed}")
            )

    def read_results(self, lag: int) -> None:
        """Read all but the last `lag` results; StepFault at the first whose numbers went wrong."""
        while len(self.pending) > lag:
            self.log_result(self.pending.popleft())

    def log_result(self, result: PendingResult) -> None:
        """Log a step and show it."""
        loss, grad_norm, all_finite, *flags = result.values.read()
        self.agreement.update(flags)
        step, epoch = result.state.step, result.state.position / self.samples
        if not all_finite:
            self.metrics.nonfinite.inc()
            expected = "finite numbers"
            if math.isfinite(loss) and math.isfinite(grad_norm):
                limit = self.losses.limit(self.run.loss_limit, step)
                expected = f"at most {limit:.4g}, {self.run.loss_limit:g} times the median of late"
            found = f"loss {loss:.6g} and gradient norm {grad_norm:.6g} at step {step}"
            raise StepFault(f"{found}, expected {expected}", result.state)
        if self.run.loss_limit:
            self.losses.add(step, loss)
        pictures_per_second, wait_share = self.speed.rates()
        self.latest = StepRecord(
            step=step,
            epoch=epoch,
            loss=loss,
            gradient_norm=grad_norm,
            learning_rate=result.rates.base,
            images_per_second=round(pictures_per_second, 1),
            data_wait_ratio=round(wait_share, 4),
        )
        if step % self.run.log_every == 0:
            self.log.append(vars(self.latest))
        self.curve.add(step, epoch, loss)
        self.metrics.observe_step(self.latest, self.own_pictures)
        self.metrics.progress.set(step / self.total_steps)
        self.metrics.rate.set(pictures_per_second * self.own_pictures / self.run.batch_size)
        self.metrics.mfu.set(pictures_per_second / self.peak_pictures_per_second)
        self.display.update(step, loss, pictures_per_second, wait_share, self.run.batch_size)

    def validate_if_due(self) -> None:
        """Measure the error after each epoch; if the run is ended meanwhile, a resume does it."""
        if not self.validation_due:
            return
        self.read_results(0)
        measured = self.validator.measure(lambda: self.heartbeat.beat("validating"))
        if measured is None:
            return
        loss, top1, top5 = measured
        epoch = self.state.position // self.samples
        entry = Validation(epoch=epoch, step=self.state.step, loss=loss, top1=top1, top5=top5)
        self.state = replace(self.state, history=(*self.state.history, entry))
        self.log.append({"validation": True, **asdict(entry)})
        self.update_run_metrics()
        self.display.say(f"epoch {epoch}: validation loss {loss:.4f}, top-1 error {top1:.2%}, top-5 error {top5:.2%}")

    def record_evaluation(self, found: Evaluation) -> None:
        """Log and print how the finished network does, and save it with the network."""
        self.state = replace(self.state, evaluation=found)
        self.log.append({"evaluation": True, **asdict(found)})
        low, high = found.interval
        self.display.say(
            f"evaluation, {found.views} views of {found.samples:,} pictures: top-1 error {found.top1:.2%} "
            f"(95% {low:.2%} to {high:.2%}), top-5 error {found.top5:.2%}"
        )
        self.save()

    def save_start(self) -> None:
        """Save what a run starts from another's network with, so that its next start is a resume of its own."""
        if self.run.parent and self.saved is None:
            self.save()

    def save_if_due(self) -> None:
        """A checkpoint as often as the run's options say, by time and by steps, and of what was just validated."""
        step, every = self.state.step, self.run.checkpoint_every
        validated = self.state.history[-1].step if self.state.history else 0
        if step == validated or (every and step % every == 0) or self.agreement.should_save:
            self.save()

    def save(self) -> None:
        """Copy the state and hand it to the BackgroundSaver; off a GPU it is taken beside the steps."""
        if self.state == self.saved:
            return
        self.read_results(0)  # raises StepFault first, so that no NaN is ever saved
        if self.run.loss_limit:
            self.state = replace(self.state, recent_losses=self.losses.kept())
        self.saver.wait()  # before the copy, so that no two are held
        start = time.monotonic()
        needed = must_copy_tensors(self.ranks, self.training.parallel)
        fetch = self.snapshots.take() if needed else dict
        self.metrics.step_seconds.labels("checkpoint_copy").observe(time.monotonic() - start)
        self.saver.submit(self.state, fetch)
        self.saved = self.state
        self.clock.restart()
        self.agreement.saved()

    def go_on_from(self, state: RunState) -> None:
        """Forget the steps after `state`, which changed nothing, and train on with what comes after it."""
        self.pending.clear()
        self.state = state
        self.training.all_finite.fill_(True)
        self.events.cut_to(state.events)
        self.speed = Throughput()

    def close(self) -> bool:
        """Wait for the BackgroundSaver; returns, on every rank, whether rank 0 wrote the last checkpoint."""
        self.heartbeat.beat("ended")
        self.validator.close()
        saved = self.saver.close()
        self.log.close()
        self.events.close()
        return self.ranks.broadcast(saved)
