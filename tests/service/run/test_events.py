"""Acts, the events that record them, and what follows: rates by hand, and when the paper would have lowered them."""

from dataclasses import replace

import pytest

from model.optim import LearningRates, OptimConfig, plateau_drops, rates_at
from service.run.checkpoint import RunState, Validation
from service.run.events import (
    Act,
    epochs_without_improvement,
    make_act_event,
    make_rate_event,
    proposed_rate_drop,
    rates_of,
    reason_to_refuse,
)
from service.telemetry.loss_curve import LossCurve, Point
from service.training.control_queue import MAX_PENDING, ControlQueue, Refused

SAMPLES = 100
EPOCHS = 90
MANUAL = OptimConfig(schedule="manual", patience=3)


def history(*errors: float) -> tuple[Validation, ...]:
    """An error after each epoch of ten steps."""
    return tuple(
        Validation(epoch=i, step=10 * i, loss=1.0, top1=error, top5=error / 2) for i, error in enumerate(errors, 1)
    )


def state_after(*errors: float, events: tuple = ()) -> RunState:
    return RunState(step=10 * len(errors), position=SAMPLES * len(errors), history=history(*errors), events=events)


def act(**fields) -> Act:
    return Act(kind="learning-rate", author="alice", **fields)


def test_a_rate_set_by_hand_holds_whatever_the_schedule_says() -> None:
    config = OptimConfig(schedule="steps", drop_epochs=(2,))
    before = RunState(position=SAMPLES)
    assert rates_of(config, before, SAMPLES, EPOCHS) == rates_at(config, 1, (), EPOCHS) == LearningRates(0.01, 0.01)
    event = make_act_event(act(rate=0.5, reason="why not"), before, SAMPLES, LearningRates(0.01, 0.01))
    assert (event["author"], event["reason"], event["manual"]) == ("alice", "why not", True)
    assert (event["old"]["base"], event["new"]["base"]) == (0.01, 0.5)
    later = replace(before, position=3 * SAMPLES, events=(event,))
    assert rates_of(config, later, SAMPLES, EPOCHS) == LearningRates(0.5, 0.5)
    # A schedule's own event does not take the rate out of its hands.
    own = make_rate_event(before, SAMPLES, LearningRates(0.01, 0.01), LearningRates(0.001, 0.001), "schedule steps")
    assert rates_of(config, replace(later, events=(own,)), SAMPLES, EPOCHS) == rates_at(config, 3, (), EPOCHS)


def test_a_factor_multiplies_the_current_rate_and_conv1_keeps_its_override() -> None:
    state = RunState(position=70 * SAMPLES)
    event = make_act_event(act(factor=0.1), state, SAMPLES, LearningRates(0.01, 1e-5))
    assert event["new"] == {"base": pytest.approx(0.001), "conv1": 1e-5}
    config = OptimConfig(schedule="steps", conv1_lr=((68, 1e-5), (72, 0.0)))
    assert rates_of(config, replace(state, events=(event,)), SAMPLES, EPOCHS).conv1 == 1e-5
    assert rates_of(config, replace(state, position=72 * SAMPLES, events=(event,)), SAMPLES, EPOCHS).conv1 == 0.0


def test_a_rate_beyond_all_use_and_a_pause_of_a_pause_are_refused() -> None:
    rates = LearningRates(50.0, 50.0)
    assert not reason_to_refuse(act(factor=2), rates, paused=False) and not reason_to_refuse(
        act(rate=0.0), rates, paused=True
    )
    for wrong in (act(factor=2.1), act(rate=101.0), act(rate=-0.1), act(rate=float("nan")), act(rate=float("inf"))):
        assert "expected 0 to 100" in reason_to_refuse(wrong, rates, paused=False)
    pause, resume = (Act(kind=kind, author="alice") for kind in ("pause", "resume"))
    assert not reason_to_refuse(pause, rates, paused=False) and "already" in reason_to_refuse(pause, rates, paused=True)
    assert not reason_to_refuse(resume, rates, paused=True) and "does not" in reason_to_refuse(
        resume, rates, paused=False
    )


def test_waiting_is_counted_as_the_plateau_schedule_counts_it() -> None:
    """The first epoch at which the helper proposes is that at which the schedule drops, for any course of errors."""
    courses = [
        (0.9, 0.8, 0.7, 0.7, 0.7, 0.7),
        (0.9, 0.9, 0.9, 0.9),
        (0.9, 0.8, 0.9, 0.79, 0.9, 0.9, 0.9),
        (0.5, 0.4995, 0.499, 0.4985, 0.498, 0.4),
    ]
    for errors in courses:
        for n in range(len(errors) + 1):
            dropped = plateau_drops(errors[:n], MANUAL.patience, MANUAL.min_improvement, 1) == 1
            proposed = any(proposed_rate_drop(MANUAL, state_after(*errors[:k]), 0.01) for k in range(n + 1))
            assert proposed == dropped, (errors, n)


def test_a_change_of_the_rate_starts_the_waiting_anew() -> None:
    errors = (0.9, 0.8, 0.8, 0.8, 0.8)
    assert epochs_without_improvement(MANUAL, history(*errors), []) == 3
    assert epochs_without_improvement(MANUAL, history(*errors), [50]) == 0  # after the last validation
    assert epochs_without_improvement(MANUAL, history(*errors), [40]) == 1
    assert epochs_without_improvement(MANUAL, history(*errors), [35]) == 2


def test_the_proposal_says_what_and_why_and_only_where_the_rate_is_the_operators() -> None:
    stuck = state_after(0.9, 0.8, 0.8, 0.8, 0.8)
    found = proposed_rate_drop(MANUAL, stuck, 0.01)
    assert found and found["rate"] == pytest.approx(0.001) and found["factor"] == 0.1
    assert "for 3 epochs (lowest 80.00%)" in found["reason"]
    plateau = replace(MANUAL, schedule="plateau")
    assert proposed_rate_drop(plateau, stuck, 0.01) is None  # it does so by itself
    taken = make_act_event(act(rate=0.01), RunState(step=1, position=10), SAMPLES, LearningRates(0.02, 0.02))
    assert proposed_rate_drop(plateau, replace(stuck, events=(taken,)), 0.01)
    drops = tuple(
        make_rate_event(
            RunState(step=s, position=10), SAMPLES, LearningRates(1, 1), LearningRates(0.1, 0.1), "alice", manual=True
        )
        for s in (1, 2, 3)
    )
    assert proposed_rate_drop(MANUAL, replace(stuck, events=drops), 0.01) is None  # the paper has three


def test_the_desk_hands_on_in_order_and_refuses_what_is_too_much_or_too_late() -> None:
    control_queue = ControlQueue()
    asked = [control_queue.submit(Act(kind="checkpoint", author=str(i))) for i in range(MAX_PENDING)]
    with pytest.raises(Refused) as error:
        control_queue.submit(Act(kind="checkpoint", author="one more"))
    assert error.value.status == 429
    taken = control_queue.take()
    assert [request.act.author for request in taken] == [
        str(i) for i in range(MAX_PENDING)
    ] and not control_queue.waiting
    taken[0].response.set_result({})
    control_queue.submit(Act(kind="stop", author="bob"))  # there is room again
    control_queue.close("it is over")
    assert asked[0].result() == {}
    for left in asked[1:]:
        error = left.exception()
        assert isinstance(error, Refused) and (error.status, str(error)) == (409, "it is over")
    with pytest.raises(Refused, match="it is over"):
        control_queue.submit(Act(kind="pause", author="late"))
    assert control_queue.take() == []


def test_a_curve_keeps_few_points_that_average_all_steps() -> None:
    curve = LossCurve(most=8)
    for step in range(1, 1001):
        curve.add(step, step / 10, float(step))
    columns = curve.columns()
    assert 4 <= len(columns["step"]) <= 8
    width = columns["step"][1] - columns["step"][0]
    assert all(b - a == width for a, b in zip(columns["step"], columns["step"][1:], strict=False))
    for step, loss in zip(columns["step"], columns["loss"], strict=True):
        assert loss == step - (width - 1) / 2  # the mean of the steps up to it
    resumed = LossCurve.resumed([Point(int(s), 0.0, 1.0) for s in columns["step"]], most=8)
    for step in range(1001, 3001):
        resumed.add(step, 0.0, 1.0)
    steps = resumed.columns()["step"]
    assert len(steps) <= 8 and steps[-1] > 2500 and steps[0] <= 1001
