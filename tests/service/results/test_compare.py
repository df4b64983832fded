"""Several runs side by side: what is read of their folders, drawn, and put into a table."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.command import InputError
from processes import command, run, wrong_in_turn
from service.results.curves import COLOURS, curves_figure, curves_png
from service.results.history import RunHistory, mean_points, read_histories, read_history, short_names
from service.results.table import HEADINGS, LAST_STEPS, markdown, table_rows
from service.run.checkpoint import Validation


def write_run(folder: Path, *, epochs: int = 3, steps: int = 40, validates: bool = True, loss: float = 2.0) -> Path:
    """A run's folder as service.train leaves it: a loss that falls, and a rate that is lowered by hand at epoch 1."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, epochs * steps + 1):
        rate = 0.01 if step <= steps else 0.001
        record = {"step": step, "epoch": step / steps, "loss": loss / step, "gradient_norm": 1.0, "learning_rate": rate}
        lines.append({**record, "images_per_second": 100.0 * (step > 1), "data_wait_ratio": 0.0})
        if validates and step % steps == 0:
            errors = {"top1": 0.5 / (step // steps), "top5": 0.1 / (step // steps)}
            lines.append({"validation": True, "epoch": step // steps, "step": step, "loss": 1.0, **errors})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    event = {"kind": "learning-rate", "step": steps, "epoch": 1.0, "time": 0, "author": "alice", "reason": ""}
    event |= {"manual": True, "old": {"base": 0.01, "conv1": 0.01}, "new": {"base": 0.001, "conv1": 0.001}}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    (folder / "run.json").write_text(json.dumps({"recipe": "demo"}))
    return folder


def compare(*arguments: object) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "service.compare", *map(str, arguments)]


def test_a_runs_history_is_what_its_log_says(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run"), "run")
    assert history.losses.tolist() == [2.0 / step for step in range(1, 121)]
    assert history.epochs.tolist() == [step / 40 for step in range(1, 121)]
    assert history.learning_rates.tolist() == [0.01] * 40 + [0.001] * 80
    assert (history.step, history.epoch, history.recipe) == (120, 3.0, "demo")
    assert [each.epoch for each in history.validations] == [1, 2, 3]
    assert history.best == Validation(epoch=3, step=120, loss=1.0, top1=0.5 / 3, top5=0.1 / 3)
    assert [event["author"] for event in history.events] == ["alice"]


def test_the_best_is_the_first_of_equal_errors(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=1)
    again = {"validation": True, "epoch": 2, "step": 80, "loss": 1.0, "top1": 0.5, "top5": 0.2}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(again) + "\n")
    best = read_history(folder, "run").best
    assert best and best.epoch == 1


def test_a_line_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    whole = read_history(folder, "run")
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 121, "epo')
    assert np.array_equal(read_history(folder, "run").losses, whole.losses)


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 250])
@pytest.mark.parametrize("most", [1, 10, 100])
def test_a_curve_is_made_of_means_of_equally_many_steps(count: int, most: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    epochs, means = mean_points(np.arange(count) / 10, values, most)
    each = -(-count // most)
    parts = [values[start : start + each] for start in range(0, count, each)]
    assert len(means) == len(parts) <= most
    np.testing.assert_allclose(means, [part.mean() for part in parts], rtol=1e-12)  # the sums' order
    np.testing.assert_allclose(epochs, [(min(start + each, count) - 1) / 10 for start in range(0, count, each)])


def test_names_are_as_short_as_they_can_be() -> None:
    names = short_names([Path("/runs/a/x"), Path("/runs/b/x"), Path("/runs/b/y"), Path("/other/a/x")])
    assert names == ["runs/a/x", "b/x", "y", "other/a/x"]


def lines(histories: list[RunHistory], axes: int) -> dict[str, list[Any]]:
    """The lines of one plot by colour."""
    drawn: dict[str, list[Any]] = {}
    for line in curves_figure(histories).axes[axes].lines:
        drawn.setdefault(str(line.get_color()), []).append(line)
    return drawn


def test_what_is_drawn_is_what_was_read(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other", epochs=2, validates=False, loss=3.0)
    histories = read_histories([one, other])
    for history, colour in zip(histories, COLOURS, strict=False):
        (loss,) = lines(histories, 0)[colour]
        assert loss.get_label() == history.name
        assert np.array_equal(loss.get_ydata(), history.losses)  # fewer steps than points: each is drawn
        top1, top5 = lines(histories, 1)[colour]
        assert list(top1.get_ydata()) == [each.top1 for each in history.validations]
        assert list(top5.get_ydata()) == [each.top5 for each in history.validations]
        rates, mark = lines(histories, 2)[colour]
        assert np.array_equal(rates.get_ydata(), history.learning_rates)
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (1.0, 0.001)  # where the rate was lowered by hand
    texts = [text.get_text() for text in curves_figure(histories).axes[2].texts]
    assert texts == ["learning-rate 0.01 -> 0.001"] * 2


def test_what_a_schedule_does_is_not_marked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    event = json.loads((folder / "events.jsonl").read_text())
    (folder / "events.jsonl").write_text(json.dumps({**event, "manual": False}) + "\n")
    assert len(lines([read_history(folder, "run")], 2)[COLOURS[0]]) == 1


def test_any_number_of_runs_can_be_told_apart(tmp_path: Path) -> None:
    histories = read_histories([write_run(tmp_path / f"run{number}") for number in range(9)])
    looks = {(str(line.get_color()), line.get_linestyle()) for line in curves_figure(histories).axes[0].lines}
    assert len(looks) == 9


def test_the_picture_holds_every_run(tmp_path: Path) -> None:
    histories = read_histories([write_run(tmp_path / "one"), write_run(tmp_path / "other", loss=3.0)])
    picture = np.asarray(Image.open(io.BytesIO(curves_png(histories))).convert("RGB")).astype(int)
    for colour in COLOURS[:2]:
        rgb = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert (np.abs(picture - rgb).max(axis=2) <= 2).sum() > 200  # pixels of its lines


def test_the_table_has_each_runs_last_and_best_figures(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "a|b", validates=False)
    with (one / "log.jsonl").open("a") as log:  # a worse error after the best one
        log.write(json.dumps({"validation": True, "epoch": 4, "step": 160, "loss": 1, "top1": 0.9, "top5": 0.3}) + "\n")
        log.write(json.dumps({"evaluation": True, "epoch": 4, "step": 160, "views": 10, "top1": 0.1234}) + "\n")
    rows = table_rows(read_histories([one, other]))
    loss = f"{np.mean([2.0 / step for step in range(121 - LAST_STEPS, 121)]):.4f}"
    assert rows[0] == ("one", "demo", "120", "3.00", loss, "90.00%", "30.00%", "16.67%", "3", "12.34%", "100")
    assert rows[1] == ("a|b", "demo", "120", "3.00", loss, "-", "-", "-", "-", "-", "100")
    text = markdown(HEADINGS, rows, 2).splitlines()
    assert len(text) == 4 and text[0].count("|") == len(HEADINGS) + 1
    assert text[3].startswith("| a\\|b | demo |")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "log.jsonl").unlink(), "has no log.jsonl, expected the folder of a run"),
        (lambda folder: (folder / "log.jsonl").write_text(""), "holds no step"),
        (lambda folder: (folder / "log.jsonl").write_text("nonsense\n{}\n"), "damaged at line 1"),
        (lambda folder: (folder / "log.jsonl").write_text("[1]\n"), "damaged at line 1, expected a JSON object"),
        (lambda folder: (folder / "log.jsonl").write_text('{"step": 1}\n'), "is damaged (KeyError('epoch'))"),
        (lambda folder: (folder / "log.jsonl").write_bytes(b'{"step": "\xff"}\n{}\n'), "damaged at line 1"),
        (lambda folder: (folder / "events.jsonl").write_text("x\n{}\n"), "events.jsonl is damaged at line 1"),
    ],
)
def test_what_is_no_sound_run_is_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    folder = write_run(tmp_path / "run")
    damage(folder)
    with pytest.raises(InputError) as error:
        read_histories([folder])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_real_run_and_a_wrong_call(shards: Path, tmp_path: Path) -> None:
    for name, seed in (("one", "0"), ("two", "1")):
        status, output = run(command(shards, tmp_path / name, "--epochs", "2", "--seed", seed))
        assert status == 0, output
    out, table = tmp_path / "picture.png", tmp_path / "table.md"
    words = compare(tmp_path / "one", tmp_path / "two", "--out", out, "--table", table)
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run", "one", "two"]
    with Image.open(out) as picture:
        assert picture.size == (1080, 1200)
    assert [line.split(" | ")[0] for line in table.read_text().splitlines()[2:]] == ["| one", "| two"]
    before = out.read_bytes()
    wrong = {
        (tmp_path / "one", tmp_path / "one"): "is named twice",
        (tmp_path / "one", tmp_path): "has no log.jsonl",
        (tmp_path / "one", "--out", tmp_path): "give another --out",
        (tmp_path / "one", "--table", tmp_path / "none/table.md", "--out", tmp_path / "x.png"): "give another --table",
        (): "no run is named",
    }
    lines = wrong_in_turn(*(compare(*arguments) for arguments in wrong))
    for line, message in zip(lines, wrong.values(), strict=True):
        assert message in line
    assert out.read_bytes() == before and not (tmp_path / "x.png").exists()
