"""pipeline.look's pictures, cut out of its PNG, against numpy and Pillow alone, and against a run's own batches.

Shown is the picture with its colour shift, rounded. The decoders agree to the last bit, and the shift is a float32 in
both cases, but its last bit may differ, which decides a rounding only where a value is within 1e-3 of a half.
"""

import io
import json
import sys
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.inspection.sheet import tile_place
from pipeline.load.order import epoch_order
from pipeline.look import main
from pipeline.randomness import AUGMENT, random_words, uniform
from processes import command as training
from processes import run, torchrun, wrong_in_turn

SIDE, CROP, SAMPLES, SEED = 72, 67, 30, 5
TITLE = ("", "")
RECORDER = Path(__file__).with_name("pixel_recording_worker.py")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.look", *arguments]


def looked(capsys: pytest.CaptureFixture[str], out: Path, count: int, lines: int, *arguments: str) -> list[np.ndarray]:
    """The pictures on the sheet that it makes, in this process, which has imported all that it needs."""
    with (
        mock.patch.object(sys, "argv", ["look", *arguments, "--out", str(out), "--device", "cpu"]),
        mock.patch("pipeline.look.end_on_signals"),
    ):
        assert main() == 0
    assert str(out) in capsys.readouterr().err
    with Image.open(out) as png:
        sheet = np.asarray(png)
    places = [tile_place(number, count, CROP, lines, TITLE) for number in range(count)]
    return [sheet[y : y + CROP, x : x + CROP] for x, y in places]


def members(root: Path) -> list[tuple[str, bytes]]:
    """Name and bytes of each training JPEG, in the tars' order."""
    found = []
    for path in sorted((root / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            jpegs = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
            found += [(member.name, tar.extractfile(member).read()) for member in jpegs]  # type: ignore[union-attr]
    return found


def reference(root: Path, position: int, seed: int = SEED) -> np.ndarray:
    """(CROP, CROP, 3) float: what the network sees at a position, before the mean is taken off."""
    sample = epoch_order(seed, position // SAMPLES, SAMPLES)[position % SAMPLES]
    with Image.open(io.BytesIO(members(root)[sample][1])) as jpeg:
        picture = np.asarray(jpeg.convert("RGB"), np.float32)
    words = random_words(seed, AUGMENT, position, 1, 8)[0]
    top, left = (int(uniform(word) * (SIDE - CROP + 1)) for word in words[:2])
    picture = picture[top : top + CROP, left : left + CROP]
    if int(words[2]) >> 63:
        picture = picture[:, ::-1]
    u = uniform(words[3:7])
    radius, angle = np.sqrt(-2 * np.log(1 - u[0::2])), 2 * np.pi * u[1::2]
    colour = json.loads((root / "dataset.json").read_text())["colour"]
    alpha = 0.1 * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:3]
    shift = np.array(colour["eigenvectors"]) @ (alpha * np.array(colour["eigenvalues"]) / 255)
    return picture + shift.astype(np.float32)


def assert_shows(tile: np.ndarray, exact: np.ndarray) -> None:
    np.testing.assert_allclose(tile, exact.clip(0, 255), rtol=0, atol=0.5 + 1e-3)


@pytest.mark.parametrize("output", ["uint8", "float32"])
def test_a_steps_pictures_equal_the_reference(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """Step 3 of 20 pictures each: positions 40 to 59, the first epoch's end is at 30, the second's at 60."""
    options = ("--step", "3", "--batch-size", "20", "--seed", str(SEED), "--data.crop", str(CROP))
    tiles = looked(capsys, tmp_path / "x.png", 20, 3, str(shards), *options, "--data.output", output)
    for position, tile in zip(range(40, 60), tiles, strict=True):
        assert_shows(tile, reference(shards, position))
    first = looked(capsys, tmp_path / "y.png", 6, 3, str(shards), *options, "--count", "6")
    assert all(np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(first, tiles, strict=False))


def test_a_samples_pictures_are_those_of_its_positions_in_each_epoch(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name, _ in members(shards)]
    sample = 17
    options = ("--sample", str(int(names[sample].removesuffix(".jpg"))), "--seed", str(SEED), "--data.crop", str(CROP))
    tiles = looked(capsys, tmp_path / "x.png", 4, 2, str(shards), *options, "--epoch", "2", "--count", "4")
    for epoch, tile in zip(range(2, 6), tiles, strict=True):
        (place,) = np.flatnonzero(epoch_order(SEED, epoch, SAMPLES) == sample)
        assert_shows(tile, reference(shards, epoch * SAMPLES + int(place)))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_they_are_the_very_pictures_of_a_runs_step(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: int
) -> None:
    """A real run's batches, recorded as its steps took them, of all its ranks together."""
    out, recorded = tmp_path / "run", tmp_path / "recorded"
    recorded.mkdir()
    options = ("--max-steps", "3", "--batch-size", "9", "--seed", str(SEED), "--parallel", "auto")
    arguments = training(shards, out, *options)
    arguments[1:3] = [str(RECORDER)]
    if ranks > 1:
        arguments[arguments.index("auto")] = "data"
        arguments = torchrun(arguments, ranks)
    status, output = run(arguments, RECORD=str(recorded))
    assert status == 0, output
    tiles = looked(capsys, tmp_path / "x.png", 9, 3, "--run", str(out), "--step", "2")
    parts = [dict(np.load(recorded / f"step-2-rank-{rank}.npz")) for rank in range(ranks)]
    batch = {name: np.concatenate([part[name][part["weights"] > 0] for part in parts]) for name in parts[0]}
    assert batch["positions"].tolist() == [*range(9, 18)]
    exact = batch["pictures"].astype(np.float32) + batch["offset"][:, None, None, :]
    np.testing.assert_array_equal(tiles, exact.clip(0, 255).round())


def test_wrong_calls_get_one_line_and_status_2(shards: Path, tmp_path: Path) -> None:
    here, crop = str(shards), ("--data.crop", str(CROP))
    (tmp_path / "run.json").write_text('{"batch_size": 8, "seed": 0, "data": {"crop": 67}}')
    a_run = ("--run", str(tmp_path))
    calls = {
        "expected --step or --sample, and not both": [here],
        "and not both; give the one": [here, "--step", "1", "--sample", "1"],
        "step is 0, expected at least 1": [here, "--step", "0"],
        "give a lower --step": [here, "--step", str(2**63), *crop],
        "give a lower --epoch": [here, "--sample", "0", "--epoch", str(2**63), *crop],
        f"seed is {2**64}, expected less": [here, "--step", "1", "--seed", str(2**64)],
        "batch_size is 0": [here, "--step", "1", "--batch-size", "0"],
        "count is 0": [here, "--step", "1", "--count", "0"],
        "no data set is named": ["--step", "1"],
        "is not a folder, expected shards": [str(tmp_path / "none"), "--step", "1"],
        "give DIR alone": [here, "--step", "1", "--data.shards", "other"],
        "expected none beside it": [here, *a_run, "--step", "1", "--seed", "3"],
        "says batch size, seed and data options": [here, *a_run, "--step", "1", "--data.crop", "50"],
        "give --run the folder": [here, "--run", str(tmp_path / "none"), "--step", "1"],
        "crop is 224 pixels, expected at most the 72": [here, "--step", "1"],
        "has no sample 00000099, expected one of 00000000 to 00000029": [here, "--sample", "99", *crop],
        "give another --out": [here, "--step", "1", "--out", str(tmp_path / "none" / "x.png")],
    }
    if not torch.cuda.is_available():
        calls["device is gpu"] = [here, "--step", "1", "--device", "gpu"]
    for expected, line in zip(calls, wrong_in_turn(*(command(*call) for call in calls.values())), strict=True):
        assert expected in line
