"""In what another data set differs from a run's: what a resume, a fork and a rank with other shards are told."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from networks import saved_network, small_run
from pipeline.command import InputError
from pipeline.files import sha256_of
from pipeline.manifest import DATASET_FILE, Dataset, PictureClass, Shard, Split, encode_dataset, load_dataset
from service.run.checkpoint import MANIFEST, read_checkpoint
from service.run.config import check_same_call, run_fields
from service.run.dataset_change import change_since, describe_change
from service.run.preprocessing import PREPROCESSING_FILE, dataset_facts
from service.training.setup import find_resumable


def with_classes(dataset: Dataset, *ids: str, words: str = "") -> Dataset:
    classes = tuple(PictureClass(index=i, id=each, words=words or each) for i, each in enumerate(ids))
    return replace(dataset, classes=classes)


def with_pictures(dataset: Dataset, **pictures: int) -> Dataset:
    shards = {
        name: Shard(name="000000.tar", samples=samples, bytes=0, sha256="0" * 64) for name, samples in pictures.items()
    }
    splits = {name: Split(samples=samples, shards=(shards[name],)) for name, samples in pictures.items()}
    return replace(dataset, splits=splits, source_sha256="of others")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: replace(d, size=64), "size 72 there, 64 here"),
        (lambda d: replace(d, quality=80, seed=7), "quality 92 there, 80 here, seed 0 there, 7 here"),
        (lambda d: replace(d, val_fraction=0.1), "val_fraction 0.0 there, 0.1 here"),
        (lambda d: replace(d, shard_samples=0), "shard_samples 8 there, 0 here"),
        (lambda d: replace(d, encoder="other 1.0"), "encoder {d.encoder} there, other 1.0 here"),
        (lambda d: replace(d, source_sha256="other"), "as many source pictures, but others"),
        (lambda d: with_pictures(d, train=1234), "train 30 pictures there, 1,234 here, val 9 pictures there, 0 here"),
        (lambda d: with_pictures(d, train=30, val=9, test=5), "test 0 pictures there, 5 here"),
        (lambda d: with_classes(d, "a", "b", "x\ny"), "class c there alone, class x\\ny here alone"),
        (lambda d: with_classes(d, "a"), "3 classes there, 1 here, classes b, c there alone"),
        (lambda d: with_classes(d, "a", "b", "c", words="?"), "other words for classes a, b, c"),
        (
            lambda d: replace(d, rejected=1),
            "of the same size, quality, seed, val_fraction, shard_samples, encoder, source_sha256, pictures, classes",
        ),
    ],
)
def test_each_difference_is_named_and_nothing_else(
    shards: Path, change: Callable[[Dataset], Dataset], told: str
) -> None:
    dataset = load_dataset(shards)
    assert describe_change(dataset_facts(dataset), dataset_facts(change(dataset))) == told.format(d=dataset)


def as_of_an_earlier_version(checkpoint: Path, *kept: str) -> None:
    """The checkpoint as one whose preprocessing.json holds only these; without any it has no such file."""
    manifest, path = json.loads((checkpoint / MANIFEST).read_text()), checkpoint / PREPROCESSING_FILE
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: facts[name] for name in kept}))
    manifest["files"][path.name] = [path.stat().st_size, sha256_of(path)]
    if not kept:
        path.unlink()
        del manifest["files"][path.name]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def copied(shards: Path, folder: Path, described: Dataset | None = None) -> Path:
    """A copy of shards, which says of itself what it is told to."""
    shutil.copytree(shards, folder)
    if described:
        (folder / DATASET_FILE).write_bytes(encode_dataset(described))
    return folder


def refusal(run_folder: Path, shards: Path, **changes: Any) -> str:
    """What a resume with these shards is told; empty where it goes on."""
    run = replace(small_run(shards, **changes), out=run_folder)
    try:
        asked = run_fields(run, sha256_of(shards / DATASET_FILE))
        assert find_resumable(run, asked, load_dataset(shards), print)
    except InputError as error:
        return str(error)
    return ""


QUALITY, PICTURES = "quality 92 there, 80 here", "train 30 pictures there, 31 here"
SOME = ("size", "quality", "classes")


@pytest.mark.parametrize(
    ("kept", "told", "told_of_another_seed"),
    [
        (None, f"(another data set: {QUALITY}, {PICTURES})", "seed 0 there, 7 here"),
        (SOME, f"(another data set: {QUALITY})", "of the same size, quality, classes"),
        ((), "(dataset_sha256 ", ""),
    ],
    ids=["this version", "an earlier one", "the first"],
)
def test_a_resume_is_told_what_differs_by_runs_of_any_version(
    shards: Path, tmp_path: Path, kept: tuple[str, ...] | None, told: str, told_of_another_seed: str
) -> None:
    dataset, folder, there = load_dataset(shards), tmp_path / "run", copied(shards, tmp_path / "there")
    checkpoint = saved_network(folder, there)
    if kept is not None:
        as_of_an_earlier_version(checkpoint, *kept)
    assert not refusal(folder, there) and not refusal(folder, shards)  # the same data set, there or elsewhere
    changed = replace(with_pictures(dataset, train=31, val=9), quality=80)
    other = copied(shards, tmp_path / "other", changed)
    everything = f"another data set: {QUALITY}, {PICTURES}"  # of any version, while the shards are where they were
    assert f"({everything}); give" in refusal(folder, other)
    assert f"(seed 0 there, 1 here, {everything}); give" in refusal(folder, other, seed=1)
    (there / DATASET_FILE).unlink()
    assert told in refusal(folder, other) and "\n" not in refusal(folder, other)
    assert change_since(read_checkpoint(checkpoint), replace(dataset, seed=7)) == told_of_another_seed
    assert not refusal(folder, shards)


def test_ranks_with_other_shards_are_told_so() -> None:
    run = small_run(Path("shards"))
    with pytest.raises(InputError, match=r"than rank 0 \(another data set: size 72 there, 64 here\), expected the sa"):
        check_same_call(
            1, run_fields(run, "one"), run_fields(run, "other"), describe_change({"size": 72}, {"size": 64})
        )
    check_same_call(1, run_fields(run, "one"), run_fields(run, "one"), describe_change({"size": 72}, {"size": 72}))
