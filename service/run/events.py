"""Acts on a run, by an operator or by its schedule: their kinds, the events that record them, and their effects.

The paper's learning rate was lowered by hand when the validation error stopped improving; so the operator is part of
the method. An event is a plain record: kind, step, epoch, time, author, reason, and what was changed.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

from model.optim import LearningRates, OptimConfig, rates_at
from service.run.checkpoint import RunState, Validation
from service.run.limits import HIGHEST_RATE

Kind = Literal["learning-rate", "checkpoint", "pause", "resume", "stop"]
ANSWERS: Final = ("skip", "rollback")  # of a run to a fault of its numbers
# Of events: acts, a precision changed at a resume, the start from another run, and answers to faults.
KINDS: Final[tuple[str, ...]] = (*get_args(Kind), "precision", "fork", *ANSWERS)

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Act:
    """What an operator asks for."""

    kind: Kind
    author: str
    reason: str = ""
    rate: float | None = None  # learning-rate: the new one
    factor: float | None = None  # or what the current one is multiplied by


def make_event(kind: str, state: RunState, samples: int, author: str, reason: str = "") -> Event:
    """An event at the run's current step; samples: in an epoch."""
    epoch = state.position / samples
    return {"kind": kind, "step": state.step, "epoch": epoch, "time": time.time(), "author": author, "reason": reason}


def make_rate_event(
    state: RunState,
    samples: int,
    old: LearningRates,
    new: LearningRates,
    author: str,
    reason: str = "",
    manual: bool = False,
) -> Event:
    """A change of the learning rate from `old` to `new`; manual: by an operator, which overrides the schedule."""
    event = make_event("learning-rate", state, samples, author, reason)
    return {**event, "manual": manual, "old": asdict(old), "new": asdict(new)}


def make_precision_event(state: RunState, samples: int, old: str, new: str, author: str) -> Event:
    """A change of the precision at a resume, from `old` to `new`."""
    return {**make_event("precision", state, samples, author), "old": old, "new": new}


def make_fork_event(
    state: RunState, samples: int, parent: Mapping[str, Any], keep: str, new_schedule: bool = False
) -> Event:
    """The start of a run from another's network.

    parent: its path, step (None for a file that does not say) and SHA-256. new_schedule: whether the learning rates are
    this run's from here on, whatever an operator of the parent's had set.
    """
    step = "" if parent["step"] is None else f" at step {parent['step']:,}"
    reason = f"from {parent['path']}{step} (SHA-256 {parent['sha256'][:12]}), {keep} kept"
    event = make_event("fork", state, samples, "command line", reason)
    return {**event, "parent": dict(parent), "keep": keep, "new_schedule": new_schedule}


def make_fault_event(kind: str, state: RunState, samples: int, first: int, reason: str) -> Event:
    """An answer to a fault: the training positions from `first` to the run's own are left out."""
    return {**make_event(kind, state, samples, "on-fault", reason), "positions": [first, state.position]}


def reason_to_refuse(act: Act, rates: LearningRates, paused: bool) -> str:
    """Why an act cannot be done as the run stands; empty where it can."""
    if act.kind == "pause" and paused:
        return "the run is paused already, expected one that trains; see /api/status"
    if act.kind == "resume" and not paused:
        return "the run does not pause, expected one that does; see /api/status"
    if act.kind == "learning-rate" and not 0 <= (rate := requested_rate(act, rates)) <= HIGHEST_RATE:
        return f"the learning rate would be {rate:g}, expected 0 to {HIGHEST_RATE:g}; ask for another"
    return ""


def requested_rate(act: Act, rates: LearningRates) -> float:
    """The base rate that an act asks for."""
    return act.rate if act.rate is not None else rates.base * (1.0 if act.factor is None else act.factor)


def make_act_event(act: Act, state: RunState, samples: int, rates: LearningRates) -> Event:
    """The event that records an operator's act; rates: the current ones."""
    if act.kind != "learning-rate":
        return make_event(act.kind, state, samples, act.author, act.reason)
    new = with_base(rates, requested_rate(act, rates))
    return make_rate_event(state, samples, rates, new, act.author, act.reason, manual=True)


def rate_changes(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that changed the learning rate."""
    return [event for event in events if event["kind"] == "learning-rate"]


def since_new_schedule(state: RunState) -> RunState:
    """The state with only those events and validations that its schedule goes by: since a fork that has its own."""
    starts = [place for place, event in enumerate(state.events) if event.get("new_schedule")]
    if not starts:
        return state
    fork = state.events[starts[-1]]
    history = tuple(entry for entry in state.history if entry.step > fork["step"])
    return replace(state, events=state.events[starts[-1] + 1 :], history=history)


def manual_base_rate(events: Iterable[Mapping[str, Any]]) -> float | None:
    """The base rate that an operator has set last, which overrides the schedule; None where none has."""
    rates = [event["new"]["base"] for event in rate_changes(events) if event.get("manual")]
    return rates[-1] if rates else None


def rates_of(config: OptimConfig, state: RunState, samples: int, epochs: float) -> LearningRates:
    """The rates of the next step: the schedule's, until an operator has set one; conv1's overrides stay.

    samples: in an epoch; epochs: the whole run's.
    """
    state = since_new_schedule(state)
    scheduled = rates_at(config, state.position / samples, [entry.top1 for entry in state.history], epochs)
    base = manual_base_rate(state.events)
    return scheduled if base is None else with_base(scheduled, base)


def with_base(rates: LearningRates, base: float) -> LearningRates:
    """The rates with another base; conv1's follows it unless it already had its own."""
    return LearningRates(base, base if rates.conv1 == rates.base else rates.conv1)


def epochs_without_improvement(config: OptimConfig, history: Sequence[Validation], changes: Sequence[int]) -> int:
    """Validations without a new lowest error since the last one, or since the rate was last changed (after a step)."""
    lowest, waited, last = float("inf"), 0, 0
    for entry in history:
        if any(last <= change < entry.step for change in changes):
            waited = 0
        if entry.top1 <= lowest - config.min_improvement:
            lowest, waited = entry.top1, 0
        else:
            waited += 1
        last = entry.step
    return 0 if any(change >= last for change in changes) else waited


def proposed_rate_drop(config: OptimConfig, state: RunState, rate: float) -> dict[str, Any] | None:
    """The paper's heuristic where an operator sets the rate: what to lower it to, and why; None where not yet.

    rate: the current one. Schedule plateau does the same by itself.
    """
    state = since_new_schedule(state)
    if config.schedule != "manual" and manual_base_rate(state.events) is None:
        return None
    changes = rate_changes(state.events)
    drops = sum(event["new"]["base"] < event["old"]["base"] for event in changes)
    waited = epochs_without_improvement(config, state.history, [event["step"] for event in changes])
    if waited < config.patience or drops >= config.max_drops:
        return None
    lowest = min(entry.top1 for entry in state.history)
    reason = (
        f"validation top-1 error has not fallen by {config.min_improvement:g} for {waited} epochs "
        f"(lowest {lowest:.2%}); the paper divided the rate by ten then"
    )
    return {"rate": rate * config.drop_factor, "factor": config.drop_factor, "reason": reason}


def describe_change(event: Mapping[str, Any]) -> str:
    """What an event changed, in a word: 0.01 -> 0.001 of a learning rate, mixed -> float32; empty for other acts.

    Of an answer to a fault, which training positions are left out.
    """
    if event["kind"] in ANSWERS:
        first, end = event["positions"]
        return f"positions {first:,} to {end - 1:,} left out"
    if event["kind"] == "learning-rate":
        return f"{event['old']['base']:g} -> {event['new']['base']:g}"
    return f"{event['old']} -> {event['new']}" if event["kind"] == "precision" else ""
