"""Experiments: runs that differ in the fields that are named, trained by real workers, and what is said of them."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from paths import ROOT
from pipeline.progress import no_progress
from processes import PATIENCE, run, start, wait_until, wrong_in_turn
from service.ablation.experiments import BASE_NAME, EXPERIMENTS, IMAGENETTE, Base, Experiment
from service.ablation.measures import TEN_VIEWS, Variant, is_finished, paired_difference, variants_of
from service.ablation.plan import PlannedRun, options, plan, slug
from service.ablation.report import as_json, document, picture, rows_of, verdict
from service.ablation.training import epochs_of, output_of, train
from service.run.config import flattened, parse_run, run_fields

SMALL = Base(
    name="small",
    what="72-pixel squares",
    size=72,
    recipe="demo",
    changes={"data.crop": 67, "model.fc_width": 64, "model.precision": "float32", "compile": False, "batch_size": 8},
    epochs=1,
)
POOLING = replace(EXPERIMENTS["pooling"], variants={"windows of 2": {"model.pool_size": 2, "model.normalise": False}})


def planned(
    experiment: Experiment, out: Path, shards: str = "shards", seeds: int = 2, epochs: int = 1
) -> list[PlannedRun]:
    return plan(experiment, SMALL, shards=shards, out=out, seeds=range(seeds), epochs=epochs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_variants_differ_from_the_base_in_the_fields_that_they_name_and_in_no_other(name: str, tmp_path: Path) -> None:
    runs = plan(EXPERIMENTS[name], IMAGENETTE, shards="shards", out=tmp_path, seeds=[0, 1], epochs=20)
    fields = {(run.variant, run.seed): flattened(run_fields(parse_run(list(run.arguments)), "")) for run in runs}
    assert len({run.folder for run in runs}) == len(runs) == 2 * (1 + len(EXPERIMENTS[name].variants))
    for (variant, seed), found in fields.items():
        base = fields[BASE_NAME, seed]
        asked = {} if variant == BASE_NAME else EXPERIMENTS[name].variants[variant]
        differing = {field for field in found if found[field] != base[field]} - {"out"}
        # What is the base's own, as bfloat16 where precision is auto, differs from nothing that a run has decided.
        assert differing == {field for field in asked if base[field] != asked[field]} != set() or variant == BASE_NAME
        assert all(found[field] == value for field, value in asked.items())
        assert found["seed"] == seed and found["epochs"] == 20 and found["optim.drop_epochs"] == [13.0, 17.0, 19.0]


def test_options_are_the_command_lines() -> None:
    changes = {"model.talk": False, "compile": True, "optim.drop_epochs": (1.0, 2.5), "model.pool_size": 2}
    words = ["--model.no-talk", "--compile", "--optim.drop-epochs", "1.0", "2.5", "--model.pool-size", "2"]
    assert options(changes) == words
    assert options({"compile": False}) == ["--no-compile"]
    assert slug("source: order of conv1") == "source-order-of-conv1"


def test_a_difference_is_of_pairs_with_students_interval() -> None:
    base, variant = {0: 26.9, 1: 26.4, 2: 26.6, 3: 25.0}, {0: 28.0, 1: 27.9, 2: 27.1, 5: 99.0}
    found = paired_difference(base, variant)
    ours, theirs = ([each[seed] for seed in (0, 1, 2)] for each in (variant, base))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found and found.pairs == 3 and found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.within_noise == (expected.low <= 0 <= expected.high)
    assert paired_difference(base, {0: 1.0}) is None
    same = paired_difference(base, base)
    assert same and same.within_noise and same.mean == 0


def write_run(run: PlannedRun, errors: Sequence[float], final: float | None) -> None:
    """A log as service.train leaves it, of an epoch for each error."""
    run.folder.mkdir(parents=True)
    lines = []
    for epoch, error in enumerate(errors, 1):
        step = {"step": epoch, "epoch": float(epoch), "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1}
        lines.append({**step, "images_per_second": 100.0, "data_wait_ratio": 0.0})
        lines.append({"validation": True, "epoch": epoch, "step": epoch, "loss": 1.0, "top1": error, "top5": 0.0})
    if final is not None:
        lines.append({"evaluation": True, "step": len(errors), "top1": final})
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "run.json").write_text(json.dumps({"recipe": "demo"}))


@pytest.fixture
def trained(tmp_path: Path) -> list[PlannedRun]:
    """Three seeds, of which the variant's last is not finished."""
    runs = planned(POOLING, tmp_path, seeds=3, epochs=2)
    for each in runs:
        of_base = each.variant == BASE_NAME
        error = (0.26 if of_base else 0.29) + each.seed / 1000
        whole = of_base or each.seed < 2
        write_run(each, [0.5, error] if whole else [0.5], error - 0.02 if whole else None)
    return runs


def test_only_finished_runs_count(trained: list[PlannedRun]) -> None:
    base, variant = variants_of(trained, 2, views=False)
    assert base.name == BASE_NAME and base.difference is None and base.mean == pytest.approx(26.1)
    assert base.spread == pytest.approx(0.1)
    assert variant.errors == {0: pytest.approx(29.0), 1: pytest.approx(29.1)} and variant.planned == 3
    assert variant.difference and variant.difference.pairs == 2 and variant.difference.mean == pytest.approx(3)
    assert all(not each.errors for each in variants_of(trained, 3, views=False))  # of three epochs none is done


def test_views_are_measured_on_the_bases_own_runs(trained: list[PlannedRun]) -> None:
    found = variants_of([run for run in trained if run.variant == BASE_NAME], 2, views=True)
    assert [each.name for each in found] == [BASE_NAME, TEN_VIEWS]
    assert found[1].difference and found[1].difference.mean == pytest.approx(-2) and verdict(found[1]) == "better"


def test_the_report_says_what_was_found(trained: list[PlannedRun]) -> None:
    variants = variants_of(trained, 2, views=False)
    rows = rows_of(variants)
    assert rows[0] == (BASE_NAME, "-", "3 of 3", "26.10%", "0.10", "-", "-")
    assert rows[1][:4] == ("windows of 2", "worse", "2 of 3", "29.05%") and rows[1][5] == "+3.00"
    noisy = Variant(name="n", errors={}, planned=3, difference=paired_difference({0: 1, 1: 2}, {0: 2, 1: 1}))
    assert verdict(noisy) == "within noise" and rows_of([noisy])[0][3] == "-"
    text = document("pooling", POOLING, SMALL, 2, variants)
    assert POOLING.paper in text and "| windows of 2 | worse | 2 of 3 |" in text
    plain = json.loads(json.dumps(as_json("pooling", POOLING, SMALL, 2, variants)))
    assert plain["variants"][1]["changes"] == {"model.pool_size": 2, "model.normalise": False}
    with Image.open(io.BytesIO(picture("pooling", POOLING, trained, variants))) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24) or []) > 10
    with Image.open(io.BytesIO(picture("pooling", POOLING, planned(POOLING, Path("none")), []))) as image:
        assert image.format == "PNG"  # of nothing, as before the first epoch


def test_epochs_are_read_from_the_end_of_the_log(tmp_path: Path) -> None:
    assert epochs_of(tmp_path) == 0
    (tmp_path / "log.jsonl").write_text('{"step": 1, "epoch": 0.5}\n{"evaluation": true}\n{"step": 2, "epo')
    assert epochs_of(tmp_path) == 0.5


def test_a_run_that_fails_is_told_and_the_others_go_on_and_are_not_repeated(shards: Path, tmp_path: Path) -> None:
    wrong = replace(POOLING, variants={"wrong": {"model.fc_width": 7}})
    runs = planned(wrong, tmp_path, str(shards), seeds=1)
    with no_progress() as advance:
        faults = train(runs, jobs=2, epochs=1, advance=advance)
    assert len(faults) == 1 and faults[0].startswith("wrong, seed 0 ended with status 2: ")
    assert "fc_width is 7" in Path(faults[0].rpartition("(")[2].rstrip(")")).read_text()
    (base, _) = variants_of(runs, 1, views=False)
    assert list(base.errors) == [0]
    said = output_of(runs[0])
    said.unlink()
    with no_progress() as advance:
        assert train(runs[:1], jobs=1, epochs=1, advance=advance) == []
    assert not said.exists()  # nothing was started


TRAINS = """
import sys
from pathlib import Path
from pipeline.command import end_on_signals, run_command
from pipeline.progress import no_progress
from service.ablation.training import train
from test_ablate import POOLING, planned

def main():
    end_on_signals()
    with no_progress() as advance:
        return len(train(planned(POOLING, Path(sys.argv[1]), sys.argv[2]), jobs=1, epochs=1, advance=advance))

run_command(main)
"""


@pytest.mark.slow
def test_an_experiment_that_was_killed_goes_on_and_comes_to_the_same(shards: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", TRAINS]
    paths = {"PYTHONPATH": ":".join([str(Path(__file__).parent), str(ROOT / "tests/helpers"), str(ROOT)])}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = subprocess.run([*arguments, str(whole), str(shards)], timeout=PATIENCE, env={**os.environ, **paths})
    assert done.returncode == 0
    first = planned(POOLING, cut, str(shards))[0]
    with start([*arguments, str(cut), str(shards)], **paths) as killed:
        wait_until(lambda: epochs_of(first.folder) > 0, killed)
        killed.send_signal(signal.SIGTERM)
        assert killed.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not all(is_finished(each, 1) for each in planned(POOLING, cut, str(shards)))
    status, output = run([*arguments, str(cut), str(shards)], **paths)
    assert status == 0, output
    found, expected = (variants_of(planned(POOLING, out), 1, views=True) for out in (cut, whole))
    assert found == expected and all(len(each.errors) == 2 for each in found)


ABLATE = [sys.executable, "-m", "service.ablate"]


def test_wrong_calls_are_a_line(tmp_path: Path) -> None:
    calls = {
        ("nope",): "there is no experiment 'nope', expected one of: relu-tanh",
        (): "no experiment is named, expected at least one; --list says which there are",
        ("lrn", "--out", str(tmp_path)): "there are no pictures, expected --data FOLDER or --shards FOLDER",
        ("lrn", "--seeds", "0"): "seeds is 0, expected at least 1; set --seeds",
        ("lrn", "--data", "a", "--shards", "b"): "--data and --shards are both given, expected one of them",
    }
    for call, line in zip(calls, wrong_in_turn(*([*ABLATE, *call] for call in calls)), strict=True):
        assert calls[call] in line, call
    status, output = run([*ABLATE, "lrn", "--data", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert status == 2 and "cannot be sharded, as said above" in output.splitlines()[-1]


def test_the_list_has_every_experiment_and_says_what_it_lacks() -> None:
    status, output = run([*ABLATE, "--list"])
    assert status == 0 and all(name in output for name in EXPERIMENTS) and "needs pictures" in output
