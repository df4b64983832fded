"""Crops by threads, against Pillow and numpy, to the last bit; their memory, their ends, and pictures that fail."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from damaged import seal
from paths import REAL_PICTURES
from pictures import encoded, photo, write_tree
from pipeline.command import InputError
from pipeline.load import batch_loader
from pipeline.load.augment import AugmentConfig
from pipeline.load.batch_loader import Batch, BatchLoader
from pipeline.load.config import DataConfig
from pipeline.load.crops import CropConfig, crop_batches, mirrored, square_reader
from pipeline.load.graph import build_graph
from pipeline.load.inputs import Replacements, SampleInputs, most_damaged, validation_inputs
from pipeline.load.storage import SampleStore
from pipeline.manifest import SAMPLES_FILE, load_dataset
from pipeline.shard import ShardOptions, shard

PICTURES, SIDE, CROP = 24, 64, 56
PLAIN = AugmentConfig(colour="off", mirror=False)  # a sample looks the same wherever it comes, if the crop is all of it


def make_shards(parent: Path, size: int, source: Path | None = None) -> Path:
    source = source or write_tree(parent / "source", {"train": {"a": PICTURES // 2, "b": PICTURES // 2}}, 96, 80)
    out = parent / f"shards-{size}"
    assert shard(ShardOptions(source=source, out=str(out), workers=1, shard_samples=10, size=size)) == 0
    return out


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("squares"), SIDE)


def open_train(root: Path) -> SampleStore:
    return SampleStore(root, load_dataset(root), "train")


def drawn_rows(store: SampleStore, side: int, crop: int) -> SampleInputs:
    """Every sample once, cropped and mirrored at random, with some RGB to take off."""
    random, count = np.random.default_rng(5), len(store)
    rows = validation_inputs(store, side - crop, None, np.arange(count))
    return rows._replace(
        corner=random.integers(0, side - crop, (count, 2), endpoint=True).astype(np.float32),
        mirror=random.integers(0, 2, count).astype(np.int32),
        subtract=random.normal(110, 9, (count, 3)).astype(np.float32),
    )


def crops(root: Path, rows: SampleInputs, side: int, crop: int, **options: Any) -> NDArray[Any]:
    """The pictures of these rows, as one batch."""
    store = open_train(root)
    given: dict[str, Any] = {"output": "uint8", "threads": 2, "prefetch": 1, **options}
    config = CropConfig(batch_size=len(store), side=side, crop=crop, **given)
    replacements = Replacements(store, 0, lambda place: None)
    ((pictures, _),) = crop_batches(store, square_reader("jpeg", "exact"), iter([rows]), replacements, config)
    return pictures.numpy()


def by_pillow(store: SampleStore, rows: SampleInputs, crop: int) -> NDArray[np.uint8]:
    made = []
    for data, corner, mirror in zip(store.read(rows.locations), rows.corner, rows.mirror, strict=True):
        y, x = corner.astype(int)
        pixels = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))[y : y + crop, x : x + crop]
        made.append(pixels[:, ::-1] if mirror else pixels)
    return np.stack(made)


def test_crops_of_real_pictures_are_those_of_the_whole_picture_to_the_last_bit(tmp_path: Path) -> None:
    if not REAL_PICTURES.exists():
        pytest.skip("needs the ImageNet sample beside the repository")
    with tarfile.open(REAL_PICTURES) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    root = make_shards(tmp_path, 256, tmp_path / "source")
    store = open_train(root)
    rows = drawn_rows(store, 256, 224)
    assert len(store) >= 150 and 0 < rows.mirror.sum() < len(store)
    np.testing.assert_array_equal(crops(root, rows, 256, 224), by_pillow(store, rows, 224))


def test_what_is_left_to_the_device_to_mirror_is_the_same_once_it_has(squares: Path) -> None:
    store = open_train(squares)
    rows = drawn_rows(store, SIDE, CROP)
    assert 0 < rows.mirror.sum() < len(store)
    left = torch.from_numpy(crops(squares, rows, SIDE, CROP, mirrors=False))
    whole = crops(squares, rows, SIDE, CROP)
    np.testing.assert_array_equal(mirrored(left, torch.from_numpy(rows.mirror)).numpy(), whole)
    np.testing.assert_array_equal(left.numpy()[rows.mirror == 0], whole[rows.mirror == 0])


@pytest.mark.parametrize("output", ["float32", "float16"])
@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (58.0, 57.0, 56.0)])
def test_floats_are_pixels_less_the_mean_and_shift(squares: Path, output: str, std: tuple[float, ...]) -> None:
    store = open_train(squares)
    rows = drawn_rows(store, SIDE, CROP)
    found = crops(squares, rows, SIDE, CROP, output=output, std=std)
    expected = by_pillow(store, rows, CROP).astype(np.float32) - rows.subtract[:, None, None]
    assert found.dtype == output
    if set(std) == {1.0}:  # one subtraction, rounded once, and once more to float16
        np.testing.assert_array_equal(found, expected.astype(output))
    else:  # a product with the inverse instead of a quotient
        np.testing.assert_allclose(
            found, expected / np.array(std, np.float32), rtol=2e-3 if output == "float16" else 1e-6
        )


@pytest.mark.parametrize("output", ["uint8", "float32"])
def test_threads_and_the_dali_graph_make_the_same_batches(squares: Path, output) -> None:
    loader = BatchLoader(DataConfig(shards=squares, crop=CROP, output=output), seed=2)
    by_threads = list(islice(loader.train(10), 4))
    with mock.patch.object(BatchLoader, "_only_crops", lambda *_: False):
        by_graph = list(islice(loader.train(10), 4))
    for one, other in zip(by_threads, by_graph, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_fast_decoding_is_libjpeg_turbos(squares: Path) -> None:
    """And not the exact one."""
    config = DataConfig(shards=squares, crop=SIDE, augment=PLAIN, decoding="fast")
    store = open_train(squares)
    batch = next(BatchLoader(config).pictures("train", range(len(store)), len(store)))
    files = store.read(store.locate(np.arange(len(store))))
    expected = np.stack([simplejpeg.decode_jpeg(file, fastdct=True, fastupsample=True) for file in files])
    np.testing.assert_array_equal(batch.pictures.numpy(), expected)
    assert (expected != np.stack([simplejpeg.decode_jpeg(file) for file in files])).any()


def test_memory_is_used_again_once_nobody_has_a_view_of_it(squares: Path) -> None:
    batches = BatchLoader(DataConfig(shards=squares, crop=CROP, prefetch=2)).train(8)
    kept = next(batches).pictures[3, 5:].numpy()[..., 1]  # a view of a view, without the tensor
    copy = kept.copy()
    places = {batch.pictures.data_ptr() for batch in islice(batches, 40)}
    assert len(places) <= 5  # the two ahead, the one that is handed over, the one before it, the one to be begun
    np.testing.assert_array_equal(kept, copy)


def threads_of_crops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("crops")]


def wait_for_no_threads() -> None:
    end = time.monotonic() + 30
    while threads_of_crops():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_no_thread_stays_when_batches_are_closed_or_dropped(squares: Path) -> None:
    loader = BatchLoader(DataConfig(shards=squares, crop=CROP))
    batches: Iterator[Batch] = loader.train(8)
    next(batches)
    assert threads_of_crops()
    batches.close()  # type: ignore[attr-defined]
    wait_for_no_threads()
    batches = loader.train(8)
    next(batches)
    del batches
    wait_for_no_threads()


ENDS = """
import os, sys, threading, torch
from pathlib import Path
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig

from pipeline.load.crops import _compute_alone

found = []
thread = threading.Thread(target=lambda: (_compute_alone(), found.append(torch.get_num_threads())))
thread.start(), thread.join()
assert found == [1] and torch.get_num_threads() == 2  # or each of our threads would start threads of torch's
batches = BatchLoader(DataConfig(shards=Path(sys.argv[1]), crop=56)).train(8)
next(batches)
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    next(batches)  # the parent's go on
    raise KeyError("an error while batches are under way")
try:
    next(batches)
except RuntimeError as error:
    assert "begun by the parent" in str(error)
    sys.exit(7)
"""


def test_a_fork_is_told_and_an_error_ends_the_process(squares: Path) -> None:
    command = [sys.executable, "-c", ENDS, squares]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert ended.returncode == 1 and ended.stderr.strip().endswith("while batches are under way'"), ended.stderr


def put(root: Path, sample: int, jpeg: bytes) -> None:
    """Put other bytes in the place of a sample's, with a table that says that they are right."""
    table = np.load(root / "train" / SAMPLES_FILE)
    row = table[sample]
    assert len(jpeg) <= row["size"]
    with open(root / "train" / f"{row['shard']:06d}.tar", "r+b") as stream:
        stream.seek(int(row["offset"]))
        stream.write(jpeg)
    table[sample]["size"], table[sample]["crc32"] = len(jpeg), zlib.crc32(jpeg)
    np.save(root / "train" / SAMPLES_FILE, table)
    seal(root)


def file_of(root: Path, sample: int) -> bytes:
    store = open_train(root)
    return store.read(store.locate(np.array([sample])))[0].tobytes()


def by_sample(root: Path, crop: int) -> tuple[list[torch.Tensor], list[int], BatchLoader]:
    """Every sample's picture and label, in batches of 8."""
    loader = BatchLoader(DataConfig(shards=root, crop=crop, augment=PLAIN, prefetch=3))
    batches = list(loader.pictures("train", range(PICTURES), 8))
    return [p for b in batches for p in b.pictures], torch.cat([b.labels for b in batches]).tolist(), loader


@pytest.mark.parametrize("way", ["threads", "graph", "graph, of sizes of their own"])
def test_a_picture_that_fails_with_a_sound_checksum_fails_alone(squares: Path, tmp_path: Path, way: str) -> None:
    root = tmp_path / "shards"
    if way.endswith("own"):
        whole, crop = make_shards(tmp_path / "whole", 0), 224
    else:
        whole, crop = squares, SIDE
    shutil.copytree(whole, root)
    put(root, 4, file_of(whole, 4)[:-100])  # ends early
    put(root, 5, b"no picture at all")
    stand_ins = {4: 6, 5: 6}
    if not way.endswith("own"):
        put(root, 12, encoded(photo(1, SIDE - 1, SIDE), quality=40))
        put(root, 21, encoded(photo(1, SIDE + 1, SIDE + 1), quality=40))
        stand_ins |= {12: 13, 21: 22}
    graphs: list[weakref.ref[Pipeline]] = []

    def build(*args: Any) -> Pipeline:
        assert not any(graph() for graph in graphs)  # a GPU may not have room for two
        graph = build_graph(*args)
        graphs.append(weakref.ref(graph))
        return graph

    with (
        mock.patch.object(BatchLoader, "_only_crops", lambda *_: way == "threads"),
        mock.patch.object(batch_loader, "build_graph", build),
    ):
        expected, expected_labels, _ = by_sample(whole, crop)
        found, labels, loader = by_sample(root, crop)
    for sample in range(PICTURES):
        stand_in = stand_ins.get(sample, sample)
        assert torch.equal(found[sample], expected[stand_in]) and labels[sample] == expected_labels[stand_in]
    store = open_train(root)
    assert set(loader.damaged) == {store.place(location) for location in store.locate(np.array(list(stand_ins)))}
    assert len(loader.damaged) == len(stand_ins)


def test_too_many_damaged_samples_end_the_epoch_with_the_shards_named(squares: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    shutil.copytree(squares, root)
    for sample in range(5, 15):
        put(root, sample, b"no picture")
    loader = BatchLoader(DataConfig(shards=root, crop=CROP))
    for _ in islice(loader.train(PICTURES), 3):  # the same ten in each epoch
        pass
    assert len(loader.damaged) == 30
    put(root, 20, b"no picture")
    with pytest.raises(InputError, match=r"11 samples .* \(000000.tar: 5, 000001.tar: 5, 000002.tar: 1\)"):
        next(BatchLoader(DataConfig(shards=root, crop=CROP)).train(PICTURES))
    next(BatchLoader(DataConfig(shards=root, crop=CROP, most_damaged=0.5)).train(PICTURES))


def test_the_budget_is_a_share_of_the_epoch_and_ten_at_least() -> None:
    assert most_damaged(0.0001, 1_281_167) == 128
    assert most_damaged(0.0001, 50_000) == most_damaged(0, 10**9) == 10
    with pytest.raises(InputError, match="most_damaged is 2, expected 0 to 1"):
        DataConfig(most_damaged=2)
