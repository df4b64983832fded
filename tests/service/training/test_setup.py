"""A run made ready from a checkpoint."""

from pathlib import Path

from service.run.checkpoint import Checkpoint, RunState
from service.run.config import check_same_run, parse_run, run_fields
from service.training.setup import resumed_state


def test_with_the_manual_schedule_a_resume_may_change_the_rate_and_that_is_an_event() -> None:
    manual = parse_run(["--optim.schedule", "manual"])
    lower = parse_run(["--optim.schedule", "manual", "--optim.lr", "0.001"])
    fields = run_fields(manual, "hash")
    check_same_run(Path("run"), fields, run_fields(lower, "hash"))
    state = resumed_state(Checkpoint(Path("step"), RunState(step=7), fields), lower, samples=10)
    (event,) = state.events
    assert (event["step"], event["author"]) == (7, "command line")
    assert (event["old"]["base"], event["new"]["base"]) == (0.01, 0.001)
    assert not resumed_state(Checkpoint(Path("step"), RunState(step=7), fields), manual, samples=10).events
