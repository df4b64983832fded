"""Experiments: runs that differ in the fields that are named, trained by real workers, and what is said of them."""

import io
import json
import math
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

from networks import saved_network, stored_pictures
from paths import ROOT
from pipeline.command import InputError
from pipeline.manifest import load_dataset
from pipeline.progress import no_progress
from processes import PATIENCE, run, start, wait_until, wrong_in_turn
from service.ablate import AblateOptions, plan_of, print_list, report, shards_of
from service.ablation.experiments import BASE_LABEL, EXPERIMENTS, IMAGENETTE, Base, Experiment, Measure
from service.ablation.measures import TEN_VIEWS, Variant, best_rates, paired_difference, paired_factor, variants_of
from service.ablation.plan import PlannedRun, options, plan, slug, trials
from service.ablation.report import as_json, document, picture, remarks, rows_of, verdict
from service.ablation.timing import Speed, speed_here
from service.ablation.training import DIVERGED, Work, has_diverged, output_of, threads_of, train
from service.ablation.training_error import (
    epochs_until,
    file_of,
    is_done,
    measure_training_errors,
    read_training_errors,
    remove_measured,
)
from service.network.read import load
from service.run.checkpoint import RunState, Validation, checkpoints, step_of
from service.run.config import flattened, parse_run, run_fields

SMALL = Base(
    name="small",
    data="small",
    what="72-pixel squares",
    size=72,
    recipe="demo",
    crop=67,
    changes={"model.fc_width": 64, "model.precision": "float32", "compile": False, "batch_size": 8},
    epochs=1,
)
POOLING = replace(
    EXPERIMENTS["pooling"], base=SMALL, variants={"windows of 2": {"model.pool_size": 2, "model.normalise": False}}
)
LEARNING = replace(POOLING, name="learning", measure="training", changes={"model.dropout": 0.0})


def planned(experiment: Experiment, out: Path, seeds: int = 2, epochs: int = 1) -> list[PlannedRun]:
    return plan(experiment, out=out, seeds=range(seeds), epochs=epochs)


def work_on(shards: Path, jobs: int = 1) -> Work:
    return Work(shards=shards, samples=30, jobs=jobs, options=("--device", "cpu"))


def fields_of(each: PlannedRun) -> dict[str, object]:
    """The run that its command line asks for, as run.json has it, but for places."""
    fields = flattened(run_fields(parse_run(each.arguments("shards")), ""))
    return {name: value for name, value in fields.items() if name != "out"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_variants_differ_from_the_base_in_the_fields_that_they_name_and_in_no_other(name: str, tmp_path: Path) -> None:
    """A field that `Run` does not have is refused by the worker's own command line."""
    experiment = EXPERIMENTS[name]
    runs = planned(experiment, tmp_path, seeds=1, epochs=20)
    fields = {each.variant: fields_of(each) for each in runs}
    assert len({each.folder for each in runs}) == len(runs) == 1 + len(experiment.variants)
    base = fields[BASE_LABEL]
    for variant, found in fields.items():
        asked = {} if variant == BASE_LABEL else experiment.variants[variant]
        assert {field for field in found if found[field] != base[field]} == asked.keys()
        assert {field: found[field] for field in asked} == asked
        assert all(found[field] == value for field, value in experiment.changes.items() if field not in asked)
        assert found["epochs"] == 20
        assert found["optim.drop_epochs"] == ([13.0, 17.0, 19.0] if experiment.base.drops else [])


def test_seeds_differ_in_the_seed_alone(tmp_path: Path) -> None:
    runs = planned(replace(POOLING, variants={}), tmp_path, seeds=2)
    first, second = map(fields_of, runs)
    assert (first.pop("seed"), second.pop("seed")) == (0, 1) and first == second
    assert len({each.folder for each in runs}) == 2


def test_runs_of_one_folder_are_one_run(tmp_path: Path) -> None:
    """So experiments share what they have in common, and none finds another's run in its place."""
    found: dict[Path, list[str]] = {}
    for experiment in EXPERIMENTS.values():
        for each in planned(experiment, tmp_path, seeds=1):
            assert found.setdefault(each.folder, each.arguments("shards")) == each.arguments("shards")
    shared = [each for each in EXPERIMENTS.values() if not each.changes]
    folders = {planned(each, tmp_path)[0].folder for each in shared}
    assert len(folders) == len({each.base.name for each in shared}) < len(shared)


def trained_to(runs: Sequence[PlannedRun], errors: Sequence[dict[int, float]]) -> None:
    for each, found in zip(runs, errors, strict=True):
        each.folder.parent.mkdir(parents=True, exist_ok=True)
        file_of(each).write_text(json.dumps({"errors": found}))


def test_each_variant_goes_on_with_the_rate_that_learned_fastest_in_its_trials(tmp_path: Path) -> None:
    experiment = replace(LEARNING, rates=(0.1, 0.2, 0.4), trial_epochs=2)
    tried = trials(experiment, out=tmp_path, epochs=9)
    assert [(each.variant, each.changes["optim.lr"]) for each in tried] == [
        (variant, rate) for variant in (BASE_LABEL, "windows of 2") for rate in (0.1, 0.2, 0.4)
    ]
    assert {(each.seed, each.until, each.epochs, each.steps(80)) for each in tried} == {(0, 2, 9, 20)}
    assert best_rates(tried) == {BASE_LABEL: 0.1, "windows of 2": 0.1}  # nothing is known yet
    lowest = [{0: 0.9, 1: 0.5, 2: 0.4}, {0: 0.9, 1: 0.6, 2: 0.3}, {0: 0.9, 1: 0.4}]  # the last was cut short
    reached = [{0: 0.9, 1: 0.3, 2: 0.2}, {0: 0.9, 1: 0.2}, {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.1}]  # later does not count
    trained_to(tried, [*lowest, *reached])
    found = best_rates(tried)
    assert found == {BASE_LABEL: 0.2, "windows of 2": 0.2}
    runs = plan(experiment, out=tmp_path, seeds=range(2), epochs=9, rates=found)
    assert runs[0].folder == tried[1].folder and runs[0].until == 9  # the trial goes on
    assert {each.changes["optim.lr"] for each in runs} == {0.2} and len({each.folder for each in runs}) == 4


def test_options_are_the_command_lines() -> None:
    changes = {"model.talk": False, "compile": True, "optim.drop_epochs": (1.0, 2.5), "model.pool_size": 2}
    words = ["--model.no-talk", "--compile", "--optim.drop-epochs", "1.0", "2.5", "--model.pool-size", "2"]
    assert options(changes) == words
    assert options({"compile": False}) == ["--no-compile"]
    assert slug("source: order of conv1") == "source-order-of-conv1"


def test_jobs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.ablation.training.usable_cores", lambda: 8)
    assert threads_of(1) == {}
    assert [threads_of(jobs)["OMP_NUM_THREADS"] for jobs in (2, 3, 16)] == ["4", "2", "1"]


def test_the_steps_of_a_run_are_the_workers(tmp_path: Path) -> None:
    (each, *_) = planned(POOLING, tmp_path, epochs=3)
    assert [each.steps(samples) for samples in (30, 8, 9)] == [12, 3, 4]  # batches may span epochs


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


def test_an_interval_is_what_a_table_of_t_says() -> None:
    """Of differences 1, 2, 3: mean 2, deviation 1, t of two degrees of freedom 4.303 (any printed table)."""
    found = paired_difference({0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found and found.mean == 2
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert found.within_noise  # -0.48 to 4.48


def test_a_factor_is_of_pairs_with_students_interval_of_logarithms() -> None:
    base, variant = {0: 4.0, 1: 5.0, 2: 4.4}, {0: 25.0, 1: 27.0, 2: 28.0, 5: 1.0}
    found = paired_factor(base, variant)
    ours, theirs = (np.log([each[seed] for seed in (0, 1, 2)]) for each in (variant, base))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found and found.mean == pytest.approx((25 / 4 * 27 / 5 * 28 / 4.4) ** (1 / 3))
    assert (found.low, found.high) == (pytest.approx(math.exp(expected.low)), pytest.approx(math.exp(expected.high)))
    assert not found.within_noise and found.low > 1
    same = paired_factor(base, base)
    assert same and same.within_noise and same.mean == 1


def test_epochs_until_an_error_are_read_off_a_line_between_epochs() -> None:
    assert epochs_until(0.25, {0: 0.9, 1: 0.5, 2: 0.3, 3: 0.2}) == pytest.approx(2.5)
    assert epochs_until(0.25, {0: 0.9, 1: 0.25, 2: 0.3}) == pytest.approx(1)  # the first time counts
    assert epochs_until(0.25, {0: 0.9, 1: 0.26}) is None
    assert epochs_until(0.25, {}) is None


def write_run(each: PlannedRun, errors: Sequence[float], final: float | None) -> None:
    """A log as service.train leaves it, of an epoch for each error."""
    each.folder.mkdir(parents=True)
    lines = []
    for epoch, error in enumerate(errors, 1):
        step = {"step": epoch, "epoch": float(epoch), "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1}
        lines.append({**step, "images_per_second": 100.0, "data_wait_ratio": 0.0})
        lines.append({"validation": True, "epoch": epoch, "step": epoch, "loss": 1.0, "top1": error, "top5": 0.0})
    if final is not None:
        lines.append({"evaluation": True, "step": len(errors), "top1": final})
    (each.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (each.folder / "run.json").write_text(json.dumps({"recipe": "demo"}))


@pytest.fixture
def trained(tmp_path: Path) -> list[PlannedRun]:
    """Three seeds, of which the variant's last is not finished."""
    runs = planned(POOLING, tmp_path, seeds=3, epochs=2)
    for each in runs:
        of_base = each.variant == BASE_LABEL
        error = (0.26 if of_base else 0.29) + each.seed / 1000
        whole = of_base or each.seed < 2
        write_run(each, [0.5, error] if whole else [0.5], error - 0.02 if whole else None)
    return runs


def test_only_finished_runs_count(trained: list[PlannedRun]) -> None:
    base, variant = variants_of(trained, "validation")
    assert base.name == BASE_LABEL and base.difference is None and base.mean == pytest.approx(26.1)
    assert base.spread == pytest.approx(0.1)
    assert variant.by_seed == {0: pytest.approx(29.0), 1: pytest.approx(29.1)}
    assert (variant.finished, variant.planned) == (2, 3)
    assert variant.difference and variant.difference.pairs == 2 and variant.difference.mean == pytest.approx(3)
    assert remarks(POOLING, 2, [base, variant]) == ["windows of 2: 1 of 3 runs not finished"]


def test_views_are_measured_on_the_bases_own_runs(trained: list[PlannedRun]) -> None:
    found = variants_of([each for each in trained if each.variant == BASE_LABEL], "views")
    assert [each.name for each in found] == [BASE_LABEL, TEN_VIEWS]
    assert found[1].difference and found[1].difference.mean == pytest.approx(-2) and verdict(found[1]) == "better"


def test_a_variant_that_never_comes_to_the_training_error_is_said_to(tmp_path: Path) -> None:
    runs = planned(LEARNING, tmp_path, epochs=4)
    for each in runs:
        write_run(each, [0.5, 0.4, 0.3, 0.3], 0.3)
        fast, slow = {1: 0.5, 2: 0.2}, {2: 0.5, 4: 0.2 + each.seed / 10}
        errors = {0: 0.8, **(fast if each.variant == BASE_LABEL else slow)}
        file_of(each).write_text(json.dumps({"errors": errors}))
    base, variant = variants_of(runs, "training")
    assert base.by_seed == {0: pytest.approx(1 + 5 / 6), 1: pytest.approx(1 + 5 / 6)}
    assert variant.by_seed == {0: pytest.approx(2 + 2 * 5 / 6)} and variant.finished == 2
    assert variant.difference is None
    assert remarks(LEARNING, 4, [base, variant]) == ["windows of 2: 1 of 2 runs never came to 25% in 4 epochs"]
    searched = replace(LEARNING, rates=(0.1, 0.2, 0.4), trial_epochs=2)
    at_the_edge = replace(variant, finished=1, planned=1, rate=0.4)
    assert remarks(searched, 4, [replace(base, rate=0.2), at_the_edge]) == [
        "base: learning rate 0.2, the best of 0.1, 0.2, 0.4 after 2 epochs of seed 0",
        "windows of 2: learning rate 0.4, the best of 0.1, 0.2, 0.4 after 2 epochs of seed 0; "
        "it is the last of them, so a better one may lie beyond",
    ]
    factor = paired_factor({0: 2.0, 1: 2.0}, {0: 12.0, 1: 12.0})
    assert rows_of([replace(variant, difference=factor)])[0][5:] == ("6.00", "6.00 to 6.00")
    with Image.open(io.BytesIO(picture(LEARNING, runs, [base, variant]))) as image:
        assert image.format == "PNG"
    file_of(runs[0]).write_text("{")
    with pytest.raises(InputError, match=r"is damaged .* remove it and run again"):
        read_training_errors(runs[0])


def test_the_report_says_what_was_found(trained: list[PlannedRun]) -> None:
    variants = variants_of(trained, "validation")
    rows = rows_of(variants)
    assert rows[0] == (BASE_LABEL, "-", "3 of 3", "26.10", "0.10", "-", "-")
    assert rows[1][:4] == ("windows of 2", "worse", "2 of 3", "29.05") and rows[1][5] == "+3.00"
    difference = paired_difference({0: 1, 1: 2}, {0: 2, 1: 1})
    noisy = Variant(name="n", by_seed={}, finished=0, planned=3, difference=difference)
    assert verdict(noisy) == "within noise" and rows_of([noisy])[0][3] == "-"
    text = document(POOLING, 2, variants)
    assert POOLING.paper in text and "| windows of 2 | worse | 2 of 3 |" in text
    assert "- windows of 2: 1 of 3 runs not finished" in text
    plain = json.loads(json.dumps(as_json(POOLING, 2, variants), allow_nan=False))
    assert plain["variants"][1]["changes"] == {"model.pool_size": 2, "model.normalise": False}
    with Image.open(io.BytesIO(picture(POOLING, trained, variants))) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.mark.parametrize("measure", ["validation", "views", "training"])
def test_nothing_can_be_reported_too(measure: Measure, tmp_path: Path) -> None:
    experiment = replace(POOLING, measure=measure)
    runs = planned(experiment, tmp_path)
    variants = variants_of(runs, measure)
    assert all(each.finished == 0 and each.difference is None for each in variants)
    assert "0 of 2" in document(experiment, 1, variants)
    with Image.open(io.BytesIO(picture(experiment, runs, variants))) as image:
        assert image.format == "PNG"


def test_training_errors_are_those_of_every_epochs_network_on_the_training_pictures(
    shards: Path, tmp_path: Path
) -> None:
    (each,) = planned(replace(LEARNING, variants={}), tmp_path, seeds=1, epochs=4)
    squares, labels = stored_pictures(shards, "train")
    expected = {0: 1 - 1 / 3}
    history: list[Validation] = []
    for epoch in (1, 2, 3, 4):
        history.append(Validation(epoch=epoch, step=4 * epoch, loss=1.0, top1=0.9 - epoch / 10, top5=0.0))
        state = RunState(step=4 * epoch, position=30 * epoch, history=tuple(history))
        saved = saved_network(each.folder, shards, state, seed=epoch)
        expected[epoch] = float((load(saved).probabilities(squares).numpy().argmax(1) != labels).mean())
    saved_network(each.folder, shards, replace(state, step=17, position=128))  # between epochs, as after a signal
    newest = each.folder / "checkpoints/step-00000016"
    newest.rename(tmp_path / newest.name)  # as while the run still trains
    before = {epoch: error for epoch, error in expected.items() if epoch < 4}
    assert measure_training_errors(each, shards, "cpu") == read_training_errors(each) == before
    (tmp_path / newest.name).rename(newest)
    assert measure_training_errors(each, shards, "cpu") == read_training_errors(each) == expected
    assert len(set(expected.values())) > 2
    remove_measured(each)
    assert [step_of(path) for path in checkpoints(each.folder)] == [17, 16]  # the last is the best
    assert measure_training_errors(each, shards, "cpu") == expected


def test_a_speed_is_kept_for_machines_of_its_kind(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Speed] = []

    def trial(base: Base, work: Work) -> Speed:
        trials.append(Speed(start_seconds=len(trials), images_per_second=30))
        return trials[-1]

    monkeypatch.setattr("service.ablation.timing.trial", trial)
    out, work = tmp_path / "new", work_on(shards)
    first = speed_here(SMALL, work, out)
    assert speed_here(SMALL, work, out) == first and len(trials) == 1
    assert speed_here(SMALL, replace(work, options=("--device", "gpu")), out) != first
    (out / "speed-small.json").write_text("{}")
    assert speed_here(SMALL, work, out) == trials[-1] and len(trials) == 3
    # Two epochs of 30 pictures to train on and 9 to validate, and ten views of those, a third of a step's time each.
    assert first.seconds(load_dataset(shards), 2) == pytest.approx((2 * (30 + 3) + 30) / 30)


def test_a_run_that_fails_is_told_and_the_others_go_on_and_are_not_repeated(shards: Path, tmp_path: Path) -> None:
    runs = planned(replace(POOLING, variants={"wrong": {"model.fc_width": 7}}), tmp_path, seeds=1)
    told: list[int] = []
    with no_progress():
        faults = train(runs, work_on(shards, jobs=2), lambda count, *_, **__: told.append(count))
    assert len(faults) == 1 and faults[0].startswith(f"{runs[1].folder} ended with status 2: ")
    assert "fc_width is 7" in Path(faults[0].rpartition("(")[2].rstrip(")")).read_text()
    assert sum(told) == runs[0].steps(30) == 4
    (base, _) = variants_of(runs, "validation")
    assert list(base.by_seed) == [0]
    said = output_of(runs[0])
    said.unlink()
    with no_progress() as advance:
        assert train(runs[:1], work_on(shards), advance) == []
    assert not said.exists()  # nothing was started


@pytest.mark.slow
def test_a_rate_with_which_a_run_diverges_is_no_fault(shards: Path, tmp_path: Path) -> None:
    experiment = replace(LEARNING, variants={}, base=replace(SMALL, drops=()), rates=(1e9,), trial_epochs=1)
    (each,) = trials(experiment, out=tmp_path, epochs=2)
    assert each.is_trial and not has_diverged(each)
    with no_progress() as advance:
        (fault,) = train([each], work_on(shards), advance)
    assert has_diverged(each) and DIVERGED in fault and best_rates([each]) == {BASE_LABEL: 1e9}


@pytest.mark.slow
def test_a_run_that_has_not_learned_in_all_its_epochs_is_finished_all_the_same(shards: Path, tmp_path: Path) -> None:
    """However far its worker came with the last evaluation, in which it is stopped."""
    base = replace(SMALL, drops=(), changes={**SMALL.changes, "optim.lr": 1e-12})
    (each,) = planned(replace(LEARNING, variants={}, base=base), tmp_path, seeds=1, epochs=2)
    with no_progress() as advance:
        assert (
            train([each], work_on(shards), advance, lambda run: is_done(measure_training_errors(run, shards, "cpu"), 2))
            == []
        )
    (found,) = variants_of([each], "training")
    assert (found.finished, found.planned, found.by_seed) == (1, 1, {})


@pytest.mark.slow
def test_a_run_is_stopped_saved_where_it_is_enough_and_is_not_repeated(shards: Path, tmp_path: Path) -> None:
    """Of 200 epochs it has learned after the first whose error is measured; the same call then starts nothing."""
    experiment = replace(LEARNING, variants={}, base=replace(SMALL, drops=()))
    (each,) = planned(experiment, tmp_path, seeds=1, epochs=200)
    told: list[int] = []

    def is_enough(run: PlannedRun) -> bool:
        return 1 in measure_training_errors(run, shards, "cpu")

    with no_progress():
        assert train([each], work_on(shards), lambda count, *_, **__: told.append(count), is_enough) == []
    assert sum(told) == each.steps(30) == 750
    assert 4 <= step_of(checkpoints(each.folder)[0]) < 750
    said = output_of(each)
    assert "saved" in said.read_text()
    said.unlink()
    with no_progress() as advance:
        assert train([each], work_on(shards), advance, is_enough) == []
    assert not said.exists()


TRAINS = """
import sys
from pathlib import Path
from pipeline.command import end_on_signals, run_command
from pipeline.progress import no_progress
from service.ablation.training import train
from test_ablate import POOLING, planned, work_on

def main():
    end_on_signals()
    with no_progress() as advance:
        return len(train(planned(POOLING, Path(sys.argv[1])), work_on(Path(sys.argv[2])), advance))

run_command(main)
"""


@pytest.mark.slow
def test_an_experiment_that_was_killed_goes_on_and_comes_to_the_same(shards: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", TRAINS]
    paths = {"PYTHONPATH": ":".join([str(Path(__file__).parent), str(ROOT / "tests/helpers"), str(ROOT)])}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = subprocess.run([*arguments, str(whole), str(shards)], timeout=PATIENCE, env={**os.environ, **paths})
    assert done.returncode == 0
    log = (
        planned(POOLING, cut)[1].folder / "log.jsonl"
    )  # the second run's, so that one is finished and two are not begun
    with start([*arguments, str(cut), str(shards)], **paths) as killed:
        wait_until(lambda: log.exists() and b'"loss"' in log.read_bytes(), killed)
        killed.send_signal(signal.SIGTERM)
        assert killed.wait(PATIENCE) == 128 + signal.SIGTERM
    (_, cut_short) = variants_of(planned(POOLING, cut), "validation")
    assert cut_short.finished == 0
    status, output = run([*arguments, str(cut), str(shards)], **paths)
    assert status == 0, output
    found, expected = (variants_of(planned(POOLING, out), "validation") for out in (cut, whole))
    assert found == expected and all(len(each.by_seed) == 2 for each in found)
    assert document(POOLING, 1, found) == document(POOLING, 1, expected)


ABLATE = [sys.executable, "-m", "service.ablate"]


def test_wrong_calls_are_a_line(shards: Path, tmp_path: Path) -> None:
    calls = {
        ("nope",): "there is no experiment 'nope', expected one of: relu-tanh",
        (): "no experiment is named, expected one of: relu-tanh",
        ("lrn", "--out", str(tmp_path)): "there are no pictures, expected Imagenette",
        ("lrn", "--seeds", "0"): "seeds is 0, expected at least 1; set --seeds",
        ("lrn", "--data", "a", "--shards", "b"): "--data and --shards are both given, expected one of them",
        ("--list", "--report-only"): "--report-only and --list are both given, expected one of them",
        ("lrn", "--shards", str(tmp_path / "none")): str(tmp_path / "none"),
        ("lrn", "--shards", str(shards)): "has pictures of 72 pixels, expected 96 to 256 for Imagenette; shard with",
        ("lrn-cifar10", "--shards", str(shards)): "has pictures of 72 pixels, expected 24 to 64 for CIFAR-10",
        ("lrn", "relu-tanh"): "lrn is on Imagenette and relu-tanh is on CIFAR-10, expected experiments on one data set",
        ("lrn", "--report-only", "--out", str(tmp_path / "none")): "is not there, expected runs to report",
    }
    for call, line in zip(calls, wrong_in_turn(*([*ABLATE, *call] for call in calls)), strict=True):
        assert calls[call] in line, call


def test_pictures_that_cannot_be_sharded_are_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="none cannot be sharded, as said above"):
        shards_of(IMAGENETTE, AblateOptions(experiments=("lrn",), data=tmp_path / "none", out=tmp_path / "out"))
    assert str(tmp_path / "none") in capfd.readouterr().err


def test_the_list_has_every_experiment_and_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_list(AblateOptions(list=True))
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS) and listed.count("no pictures: --data") == len(EXPERIMENTS)


def test_a_report_is_made_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = AblateOptions(experiments=("pooling",), out=tmp_path, seeds=2, epochs=2)
    runs = plan_of(EXPERIMENTS["pooling"], options)
    for each in runs[:3]:
        write_run(each, [0.5, 0.3], 0.25)
    report(EXPERIMENTS["pooling"], options)
    assert "windows of 2: 1 of 2 runs not finished" in capsys.readouterr().out
    plain = json.loads((tmp_path / "pooling-2-epochs.json").read_bytes())
    assert [each["finished"] for each in plain["variants"]] == [2, 1]
    assert {path.suffix for path in tmp_path.glob("pooling-2-epochs*")} == {".md", ".json", ".png"}
