"""A step once more: the same loss as the run's own, layer by layer, with its pictures; and what was wrong with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_recovery import SMALL, faulty

from processes import MODERN, command, losses, run, wrong_in_turn
from service.run.checkpoint import checkpoints, step_of


def replayed(shards: Path, out: Path, step: int, *options: str, **environment: str) -> tuple[int, str, dict]:
    status, output = run(faulty(shards, out, *options, "--replay", str(step)), **environment)
    found = out / f"replay-{step}/step.json"
    return status, output, json.loads(found.read_bytes()) if found.exists() else {}


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    status, output = run(faulty(shards, out))
    assert status == 0, output
    return out


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and "replay" not in str(path)
    }


def test_a_step_is_the_runs_own_and_nothing_of_the_run_changes(shards: Path, trained: Path) -> None:
    before = content(trained)
    for step in (11, 2):  # a while after a checkpoint; of the second none is left that is older
        status, output, found = replayed(shards, trained, step)
        assert status == 0 and "all finite" in output, output
        assert found["loss"] == losses(trained)[step] == pytest.approx(np.mean(found["losses"]), rel=1e-5)
        assert found["outputs"]["towers.0.conv1"]["not_finite"] == 0 and "fc8" in output
        with Image.open(trained / f"replay-{step}/pictures.png") as sheet:
            assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 100
    assert content(trained) == before


@pytest.mark.slow
def test_with_averaged_weights_and_a_cosine_too(shards: Path, tmp_path: Path) -> None:
    assert run(faulty(shards, tmp_path, *MODERN))[0] == 0
    status, output, found = replayed(shards, tmp_path, 11, *MODERN)
    assert status == 0, output
    assert found["loss"] == losses(tmp_path)[11]


@pytest.mark.slow
def test_a_step_that_went_wrong_says_where(shards: Path, tmp_path: Path) -> None:
    """Pictures of two steps are NaN; of the first the run left them out, and so does what leads up to the second."""
    status, output = run(faulty(shards, tmp_path, "--on-fault", "skip", "--most-faults", "1"), POISON="4,8")
    assert status == 1
    assert [step_of(path) for path in checkpoints(tmp_path)] == [6, 4, 3]
    status, output, found = replayed(shards, tmp_path, 8, POISON="4,8")
    assert status == 1 and "not all finite" in output, output
    assert found["loss"] == "nan" and found["losses"] == ["nan"] * 10
    assert found["outputs"]["towers.0.conv1"]["not_finite"] > 0
    assert found["weights"]["towers.0.conv1.weight"]["not_finite"] == 0
    status, output, found = replayed(shards, tmp_path, 9, POISON="4,8")
    assert (status == 2 and "expected a step that" in output) or "is not finite, so there is none after it" in output
    shutil.rmtree(checkpoints(tmp_path)[0])
    status, output, found = replayed(shards, tmp_path, 6, POISON="4,8")
    assert status == 0 and found["loss"] == losses(tmp_path)[6]


def test_wrong_calls_are_a_line(shards: Path, trained: Path, tmp_path: Path) -> None:
    calls = {
        "expected at least 0; set --replay": ("--replay", "-1"),
        "has done, up to 13; set --replay": ("--replay", "14"),
        "holds another run": ("--replay", "2", "--seed", "7"),
        "holds no sound checkpoint, expected a run's": ("--replay", "2", "--out", str(tmp_path / "none")),
    }
    lines = wrong_in_turn(*(command(shards, trained, *SMALL, *options) for options in calls.values()))
    for expected, line in zip(calls, lines, strict=True):
        assert expected in line, line
