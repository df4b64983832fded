"""A run goes on with raw shards where it had JPEGs, and back, as if nothing had changed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from networks import saved_network, small_run
from pipeline.command import InputError
from pipeline.files import sha256_of
from pipeline.manifest import DATASET_FILE, load_dataset, pictures_sha256
from pipeline.shard import ShardOptions, shard
from processes import PATIENCE, command, losses, weights
from service.network.read import load
from service.run.checkpoint import read_checkpoint
from service.run.config import RUN_FILE, check_same_call, run_fields
from service.run.dataset_change import describe_change, known_facts
from service.run.preprocessing import dataset_facts, preprocessing_of
from service.training.setup import find_resumable

STEPS = 4  # an epoch has 3.75

IN_TURN = """
import json, sys
from service.train import main

for sys.argv[1:] in json.loads(sys.stdin.read()):
    assert main() == 0
"""


@pytest.fixture(scope="module")
def raw(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `shards` is made of, as raw squares."""
    out = tmp_path_factory.mktemp("raw") / "shards"
    options = ShardOptions(
        source=shards.parent / "source", out=str(out), size=72, workers=1, shard_samples=8, store="raw"
    )
    assert shard(options) == 0
    return out


def train_in_turn(*calls: list[str]) -> str:
    """Run the worker so often, by one process: to start one for each takes long. What it said."""
    given = json.dumps([arguments[3:] for arguments in calls])
    words = [sys.executable, "-c", IN_TURN]
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_that_changes_its_store_equals_one_that_does_not(shards: Path, raw: Path, tmp_path: Path) -> None:
    """JPEG, raw, JPEG; over the end of an epoch, with a validation after it."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    output = train_in_turn(
        command(shards, whole, "--max-steps", str(STEPS)),
        *(
            command(source, parts, "--max-steps", str(stop))
            for source, stop in ((shards, 1), (raw, STEPS - 1), (shards, STEPS))
        ),
    )
    assert output.count("resumed from") == 2
    assert losses(parts) == losses(whole) and len(losses(whole)) == STEPS
    expected, found = weights(whole, STEPS), weights(parts, STEPS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    fields = [json.loads((out / RUN_FILE).read_text()) for out in (whole, parts)]
    assert fields[0]["dataset_sha256"] == fields[1]["dataset_sha256"] == sha256_of(shards / DATASET_FILE)


def test_a_checkpoint_of_either_is_of_both(shards: Path, raw: Path, tmp_path: Path) -> None:
    """For a resume, for ranks that read one each, and for what is known of it where it was."""
    squares, jpegs = load_dataset(raw), load_dataset(shards)
    assert dataset_facts(squares) == dataset_facts(jpegs)
    assert preprocessing_of(squares, raw).files() == preprocessing_of(jpegs, shards).files()
    for made_of, elsewhere, other in ((shards, raw, squares), (raw, shards, jpegs)):
        folder = tmp_path / other.store
        checkpoint = saved_network(folder, made_of)
        run = replace(small_run(elsewhere), out=folder)
        asked = run_fields(run, pictures_sha256(other))
        assert find_resumable(run, asked, other, print)
        check_same_call(1, run_fields(small_run(made_of), asked["dataset_sha256"]), asked)
        assert known_facts(read_checkpoint(checkpoint)) == dataset_facts(other)
        assert load(checkpoint, "cpu").dataset_sha256 == pictures_sha256(other)


def test_other_pictures_are_another_data_set_in_either_store(shards: Path, raw: Path, tmp_path: Path) -> None:
    source = shards.parent / "source"
    options = ShardOptions(
        source=source, out=str(tmp_path / "other"), size=72, quality=80, workers=1, shard_samples=8, store="raw"
    )
    assert shard(options) == 0
    other = load_dataset(tmp_path / "other")
    assert pictures_sha256(other) != pictures_sha256(load_dataset(raw))
    told = describe_change(dataset_facts(load_dataset(shards)), dataset_facts(other))
    assert told == "quality 92 there, 80 here"
    with pytest.raises(InputError, match="quality 92 there, 80 here"):
        shard(ShardOptions(**{**vars(options), "out": str(raw)}))
