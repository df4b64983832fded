"""A run may change from JPEG to raw shards of the same source and options, and back: the same batches, bit by bit."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pictures import write_tree
from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig
from pipeline.load.batch_loader import Batch, BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.crops import mirrored
from pipeline.manifest import encode_dataset, load_dataset, load_samples
from pipeline.picture.raw import HEADER_BYTES
from pipeline.shard import ShardOptions, shard

CROP, BATCH, BATCHES = 24, 7, 12  # 30 pictures: two epochs, and most of a third


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pictures in both stores."""
    root = tmp_path_factory.mktemp("both")
    source = write_tree(root / "source", {"train": {"a": 15, "b": 15}, "val": {"a": 5, "b": 4}}, 60, 50)
    for store in ("jpeg", "raw"):
        options = ShardOptions(source=source, out=str(root / store), size=32, store=store, shard_samples=8, workers=1)  # pyright: ignore[reportArgumentType]
        assert shard(options) == 0
    return {store: root / store for store in ("jpeg", "raw")}


def loader(shards: Path, resize: int = 0, **changes: Any) -> BatchLoader:
    return BatchLoader(DataConfig(shards=shards, crop=CROP, threads=2, **changes), seed=5, resize=resize)


def equal(some: Iterator[Batch], others: Iterator[Batch], least: int) -> None:
    """Batches of all columns, equal to the last bit."""
    pairs = list(zip(islice(some, BATCHES), islice(others, BATCHES), strict=True))
    assert len(pairs) >= least
    for one, other in pairs:
        for column, its in zip(one, other, strict=True):
            assert column.dtype == its.dtype and torch.equal(column, its)


@pytest.mark.parametrize("output", ["uint8", "float32", "float16"])
def test_training_and_validation_batches_are_equal(both: dict[str, Path], output: str) -> None:
    jpeg, raw = (loader(both[store], output=output) for store in ("jpeg", "raw"))
    equal(jpeg.train(BATCH, first=3), raw.train(BATCH, first=3), BATCHES)
    equal(jpeg.validation(4), raw.validation(4), 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": AugmentConfig(crop="resized", colour="off")},
        {"augment": AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)},
        {"resize": 28},
    ],
    ids=["resized crops", "jitter", "scaled"],
)
def test_what_dali_makes_is_equal_too(both: dict[str, Path], changes: dict[str, Any]) -> None:
    """Resized crops, jitter and scaling are its graph's, which is given pixels in place of files."""
    jpeg, raw = (loader(both[store], output="uint8", **changes) for store in ("jpeg", "raw"))
    equal(jpeg.train(BATCH), raw.train(BATCH), BATCHES)
    equal(jpeg.validation(4), raw.validation(4), 3)


def test_the_pictures_are_the_stored_pixels(both: dict[str, Path]) -> None:
    """Read by numpy from the tars."""
    dataset = load_dataset(both["raw"])
    rows = load_samples(both["raw"], dataset, "val")
    names = [each.name for each in dataset.splits["val"].shards]
    corner = (32 - CROP) // 2
    for batch in loader(both["raw"]).validation(4):
        for picture, sample in zip(batch.pictures, batch.positions.tolist(), strict=True):
            row = rows[sample]
            data = (both["raw"] / "val" / names[row["shard"]]).read_bytes()[row["offset"] :][: row["size"]]
            square = np.frombuffer(data[HEADER_BYTES:], np.uint8).reshape(32, 32, 3)
            np.testing.assert_array_equal(picture, square[corner : corner + CROP, corner : corner + CROP])


def test_a_damaged_square_is_replaced_and_counted(both: dict[str, Path], tmp_path: Path) -> None:
    """As the JPEG in its place would be: by the same sample, in the same batch."""
    made = {}
    for store, root in both.items():
        out = Path(shutil.copytree(root, tmp_path / store))
        dataset = load_dataset(out)
        row = load_samples(out, dataset, "train")[11]
        tar = out / "train" / dataset.splits["train"].shards[row["shard"]].name
        data = bytearray(tar.read_bytes())
        data[row["offset"] + row["size"] - 9] ^= 1
        tar.write_bytes(data)
        made[store] = loader(out)
    equal(made["jpeg"].train(BATCH), made["raw"].train(BATCH), BATCHES)
    assert len(made["raw"].damaged) == len(made["jpeg"].damaged) > 0
    assert all(place.startswith("train/000001.tar, byte ") for place in made["raw"].damaged)


def test_decoding_must_be_exact(both: dict[str, Path]) -> None:
    """A fast decoder gives other pixels, which raw shards do not have."""
    with pytest.raises(InputError, match="decoding is fast, expected exact: raw shards are decoded"):
        loader(both["raw"], decoding="fast")


def test_a_gpu_is_given_crops_that_the_cpu_copied(both: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a decoder on either: uint8 in pinned memory, mirrored when it is there, and the step adds the shift.
    Here without a GPU."""
    uploaded: list[torch.Tensor] = []

    def upload(_: BatchLoader, pictures: torch.Tensor, mirror: NDArray[np.int32]) -> torch.Tensor:
        uploaded.append(pictures)
        return mirrored(pictures, torch.from_numpy(mirror))

    def no_decoder() -> bool:
        raise AssertionError("no decoder is needed")

    monkeypatch.setattr("pipeline.load.batch_loader.gpu_decoder_works", no_decoder)
    monkeypatch.setattr(BatchLoader, "_upload", upload)
    pinned: list[Any] = []
    empty = torch.empty

    def in_memory(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr("pipeline.load.crops.torch.empty", in_memory)
    config = DataConfig(shards=both["raw"], crop=CROP, threads=2)
    gpu = BatchLoader(config, seed=5, device="gpu")
    assert gpu.output == "uint8" and gpu.decoder == "cpu"
    equal(gpu.train(BATCH), loader(both["raw"], output="uint8").train(BATCH), BATCHES)
    assert len(uploaded) >= BATCHES and any(pinned)


def test_squares_of_another_size_than_described_end_it(both: dict[str, Path], tmp_path: Path) -> None:
    """None is taken for pixels: all are damaged, and none is left to stand in."""
    out = Path(shutil.copytree(both["raw"], tmp_path / "out"))
    dataset = replace(load_dataset(out), size=30)
    (out / "dataset.json").write_bytes(encode_dataset(dataset))
    with pytest.raises(InputError, match="val"):
        list(loader(out).validation(4))
