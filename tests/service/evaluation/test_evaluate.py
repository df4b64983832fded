"""service.evaluate: figures that depend on no batch and no rank, equal to numpy's, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from networks import saved_network, stored_pictures
from pictures import write_tree
from pipeline.command import InputError
from pipeline.load.graph import decode_squares
from pipeline.picture.jpeg import to_jpeg
from pipeline.shard import ShardOptions, shard
from processes import run, torchrun, wrong_in_turn
from service import evaluate
from service.evaluation.collect import collect
from service.evaluation.evaluate import open_pictures
from service.network.read import load

SIDE, CROP, CLASSES = 80, 67, 7


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of seven classes, 80 pixels, 39 in val: more than a chunk of ten views."""
    folder = tmp_path_factory.mktemp("many")
    counts = {"train": {f"n{c}": 2 for c in range(CLASSES)}, "val": {f"n{c}": 6 - c % 2 for c in range(CLASSES)}}
    source = write_tree(folder / "source", counts, 100, 90)
    assert shard(ShardOptions(source=source, out=str(folder / "shards"), size=SIDE, workers=1, shard_samples=16)) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def checkpoints(many: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three networks that differ in their seed."""
    folder = tmp_path_factory.mktemp("networks")
    return [saved_network(folder / f"run{seed}", many, seed=seed, crop=CROP) for seed in range(3)]


def call(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "service.evaluate", *map(str, arguments)]


def main_here(*arguments: object) -> int:
    """The command in this process: to start one takes longer than all it does."""
    with mock.patch.object(sys, "argv", ["evaluate", *map(str, arguments)]), mock.patch("signal.signal"):
        return evaluate.main()


def evaluated(out: Path, *arguments: object, ranks: int = 1) -> dict[str, Any]:
    asked = (*arguments, "--json", out)
    status, output = (main_here(*asked), "") if ranks == 1 else run(torchrun(call(*asked), ranks))
    assert status == 0, output
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_same_figures_for_any_batch_and_any_ranks(many: Path, checkpoints: list[Path], tmp_path: Path) -> None:
    asked = (checkpoints[0], "--shards", many, "--views", "10")
    first = evaluated(tmp_path / "1.json", *asked, "--batch-size", "1")
    assert first["samples"] == 39 and first["views"] == 10
    for name, batch, ranks in (("7", "7", 1), ("two", "128", 2)):
        again = evaluated(tmp_path / f"{name}.json", *asked, "--batch-size", batch, ranks=ranks)
        assert again == first, name


def expected_probabilities(path: Path, pictures: np.ndarray, views: int) -> np.ndarray:
    """(N, classes): softmax averaged over the views, in numpy but for the network."""
    network = load(path, "cpu")
    far, middle = SIDE - CROP, (SIDE - CROP) // 2
    corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)] if views == 10 else [(middle, middle)]
    mean = network.preprocessing.mean[middle : middle + CROP, middle : middle + CROP]
    total = np.zeros((len(pictures), CLASSES))
    for top, left in corners:
        crops = pictures[:, top : top + CROP, left : left + CROP].astype(np.float32)
        for each in (crops, crops[:, :, ::-1]) if views == 10 else (crops,):
            inputs = ((each - mean) / network.config.pixel_std).transpose(0, 3, 1, 2)
            with torch.no_grad():
                logits = network.model(torch.from_numpy(np.ascontiguousarray(inputs))).numpy().astype(np.float64)
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            total += exponentials / exponentials.sum(1, keepdims=True)
    return total / views


@pytest.mark.parametrize("views", [1, 10])
def test_errors_and_the_ensemble_equal_numpys(many: Path, checkpoints: list[Path], tmp_path: Path, views: int) -> None:
    found = evaluated(tmp_path / "all.json", *checkpoints, "--shards", many, "--views", views)
    pictures, labels = stored_pictures(many, "val")
    members = np.array([expected_probabilities(path, pictures, views) for path in checkpoints])

    def errors(probabilities: np.ndarray) -> tuple[float, float]:
        order = np.argsort(-probabilities, axis=1)
        return float(np.mean(order[:, 0] != labels)), float(np.mean((order[:, :5] != labels[:, None]).all(1)))

    assert [(each["top1_error"], each["top5_error"]) for each in found["members"]] == [errors(p) for p in members]
    assert (found["top1_error"], found["top5_error"]) == errors(members.mean(0))
    assert 0 < found["top1_error"] < 1 and found["interval"]["top1_error"][0] < found["top1_error"]
    assert sum(each["samples"] for each in found["classes"]) == len(labels)
    assert [each["checkpoint"] for each in found["members"]] == [str(path) for path in checkpoints]


def test_probabilities_of_each_picture_equal_numpys(many: Path, checkpoints: list[Path]) -> None:
    pictures, labels = stored_pictures(many, "val")
    expected = expected_probabilities(checkpoints[0], pictures, 10)
    loader = open_pictures(many, "cpu")
    found = collect(
        [load(checkpoints[0], "cpu")], np.ones((1, 1)), loader, "val", views=10, batch_size=9, samples=range(39)
    )
    assert np.array_equal(found.labels, labels)
    np.testing.assert_allclose(found.at_label[0], expected[np.arange(39), labels], rtol=1e-4, atol=1e-7)
    assert np.array_equal(found.predicted[0], expected.argmax(1))
    assert np.array_equal(found.likeliest, np.argsort(-expected, axis=1)[:, :5])


@pytest.mark.slow
def test_weights_are_fitted_to_one_half_and_measured_on_the_other(
    many: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    found = evaluated(tmp_path / "fit.json", *checkpoints, "--shards", many, "--views", "10", "--weights", "fit")
    assert found["held_out"] == 12 and found["samples"] == 27  # the half, down to a whole chunk
    assert sum(found["weights"]) == pytest.approx(1) and len(found["ensembles"]) == 2
    pictures, labels = stored_pictures(many, "val")
    members = np.array([expected_probabilities(path, pictures, 10) for path in checkpoints])
    mixed = np.einsum("m,mnc->nc", np.array(found["weights"]), members)[12:]
    assert found["top1_error"] == pytest.approx(np.mean(mixed.argmax(1) != labels[12:]))


def test_the_same_outcomes_on_any_number_of_cores(
    many: Path, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for threads in (1, 4):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, threads=threads: set(range(threads)))
        network, loader = load(checkpoints[0], "cpu"), open_pictures(many, "cpu", threads=1)
        found.append(collect([network], np.ones((1, 1)), loader, "val", views=10, batch_size=5, samples=range(39)))
    one, four = found
    for name, column in vars(one).items():
        assert np.array_equal(column, getattr(four, name)), name


def test_a_network_whose_outputs_are_all_equal_scores_nothing(many: Path, tmp_path: Path) -> None:
    path = saved_network(tmp_path / "run", many, crop=CROP)
    network = load(path, "cpu")
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.zero_()
    found = collect(
        [network], np.ones((1, 1)), open_pictures(many, "cpu"), "val", views=1, batch_size=8, samples=range(39)
    )
    assert (found.ahead == CLASSES - 1).all()


def test_predictions_are_in_the_order_of_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A split without labels, of which one picture is none: five classes a line, the rejected picture's a guess."""
    source = write_tree(tmp_path / "source", {"train": {f"n{c}": 2 for c in range(CLASSES)}}, 100, 90)
    pictures = write_tree(tmp_path / "flat", {"x": {"y": 11}}, 100, 90)
    shutil.move(pictures / "x" / "y", source / "test")
    (source / "test" / "04.JPEG").write_bytes(b"no picture")
    shards = tmp_path / "shards"
    assert shard(ShardOptions(source=source, out=str(shards), size=SIDE, workers=1, shard_samples=4)) == 0
    checkpoint = saved_network(tmp_path / "run", shards, crop=CROP)
    asked = (checkpoint, "--shards", shards, "--split", "test")
    with pytest.raises(InputError, match=r"test of .* has no labels, .*; give --predictions FILE"):
        main_here(*asked)
    with pytest.raises(InputError, match="give --predictions FILE alone"):
        main_here(*asked, "--predictions", tmp_path / "lines.txt", "--json", tmp_path / "none.json")
    assert main_here(*asked, "--predictions", tmp_path / "lines.txt") == 0
    assert "1 of them guesses" in capsys.readouterr().err
    lines = [[int(word) for word in line.split()] for line in (tmp_path / "lines.txt").read_text().splitlines()]
    assert len(lines) == 11 and lines[4] == [1, 2, 3, 4, 5]
    network = load(checkpoint, "cpu")
    quality = network.preprocessing.quality
    for number in (0, 3, 5, 10):
        jpeg, _ = to_jpeg((source / "test" / f"{number:02d}.JPEG").read_bytes(), SIDE, quality)
        square = torch.from_numpy(next(decode_squares([jpeg], SIDE)))[None]
        order = network.probabilities(square)[0].argsort(descending=True)[:5] + 1
        assert lines[number] == order.tolist()


def test_a_damaged_sample_is_named_and_the_exit_is_1(
    many: Path, checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(many, shards)
    tar = sorted((shards / "val").glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[700] ^= 255
    tar.write_bytes(data)
    assert main_here(checkpoints[0], "--shards", shards) == 1
    assert "damaged sample (val/000000.tar, byte 512)" in capsys.readouterr().err


def test_wrong_calls_are_one_line_and_write_nothing(
    many: Path, shards: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "run" / "checkpoints" / "step-00000003"
    shutil.copytree(checkpoints[0], damaged)
    data = bytearray((damaged / "mean.npy").read_bytes())
    data[-1] ^= 1
    (damaged / "mean.npy").write_bytes(data)
    (tmp_path / "notes.txt").write_text("no weights")
    out = tmp_path / "out.json"
    out.write_text("as it was")
    asked = ("--shards", many, "--json", out)
    calls = (
        ((tmp_path / "none", *asked), "holds no sound checkpoint"),
        ((damaged, *asked), "mean.npy is damaged"),
        ((tmp_path / "notes.txt", *asked), "is no checkpoint"),
        ((checkpoints[0], "--shards", shards, "--json", out), "tells 7 classes apart, expected the 3"),
        ((checkpoints[0], *asked, "--split", "test"), "has no split test"),
        ((checkpoints[0], *asked, "--weights", "fit"), "one network has no weights to fit"),
        ((checkpoints[0], *asked, "--batch-size", "0"), "batch_size is 0"),
        ((checkpoints[0], *asked, "--table", out), "are both"),
        ((checkpoints[0], "--shards", tmp_path / "nowhere", "--json", out), "is not a folder"),
    )
    lines = wrong_in_turn(*(call(*arguments) for arguments, _ in calls))
    for line, (_, says) in zip(lines, calls, strict=True):
        assert says in line
    assert out.read_text() == "as it was"
