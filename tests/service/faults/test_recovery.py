"""A run whose numbers go wrong leaves out what it says that it leaves out, and nothing else; real workers."""

import json
import re
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

from processes import command, losses, run, torchrun, weights
from service.run.checkpoint import FOLDER, checkpoints, read_checkpoint, step_of
from service.run.log import EVENTS_FILE, read_records
from service.training.step_result import DELAY, LEAST, WINDOW, RecentLosses

PROGRAM = Path(__file__).with_name("faulty_worker.py")


# Twelve steps of ten pictures; a checkpoint after every third step, which is an epoch.
SMALL = ("--epochs", "4", "--batch-size", "10", "--checkpoint-every", "3", "--checkpoint-seconds", "0")


def faulty(shards: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, str(PROGRAM), *command(shards, out, *SMALL, *options)[3:]]


def assert_same(one: Path, other: Path) -> None:
    """Weights and velocities of the newest checkpoints, which are of the same step."""
    ours, theirs = (weights(out, step_of(checkpoints(out)[0])) for out in (one, other))
    assert checkpoints(one)[0].name == checkpoints(other)[0].name
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("answer", "wrong", "left"),
    [
        ("rollback", 5, (4, 5)),
        # the last, after which there is still its epoch's error to measure
        pytest.param("skip", 12, (12,), marks=pytest.mark.slow),
        pytest.param("skip", 5, (5,), marks=pytest.mark.slow),
        pytest.param("skip", 6, (6,), marks=pytest.mark.slow),
    ],
)
def test_what_is_left_out_is_as_if_it_had_never_been(
    shards: Path, tmp_path: Path, answer: str, wrong: int, left: tuple[int, ...]
) -> None:
    out, other = tmp_path / answer, tmp_path / "other"
    status, output = run(faulty(shards, out, "--on-fault", answer), POISON=str(wrong))
    assert status == 0, output
    status, said = run(faulty(shards, other), LEFT=",".join(map(str, left)))
    assert status == 0, said
    assert_same(out, other)
    assert list(losses(out)) == [step for step in range(1, 13) if step != wrong]
    (event,) = read_records(out / EVENTS_FILE)
    positions = [10 * (left[0] - 1), 10 * wrong]
    assert (event["kind"], event["step"], event["author"], event["positions"]) == (answer, wrong, "on-fault", positions)
    assert f"at step {wrong}, expected finite numbers" in event["reason"]
    assert f"positions {positions[0]} to {positions[1] - 1} left out" in output
    state, never = (read_checkpoint(checkpoints(each)[0]).state for each in (out, other))
    assert state.step == 12 and state.events == (event,)
    assert state.history == never.history and state.evaluation == never.evaluation
    assert [entry.step for entry in state.history] == [3, 6, 9, 12]
    # After the fault the losses are those of the run that never met it.
    after = [{step: loss for step, loss in losses(each).items() if step > wrong} for each in (out, other)]
    assert after[0] == after[1]


@pytest.mark.slow
def test_too_many_faults_end_the_run_and_so_does_one_by_default(shards: Path, tmp_path: Path) -> None:
    status, output = run(faulty(shards, tmp_path / "skip", "--on-fault", "skip", "--most-faults", "3"), POISON="5-")
    assert status == 1
    assert "at step 8, expected finite numbers; 3 faults have been answered, expected no more (--most-faults)" in output
    assert [event["step"] for event in read_records(tmp_path / "skip" / EVENTS_FILE)] == [5, 6, 7]
    status, output = run(faulty(shards, tmp_path / "end"), POISON="5")
    assert status == 1 and "step-00000003; go on with --on-fault skip" in output
    assert not list(read_records(tmp_path / "end" / EVENTS_FILE))
    # Which is the way on, with the weights of before.
    status, output = run(faulty(shards, tmp_path / "end", "--on-fault", "skip"), POISON="5")
    assert status == 0 and "restart 1" in output
    status, output = run(faulty(shards, tmp_path / "whole", "--on-fault", "skip"), POISON="5")
    assert status == 0
    assert_same(tmp_path / "end", tmp_path / "whole")


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(shards: Path, tmp_path: Path) -> None:
    status, output = run(faulty(shards, tmp_path, "--on-fault", "rollback"), POISON="2")
    assert status == 1 and "there is no checkpoint yet, expected one to go back to" in output
    assert not (tmp_path / FOLDER).exists() or not checkpoints(tmp_path)


@pytest.mark.slow
def test_a_loss_beyond_the_limit_is_a_fault_before_it_moves_a_weight(shards: Path, tmp_path: Path) -> None:
    out, other, longer = tmp_path / "out", tmp_path / "other", ["--epochs", "12"]
    limit = [*longer, "--on-fault", "skip", "--loss-limit", "20"]
    status, output = run(faulty(shards, out, *limit), POISON="30", HUGE="1")
    assert status == 0, output
    reason = re.search(
        r"loss (\S+) and gradient norm \S+ at step 30, expected at most (\S+), 20 times the median", output
    )
    assert reason and float(reason[1]) > float(reason[2])
    before = [loss for step, loss in losses(out).items() if step <= 30 - DELAY]
    assert float(reason[2]) == pytest.approx(20 * median(before), rel=1e-3)
    status, said = run(faulty(shards, other, *longer), LEFT="30")
    assert status == 0, said
    assert_same(out, other)
    state = read_checkpoint(checkpoints(out)[0]).state
    assert dict(state.recent_losses) == losses(out)


def test_the_limit_is_of_the_median_of_the_last_hundred_but_for_those_that_a_gpu_may_still_compute() -> None:
    recent = RecentLosses(())
    for step in range(1, 301):
        known = [1 / each for each in range(1, step) if each <= step - DELAY][-WINDOW:]
        expected = 3 * median(known) if len(known) >= LEAST else float("inf")
        assert recent.limit(3, step) == expected
        recent.add(step, 1 / step)
    again = RecentLosses(tuple(pair) for pair in json.loads(json.dumps(recent.kept())))
    assert again.limit(3, 301) == recent.limit(3, 301)


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["skip", "rollback"])
def test_all_ranks_answer_alike(shards: Path, tmp_path: Path, answer: str) -> None:
    """The last rank alone meets the NaN; a resume goes on with what the first start had answered."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    status, output = run(torchrun(faulty(shards, out, "--on-fault", answer, "--max-steps", "7"), 2), POISON="5")
    assert status == 0, output
    assert run(torchrun(faulty(shards, out, "--on-fault", answer), 2), POISON="5")[0] == 0
    assert run(torchrun(faulty(shards, whole, "--on-fault", answer), 2), POISON="5")[0] == 0
    assert_same(out, whole)
    (event,) = read_records(out / EVENTS_FILE)
    assert event["kind"] == answer
