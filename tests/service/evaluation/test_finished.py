"""A run that is done measures its own network: in its log and checkpoint, by any ranks, and after a stop too."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest

from processes import command, records, run, torchrun
from service import evaluate
from service.run.checkpoint import newest_checkpoint


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of one epoch, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    status, output = run(command(shards, out, "--epochs", "1"))
    assert status == 0, output
    return out, output


def test_a_finished_run_has_what_service_evaluate_says(
    shards: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    out, output = finished
    logged = records(out)[-1]
    assert logged["evaluation"] and logged["views"] == 10 and logged["samples"] == 9 and logged["step"] == 4
    assert "evaluation, 10 views of 9 pictures: top-1 error" in output
    call = [str(out), "--shards", str(shards), "--views", "10", "--json", str(tmp_path / "found.json")]
    with mock.patch.object(sys, "argv", ["evaluate", *call]), mock.patch("signal.signal"):
        assert evaluate.main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (logged["top1"], logged["top5"]) == (found["top1_error"], found["top5_error"])
    assert logged["interval"] == found["interval"]["top1_error"]
    checkpoint = newest_checkpoint(out, print)
    assert checkpoint and checkpoint.state.evaluation and checkpoint.state.evaluation.top1 == logged["top1"]


@pytest.mark.slow
def test_two_ranks_with_a_tower_each_measure_it(shards: Path, tmp_path: Path) -> None:
    status, output = run(torchrun(command(shards, tmp_path, "--epochs", "1"), 2))
    assert status == 0 and output.count("evaluation, 10 views of 9 pictures") == 1, output
    assert [record["samples"] for record in records(tmp_path) if "evaluation" in record] == [9]


TOLD_WHILE_EVALUATING = """
import os, signal, sys
from pipeline.command import run_command
from service import train
from service.evaluation import evaluate

collect = evaluate.collect

def told(*given, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    return collect(*given, **named)

evaluate.collect = told
run_command(train.main)
"""


@pytest.mark.slow
def test_a_stop_meanwhile_leaves_it_to_the_next_start(shards: Path, tmp_path: Path) -> None:
    arguments = command(shards, tmp_path, "--epochs", "1")
    status, output = run([sys.executable, "-c", TOLD_WHILE_EVALUATING, *arguments[3:]])
    assert status == 143 and "stopped by SIGTERM" in output, output
    assert not [record for record in records(tmp_path) if "evaluation" in record]
    status, output = run(arguments)
    assert status == 0 and "evaluation, 10 views" in output
    assert [record["step"] for record in records(tmp_path) if "evaluation" in record] == [4]
    before = records(tmp_path)
    status, output = run(arguments)
    assert status == 0 and "evaluation," not in output and records(tmp_path) == before  # once
