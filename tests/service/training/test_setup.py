"""A run made ready: from a checkpoint, and with the loading options that were fastest on this machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from pipeline.host.cpus import usable_cores
from pipeline.host.machine import this_machine
from pipeline.manifest import TUNED_FILE
from pipeline.measure.tuned import Tuned, save_tuned
from processes import command, run
from service.run.checkpoint import Checkpoint, RunState
from service.run.config import check_same_run, parse_run, run_fields
from service.training.ranks import Ranks
from service.training.setup import resumed_state, tuned_data


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


def test_a_run_takes_what_was_fastest_here_and_says_so_but_is_no_other_run(shards: Path, tmp_path: Path) -> None:
    here, out = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, here)
    save_tuned(here / TUNED_FILE, this_machine(), Tuned(threads=1, prefetch=3))
    status, output = run(command(here, out, "--max-steps", "1", "--device", "cpu", "--data.prefetch", "1"))
    assert status == 0 and f"{here / TUNED_FILE}: threads 1\n" in output, output
    saved = json.loads((out / "run.json").read_text())
    assert saved["data"]["threads"] == 0 and saved["data"]["prefetch"] == 1
    ranks = replace(Ranks(), local_world_size=usable_cores())
    data, said = tuned_data(parse_run(["--data.shards", str(here)]), "cpu", ranks)
    assert (data.threads, data.prefetch) == (1, 3) and said
    untouched = parse_run(["--data.shards", str(here), "--data.no-tuned"])
    assert tuned_data(untouched, "cpu", ranks) == (untouched.data, "")
    allowed = run_fields(parse_run(["--data.hw-decoder-load", "0.5", "--data.no-tuned"]), "hash")
    check_same_run(out, run_fields(parse_run([]), "hash"), allowed)
