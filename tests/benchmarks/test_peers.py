"""What the comparison with other loaders rests on: how crops look, data sets grown by links, and sides in turns."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paths import ROOT
from pictures import write_tree
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from pipeline.shard import ShardOptions, shard

sys.path.append(str(ROOT / "benchmarks/peers"))  # which no package holds

from growth import grown
from inputs import expected, export
from report import Result, judge
from side_process import Side
from sides.serving import Work, listed

SIDE = """
import sys
sys.path.append(sys.argv[3])
import torch
from serving import main

def batches(work):
    print("a library's words on stdout", flush=True)
    while True:
        pictures = torch.full((work.batch_size, work.crop, work.crop, 3), 7, dtype=torch.uint8)
        yield pictures, torch.arange(work.batch_size)

main(batches)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty squares of 256 pixels in two classes and four tars."""
    root = tmp_path_factory.mktemp("peers")
    source = write_tree(root / "source", {"train": {"a": 10, "b": 10}}, 256, 256)
    assert shard(ShardOptions(source=source, out=str(root / "shards"), workers=1, shard_samples=5)) == 0
    return root / "shards"


def test_expected_statistics_are_those_of_all_crops_of_all_files(shards: Path, tmp_path: Path):
    export(shards, tmp_path / "files")
    files = listed(str(tmp_path / "files"))
    assert [label for _, label in files] == [0] * 10 + [1] * 10
    reference = expected(tmp_path / "files", crop=255)
    assert reference.images == 20
    assert reference.labels == {0: 10, 1: 10}
    pictures = np.stack([np.asarray(Image.open(path)) for path, _ in files]).astype(np.float64)
    crops = [pictures[:, y : y + 255, x : x + 255] for y in range(2) for x in range(2)]
    mean = np.mean([crop.mean((0, 1, 2)) for crop in crops], 0)
    squares = np.mean([np.square(crop).mean((0, 1, 2)) for crop in crops], 0)
    np.testing.assert_allclose(reference.mean, mean, rtol=1e-9)  # float64's rounding, in another order
    np.testing.assert_allclose(reference.std, np.sqrt(squares - mean**2), rtol=1e-9)


def test_pictures_that_differ_from_the_expected_are_found(shards: Path, tmp_path: Path):
    export(shards, tmp_path / "files")
    reference = expected(tmp_path / "files", 224)
    result = Result(name="it", output="uint8", mean=reference.mean, std=reference.std, images=20)
    judge(result, reference, 0.1)
    assert not result.fault
    result.mean = reference.mean[::-1]  # red and blue exchanged
    judge(result, reference, 0.1)
    assert "off by" in result.fault


def test_a_data_set_grown_by_links_holds_each_picture_so_often(shards: Path, tmp_path: Path):
    large = grown(shards, tmp_path / "large", 3)
    small_loader, loader = (BatchLoader(config(each, 224)) for each in (shards, large))
    small = [each.sum().item() for each in next(small_loader.pictures("train", range(20), 20)).pictures]
    found = [each.sum().item() for batch in loader.pictures("train", range(60), 20) for each in batch.pictures]
    assert found == small * 3
    assert not loader.damaged


def test_a_side_answers_stands_still_while_others_run_and_goes_on(tmp_path: Path):
    script = tmp_path / "side.py"
    script.write_text(SIDE)
    work = Work(
        files="", shards="", raw_shards="", own="", way="", output="uint8", threads=1, batch_size=4, crop=8,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    sides = str(ROOT / "benchmarks/peers/sides")
    side = Side([sys.executable, str(script), "serve", json.dumps(asdict(work)), sides], tmp_path / "log")
    try:
        first = side.first()
        assert first["shape"] == [4, 8, 8, 3]
        assert side.ask("check", 2) == {
            "images": 8, "mean": [7, 7, 7], "std": [0, 0, 0], "labels": [[0, 2], [1, 2], [2, 2], [3, 2]],
        }  # fmt: skip
        assert side.ask("run", 0.05)["images"] > 0
        side.freeze()
        deadline = time.monotonic() + 30
        while side.states() != {"T"}:
            assert time.monotonic() < deadline, side.states()
            time.sleep(0.01)
        before = side.processor_seconds()
        side.send("run", 0.05)
        assert side.processor_seconds() == before
        side.thaw()
        assert side.answer()["images"] > 0
        assert side.memory().all >= side.memory().own > 0
    finally:
        side.end()
    assert "a library's words" in (tmp_path / "log").read_text()


def test_a_side_that_fails_says_why(tmp_path: Path):
    side = Side([sys.executable, "-c", "raise SystemExit('no such library')"], tmp_path / "log")
    with pytest.raises(RuntimeError, match="no such library"):
        side.first()
    side.end()


def config(shards: Path, crop: int) -> DataConfig:
    """Crops of these shards."""
    return DataConfig(shards=shards, crop=crop, threads=2)
