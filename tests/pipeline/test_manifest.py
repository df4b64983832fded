import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.command import InputError
from pipeline.files import write_atomic
from pipeline.manifest import (
    SAMPLE_DTYPE,
    ColourStatistics,
    Dataset,
    PictureClass,
    Shard,
    Split,
    array_bytes,
    encode_dataset,
    load_dataset,
    load_mean,
    load_samples,
)


def write_array(path: Path, array: np.ndarray) -> str:
    write_atomic(path, array_bytes(array))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_dataset(root: Path, dataset: Dataset) -> None:
    write_atomic(root / "dataset.json", encode_dataset(dataset))


def small_dataset(root: Path) -> Dataset:
    (root / "train").mkdir()
    table = np.array([(0, 512, 100, 1, 7), (0, 1536, 90, 0, 8)], SAMPLE_DTYPE)
    mean = np.arange(48, dtype=np.float32).reshape(4, 4, 3)
    colour = ColourStatistics(
        mean=(1.0, 2.0, 1 / 3),
        eigenvalues=(9.0, 4.0, 0.0),
        eigenvectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        standard_deviations=(3.0, 2.0, 0.0),
    )
    shard = Shard(name="000000.tar", samples=2, bytes=10240, sha256="0" * 64)
    files = {"train/samples.npy": write_array(root / "train/samples.npy", table)}
    files["mean.npy"] = write_array(root / "mean.npy", mean)
    return Dataset(
        encoder="an encoder 1.0",
        size=4,
        quality=92,
        seed=0,
        shard_samples=0,
        val_fraction=0.0,
        source_sha256="1" * 64,
        classes=(PictureClass(index=0, id="n01", words="a fish, Zürich"), PictureClass(index=1, id="n02", words="n02")),
        splits={"train": Split(samples=2, shards=(shard,))},
        rejected=3,
        colour=colour,
        files=files,
    )


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_data_set_reads_back_equal(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    write_dataset(tmp_path, dataset)
    assert load_dataset(tmp_path) == dataset
    samples = load_samples(tmp_path, dataset, "train")
    assert samples.dtype == SAMPLE_DTYPE
    assert samples["label"].tolist() == [1, 0]
    assert samples["offset"].tolist() == [512, 1536]
    assert not samples.flags.writeable
    mean = load_mean(tmp_path, dataset)
    assert mean.dtype == np.float32
    assert mean.shape == (4, 4, 3)


def test_a_row_of_the_sample_table_has_24_bytes() -> None:
    assert SAMPLE_DTYPE.itemsize == 24


@pytest.mark.parametrize("name", ["train/samples.npy", "mean.npy"])
def test_a_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    dataset = small_dataset(tmp_path)

    def load() -> None:
        load_samples(tmp_path, dataset, "train")
        load_mean(tmp_path, dataset)

    flip_last_byte(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is damaged"):
        load()
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load()


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'val', expected one of: train"):
        load_samples(tmp_path, small_dataset(tmp_path), "val")


def test_missing_folders_and_manifests_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        load_dataset(tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, replace(small_dataset(tmp_path), schema_version=1))
    with pytest.raises(InputError, match="schema version 1, expected 2"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"{}", b"null", b'{"schema_version": 2}', b"\xff\xfe"],
    ids=["empty", "cut", "list", "no fields", "null", "version only", "not text"],
)
def test_a_damaged_manifest_is_one_line(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"dataset\.json is damaged") as raised:
        load_dataset(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_unknown_or_missing_field_is_damage(tmp_path: Path) -> None:
    write_dataset(tmp_path, small_dataset(tmp_path))
    fields = json.loads((tmp_path / "dataset.json").read_bytes())
    for changed in ({**fields, "extra": 1}, {name: value for name, value in fields.items() if name != "seed"}):
        (tmp_path / "dataset.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match="is damaged"):
            load_dataset(tmp_path)


def test_every_changed_byte_of_the_manifest_is_damage(tmp_path: Path) -> None:
    write_dataset(tmp_path, small_dataset(tmp_path))
    path = tmp_path / "dataset.json"
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 + place % 255
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"is damaged|schema version"):
            load_dataset(tmp_path)
    path.write_bytes(data + b"\n")
    with pytest.raises(InputError, match="is damaged"):
        load_dataset(tmp_path)


def test_an_array_of_objects_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "x.npy", np.array([{}], dtype=object))
    assert list(tmp_path.iterdir()) == []
