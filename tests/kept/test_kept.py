"""What earlier versions wrote is read: shards to the same pixels, networks to the same answers, runs to their end.

tests/kept/make.py makes an archive of what today's version writes; one is added when a format changes, none is removed.
"""

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from networks import stored_pictures
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from processes import losses, run
from service import load
from service.run.checkpoint import checkpoints, read_checkpoint, step_of

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(request.param) as tar:
        tar.extractall(folder, filter="data")
    return folder


def pictures(shards: Path) -> np.ndarray:
    loader = BatchLoader(DataConfig(shards=shards, crop=72, output="uint8"), seed=0, device="cpu")
    return np.concatenate([np.asarray(batch.pictures) for batch in loader.validation(4)])


def test_shards_are_read_and_verify(kept: Path) -> None:
    for store in ("jpeg", "raw"):
        status, output = run([sys.executable, "-m", "pipeline.verify", str(kept / store)])
        assert status == 0, output
    found = pictures(kept / "jpeg")
    assert np.array_equal(found, stored_pictures(kept / "jpeg", "val")[0])
    assert np.array_equal(found, pictures(kept / "raw"))


def test_networks_give_the_answers_that_they_gave(kept: Path) -> None:
    expected = json.loads((kept / "expected.json").read_bytes())
    names = sorted(path.name for path in kept.iterdir() if (path / "checkpoints").is_dir())
    assert names == sorted(expected)
    for name, answers in expected.items():
        found = load(kept / name, "cpu").predict(sorted((kept / "pictures").glob("*")))
        assert len(found) == len(answers) == 3
        for mine, theirs in zip(found, answers, strict=True):
            probabilities = {each.id: each.probability for each in mine.likeliest}
            # Float32's sums of some thousand terms, in another order on another processor.
            assert probabilities == {name: pytest.approx(value, abs=1e-3) for name, value in theirs}


@pytest.mark.parametrize("name", ["demo", "modern", "cifar"])
def test_runs_go_on(kept: Path, name: str) -> None:
    """From a checkpoint of an earlier version to the end of the run."""
    if not (kept / name).exists():
        pytest.skip("that version had no such recipe")
    before = checkpoints(kept / name)[0]
    words = json.loads((kept / "commands.json").read_bytes())[name]
    place = ["--data.shards", str(kept / "raw"), "--out", str(kept / name)]
    status, output = run([sys.executable, "-m", "service.train", *words, *place])
    assert status == 0 and "restart 1" in output, output
    newest = checkpoints(kept / name)[0]
    assert step_of(newest) == 6 > step_of(before) == 4
    assert read_checkpoint(newest).state.history[0] == read_checkpoint(before).state.history[0]
    assert list(losses(kept / name)) == [1, 2, 3, 4, 5, 6]
