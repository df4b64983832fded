"""The parts around the loop: recipes and run.json, logs, speed, liveness, saving under failure, filters."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import CollectorRegistry

from model.filters import filter_grid, towers_picture
from pipeline.command import InputError
from service import saver, visualise
from service.checkpoint import Checkpoint, State, newest, save
from service.config import RECIPES, Run, check_same_call, check_same_run, parse_run, run_fields
from service.console import Speed
from service.heart import COMPILE_FACTOR, Heart
from service.log import JsonLines
from service.metrics import Metrics
from service.ports import listen
from service.saver import Saver, Writer
from service.setup import resumed
from service.train import locked


def test_the_paper_and_the_source_are_what_the_papers_text_and_run_145_say() -> None:
    paper, source = RECIPES["paper"][1], RECIPES["source"][1]
    assert (paper.batch_size, paper.epochs, paper.optim.lr, paper.optim.schedule) == (128, 90, 0.01, "plateau")
    assert (paper.optim.momentum, paper.optim.weight_decay, paper.optim.max_drops) == (0.9, 0.0005, 3)
    assert (paper.optim.bias_lr_factor, paper.optim.decay_biases) == (1.0, True)
    assert (paper.model.layer_order, paper.model.init, paper.model.lrn.alpha) == ("paper", "paper", 1e-4)
    assert (paper.data.augment.colour, paper.data.augment.colour_std) == ("eigenvalues", 0.1)
    assert (source.batch_size, source.epochs, source.optim.lr) == (128, 93, 0.01)
    assert (source.optim.schedule, source.optim.drop_epochs) == ("steps", (23, 51, 78))
    assert source.optim.conv1_lr == ((68, 1e-5), (72, 0.0))
    assert (source.optim.bias_lr_factor, source.optim.decay_biases) == (2.0, False)
    assert (source.model.layer_order, source.model.init) == ("source", "source")
    assert source.model.lrn.alpha == pytest.approx(2e-5)
    assert (source.data.augment.colour, source.data.augment.colour_epochs) == ("deviations", 67)
    assert all(run.recipe == name for name, (_, run) in RECIPES.items())


def test_the_recipe_is_paper_unless_named() -> None:
    assert parse_run([]) == parse_run(["paper"]) == RECIPES["paper"][1]
    assert parse_run(["--batch-size", "64"]) == replace(RECIPES["paper"][1], batch_size=64)
    assert parse_run(["source"]) == RECIPES["source"][1]


def words(line: str) -> list[str]:
    return line.split()


def test_the_promised_flags_are_there() -> None:
    run = parse_run(
        words(
            "demo --max-steps 3 --batch-size 4 --checkpoint-every 5 --seed 6 --port 0 --device cpu --no-compile "
            "--data.shards a/b --out c"
        )
    )
    assert (run.max_steps, run.batch_size, run.checkpoint_every, run.seed, run.port) == (3, 4, 5, 6, 0)
    assert (run.device, run.compile, run.data.shards, run.out) == ("cpu", False, Path("a/b"), Path("c"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs 0", "epochs is 0, expected at least 1"),
        ("--keep-checkpoints 1", "keep_checkpoints is 1, expected at least 2"),
        ("--seed 18446744073709551616", "seed is 18446744073709551616, expected at most"),
        ("--port 70000", "port is 70000, expected at most 65535"),
        ("--data.augment.colour-std -1", "colour_std is -1.0"),
    ],
)
def test_wrong_values_are_refused_in_a_line(option: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_run(option.split())
    assert "\n" not in str(error.value)


def test_a_resume_may_change_where_and_how_but_not_what() -> None:
    theirs, out = run_fields(Run(), "hash"), Path("run")
    moved = parse_run(words("--out elsewhere --data.shards there --port 1 --epochs 5 --no-compile --data.threads 3"))
    check_same_run(out, theirs, run_fields(moved, "hash"))
    for option, named in [("--seed 1", "seed 0 there, 1 here"), ("--data.crop 200", "data.crop 224 there, 200 here")]:
        with pytest.raises(InputError, match=named):
            check_same_run(out, theirs, run_fields(parse_run(option.split()), "hash"))
    with pytest.raises(InputError, match=r"optim\.lr 0\.01 there, 0\.02 here"):
        check_same_run(out, theirs, run_fields(parse_run(["--optim.lr", "0.02"]), "hash"))
    with pytest.raises(InputError, match="dataset_sha256 hash there, other here"):
        check_same_run(out, theirs, run_fields(Run(), "other"))


def test_with_the_manual_schedule_a_resume_may_change_the_rate_and_that_is_an_event() -> None:
    manual = parse_run(["--optim.schedule", "manual"])
    lower = parse_run(["--optim.schedule", "manual", "--optim.lr", "0.001"])
    fields = run_fields(manual, "hash")
    check_same_run(Path("run"), fields, run_fields(lower, "hash"))
    state = resumed(Checkpoint(Path("step"), State(step=7), fields), lower, samples=10)
    (event,) = state.events
    assert (event["step"], event["author"]) == (7, "command line")
    assert (event["old"]["base"], event["new"]["base"]) == (0.01, 0.001)
    assert not resumed(Checkpoint(Path("step"), State(step=7), fields), manual, samples=10).events


def test_ranks_must_train_alike_but_may_keep_their_pictures_elsewhere() -> None:
    run = RECIPES["demo"][1]
    ours = run_fields(run, "hash")
    elsewhere = replace(run, data=replace(run.data, shards=Path("/local"), threads=3), port=1)
    check_same_call(1, run_fields(elsewhere, "hash"), ours)
    with pytest.raises(InputError, match=r"rank 1 trains otherwise than rank 0 \(batch_size 65 there, 16 here\)"):
        check_same_call(1, run_fields(replace(run, batch_size=65), "hash"), ours)
    with pytest.raises(InputError, match="max_steps 7 there, 0 here"):  # a resume may change it, one rank may not
        check_same_call(1, run_fields(replace(run, max_steps=7), "hash"), ours)
    with pytest.raises(InputError, match="dataset_sha256 other there, hash here"):
        check_same_call(1, run_fields(run, "other"), ours)


def test_run_fields_are_strict_json() -> None:
    for _, run in RECIPES.values():
        json.dumps(run_fields(run, "hash"), allow_nan=False)


def test_a_log_is_cut_back_to_the_step_resumed_from_and_a_torn_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnonsense\n{"step": 3}\n{"step": 4')
    log = JsonLines.cut(path, last_step=2)
    log.append({"step": 3, "loss": 0.1})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.1}\n'


def test_events_are_those_of_the_state_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 3, "kind": "lost"}\n')
    log = JsonLines.holding(path, [{"step": 1}, {"step": 2}])
    log.append({"step": 5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 5]


def test_speed_is_pictures_and_waiting_over_the_window() -> None:
    speed = Speed()
    assert speed.rates() == (0.0, 0.0)
    for second in range(40):
        speed.add(float(second), 100 if second < 20 else 200, 0.25)
        if second == 5:
            assert speed.rates() == (100.0, 0.25)
    assert speed.rates() == (200.0, 0.25)  # the last ten seconds alone


def test_liveness_is_progress_and_compiling_has_more_time() -> None:
    now = 0.0
    heart = Heart(10.0, clock=lambda: now)
    heart.beat("compiling", COMPILE_FACTOR)
    now = 45.0
    assert heart.status()["status"] == "ok"
    heart.beat("training")
    now = 54.0
    assert heart.status()["status"] == "ok"
    now = 56.0
    stalled = {"status": "stalled", "phase": "training", "seconds_since_progress": 11.0, "limit_seconds": 10.0}
    assert heart.status() == stalled


def test_port_0_is_a_free_one_and_a_taken_one_is_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            listen("127.0.0.1", port)


def test_a_full_disk_costs_a_checkpoint_but_neither_the_run_nor_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, said = Metrics(CollectorRegistry()), []
    tensors = {"towers-0.safetensors": {"w": torch.ones(3)}}
    writer = Saver(Writer(tmp_path, {}, metrics, keep=2, resumed_from=None, say=said.append))
    writer.submit(State(step=1), tensors)
    assert writer.wait()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saver, "save", full)
    writer.submit(State(step=2), tensors)
    assert not writer.wait()
    assert "checkpoint of step 2 failed" in said[0] and "step-00000001" in said[0]
    monkeypatch.setattr(saver, "save", save)
    writer.submit(State(step=3), tensors)
    assert writer.close()
    found = newest(tmp_path, print)
    assert found and found.state.step == 3
    get = metrics.registry.get_sample_value
    assert get("trainer_checkpoint_attempts_total") == 3 and get("trainer_checkpoint_failures_total") == 1


def test_a_run_folder_has_one_worker(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another worker is training in"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_filters_keep_their_places_and_fill_their_range() -> None:
    kernels = torch.zeros(5, 3, 2, 2)
    kernels[4, 0, 0, 1] = 1.0  # red, upper right
    grid = filter_grid(kernels, columns=3, enlarge=1)
    assert grid.shape == (2 * 3 + 1, 3 * 3 + 1, 3)
    assert grid[4, 5].tolist() == [255, 0, 0] and grid[4, 4].tolist() == [0, 0, 0]
    assert (grid[0] == 255).all() and (grid[3] == 255).all()
    assert filter_grid(kernels, columns=3, enlarge=4).shape == (28, 40, 3)
    assert towers_picture([kernels, kernels], columns=3, enlarge=1).shape == (15, 10, 3)


def test_visualise_draws_the_newest_checkpoint_and_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"towers-{t}.safetensors": {f"towers.{t}.conv1.weight": torch.randn(48, 3, 11, 11)} for t in (0, 1)}
    save(tmp_path / "run", State(step=4), tensors, {})
    out = tmp_path / "filters.png"
    monkeypatch.setattr("sys.argv", ["visualise", str(tmp_path / "run"), "--out", str(out)])
    assert visualise.main() == 0
    picture = np.asarray(Image.open(out))
    expected = towers_picture([tensors[f"towers-{t}.safetensors"][f"towers.{t}.conv1.weight"] for t in (0, 1)])
    assert np.array_equal(picture, expected)
    monkeypatch.setattr("sys.argv", ["visualise", str(tmp_path)])
    with pytest.raises(InputError, match="holds no sound checkpoint"):
        visualise.main()


def test_the_log_is_json(tmp_path: Path) -> None:
    log = JsonLines.cut(tmp_path / "log.jsonl", 0)
    log.append({"step": 1, "loss": 0.30000001192092896})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 0.30000001192092896  # at once, and exactly
    log.close()
