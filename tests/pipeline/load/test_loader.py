"""The library's loader: epochs, ranks, states, and pictures as a network takes them; augmentations beside the paper's.

Tolerances on pixels of 0..255:
- RESIZED 2.5 at most and 0.4 on average: DALI scales in floating point and Pillow in fixed point with rounded weights,
  by the same triangular filter, and each rounds to whole pixels between its two passes.
- JITTER 1.02: DALI's float32 matrix of all four factors against float64, each rounded to whole pixels.
"""

import io
import json
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pipeline
from pictures import encoded, photo, write_tree
from pipeline import AugmentConfig, DataConfig, InputError, Loader
from pipeline.load.augment import jitter_draws, region_draws, regions
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.graph import picture_sizes
from pipeline.load.order import epoch_order
from pipeline.randomness import AUGMENT, random_words
from pipeline.shard import ShardOptions, shard

RESIZED, RESIZED_MEAN, JITTER = 2.5, 0.4, 1.02
SEED, CROP, SAMPLES = 3, 64, 30
PLAIN = AugmentConfig(colour="off")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures of sizes of their own: 12 wide ones and 12 narrow ones, and two of each for validation."""
    root = tmp_path_factory.mktemp("original")
    write_tree(root / "source", {"train": {"wide": 12}, "val": {"wide": 2}}, 300, 130)
    write_tree(root / "source", {"train": {"narrow": 12}, "val": {"narrow": 2}}, 120, 200)
    assert shard(ShardOptions(source=root / "source", out=str(root / "shards"), workers=1, size=0)) == 0
    return root / "shards"


def config(shards: Path, **options: Any) -> DataConfig:
    return DataConfig(**{"shards": shards, "crop": CROP, "augment": PLAIN, "output": "uint8", **options})


def equal(found: Iterable[tuple[Tensor, Tensor]], expected: Batches) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The pictures of all parts, and their labels."""
    pictures, labels = zip(*parts, strict=True)
    return torch.cat(pictures), torch.cat(labels)


def stored(root: Path, split: str) -> list[Image.Image]:
    """The pictures of a split in the order of the tars, by Pillow."""
    found = []
    for row in np.load(root / split / "samples.npy"):
        tar = (root / split / f"{row['shard']:06d}.tar").read_bytes()
        start = int(row["offset"])
        found.append(Image.open(io.BytesIO(tar[start : start + int(row["size"])])).convert("RGB"))
    return found


def test_an_iteration_is_an_epoch_of_the_trainers_pictures_and_the_next_goes_on(shards: Path) -> None:
    loader = Loader(config(shards), 8, seed=SEED)
    assert len(loader) == 4 and loader.samples == SAMPLES
    epochs = [list(loader), list(loader)]
    assert loader.position == 2 * SAMPLES and loader.epoch == 2
    whole = next(BatchLoader(config(shards), seed=SEED).train(2 * SAMPLES))
    for epoch, batches in enumerate(epochs):
        assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
        pictures, labels = joined(batches)
        here = slice(epoch * SAMPLES, (epoch + 1) * SAMPLES)
        assert torch.equal(pictures, whole.pictures[here].permute(0, 3, 1, 2))
        assert torch.equal(labels, whole.labels[here]) and labels.dtype == torch.int64


def test_the_last_batch_can_be_dropped_and_epochs_still_begin_where_they_do(shards: Path) -> None:
    loader, whole = Loader(config(shards), 8, seed=SEED, drop_last=True), Loader(config(shards), 8, seed=SEED)
    assert len(loader) == 3
    for epoch in (1, 2):
        assert equal(loader, list(whole)[:3])
        assert loader.position == epoch * SAMPLES and loader.epoch == epoch
    loader.seek(25)  # what is left of that epoch would be dropped
    assert loader.position == SAMPLES


@pytest.mark.parametrize(("output", "tolerance"), [("auto", 1e-5), ("float16", 4e-3)])
@pytest.mark.parametrize("colour", ["off", "eigenvalues", "deviations"])
def test_pictures_are_normalised_in_channels_last_memory(
    shards: Path, output: Any, tolerance: float, colour: Any
) -> None:
    """float16 rounds to 1 in 2,048 of values that reach 2.7, twice."""
    augment = AugmentConfig(colour=colour)
    loader = Loader(config(shards, output=output, augment=augment), 12, seed=SEED)
    pictures, labels = next(iter(loader))
    assert pictures.shape == (12, 3, CROP, CROP) and pictures.is_contiguous(memory_format=torch.channels_last)
    assert pictures.dtype == (torch.float16 if output == "float16" else torch.float32)
    batch = next(BatchLoader(config(shards, augment=augment), seed=SEED).train(12))
    expected = (batch.pictures.double() + batch.offset[:, None, None]) / 255
    expected = (expected - MEAN) / STD * batch.scale[:, None, None, None]
    assert torch.equal(labels, batch.labels)
    assert (pictures.permute(0, 2, 3, 1).double() - expected).abs().max() <= tolerance
    raw = next(iter(Loader(config(shards, output="uint8", augment=AugmentConfig(colour="off")), 12, seed=SEED)))[0]
    assert raw.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(raw.permute(0, 2, 3, 1), batch.pictures)
    plain = Loader(config(shards, output="float32"), 12, seed=SEED, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    assert (next(iter(plain))[0].permute(0, 2, 3, 1) - batch.pictures).abs().max() <= 1e-4


@pytest.mark.parametrize("split", ["train", "val"])
def test_ranks_share_each_batch_to_within_a_picture_and_nothing_is_padded(shards: Path, split: str) -> None:
    whole = list(Loader(config(shards), 8, split=split, seed=SEED))
    for ranks in (2, 3, 8):  # 8: more ranks than the last batch has pictures
        loaders = [Loader(config(shards), 8, split=split, seed=SEED, rank=r, world_size=ranks) for r in range(ranks)]
        parts = [list(loader) for loader in loaders]
        assert {len(part) for part in parts} == {len(whole)}
        assert len({loader.position for loader in loaders}) == 1
        for step, (pictures, labels) in enumerate(whole):
            mine = [part[step] for part in parts]
            sizes = {len(each) for _, each in mine}
            assert max(sizes) - min(sizes) <= 1
            assert equal([joined(mine)], [(pictures, labels)])
            assert {(each.dtype, each.shape[1:]) for each, _ in mine} == {(pictures.dtype, pictures.shape[1:])}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_state_goes_on_with_the_rest_of_the_epoch_on_any_number_of_ranks(shards: Path, split: str) -> None:
    """Though batches beyond the last one handed out were being prepared."""
    loader = Loader(config(shards), 4, split=split, seed=SEED)
    batches, states = [], [json.dumps(loader.state_dict())]
    for batch in loader:
        batches.append(batch)
        states.append(json.dumps(loader.state_dict()))
    for done in (0, 1, len(batches) - 1):
        again = Loader(config(shards, prefetch=1), 4, split=split, seed=SEED)
        again.load_state_dict(json.loads(states[done]))
        assert equal(again, batches[done:])
    halves = [Loader(config(shards), 4, split=split, seed=SEED, rank=rank, world_size=2) for rank in (0, 1)]
    for half in halves:
        half.load_state_dict(json.loads(states[1]))
    assert equal((joined(parts) for parts in zip(*halves, strict=True)), batches[1:])
    after = Loader(config(shards), 4, split=split, seed=SEED)
    after.load_state_dict(json.loads(states[-1]))
    assert equal(after, list(loader))  # the next epoch


def test_a_loop_that_ended_early_goes_on_and_seek_goes_anywhere(shards: Path) -> None:
    loader = Loader(config(shards), 8, seed=SEED)
    whole = list(loader)
    loader.seek(0)
    assert equal(islice(loader, 1), whole[:1]) and loader.position == 8
    assert equal(loader, whole[1:]) and loader.position == SAMPLES
    loader.seek(28)
    (pictures, labels), *more = list(loader)
    assert not more and torch.equal(pictures, whole[3][0][4:]) and torch.equal(labels, whole[3][1][4:])


def test_validation_is_every_picture_in_order_each_time(shards: Path) -> None:
    loader = Loader(config(shards), 4, split="val")
    first, second = list(loader), list(loader)
    assert [len(labels) for _, labels in first] == [4, 4, 1] and equal(second, first)
    expected = [np.asarray(picture)[4:68, 4:68] for picture in stored(shards, "val")]
    pictures = torch.cat([pictures for pictures, _ in first]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pictures, np.stack(expected))


def test_a_state_of_something_else_is_refused(shards: Path, original: Path) -> None:
    state = Loader(config(shards), 8, seed=SEED).state_dict()
    for other, message in [
        (Loader(config(shards), 8, seed=4), "seed 3, expected 4"),
        (Loader(config(shards), 8, split="val", seed=SEED), "split train, expected val"),
        (Loader(config(original), 8, seed=SEED), r"dataset \w{64}, expected \w{64}"),
    ]:
        with pytest.raises(InputError, match=message):
            other.load_state_dict(state)
    by_block = config(shards, shuffle="block", block_samples=2, window_blocks=2)
    for one, other in [(by_block, config(shards)), (config(shards), by_block)]:
        with pytest.raises(InputError, match="shuffle"):
            Loader(other, 8, seed=SEED).load_state_dict(Loader(one, 8, seed=SEED).state_dict())
    with pytest.raises(InputError, match="position None, expected a number"):
        Loader(config(shards), 8).load_state_dict({})


def test_wrong_calls_say_what_is_expected(shards: Path) -> None:
    for message, options in {
        "batch_size is 2 for rank 0 of 4": {"batch_size": 2, "world_size": 4},
        "std is (0, 1, 1), expected numbers above 0": {"std": (0, 1, 1)},
        "resize is -1 pixels, expected at least the crop": {"resize": -1},
        "batch_size is 8 for rank 2 of 2": {"rank": 2, "world_size": 2},
        "there is no split 'test', expected one of: train, val": {"split": "test"},
        "train has 30 pictures, expected a batch of 31": {"batch_size": 31, "drop_last": True},
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            Loader(config(shards), **{"batch_size": 8, **options})
    with pytest.raises(InputError, match="output is uint8, which cannot hold a colour shift"):
        Loader(config(shards, augment=AugmentConfig()), 8)
    with pytest.raises(InputError, match="position is -1, expected 0 to"):
        Loader(config(shards), 8).seek(-1)
    with pytest.raises(InputError, match="crop is 64 pixels, expected at most the 48 that pictures are resized to"):
        Loader(config(shards), 8, resize=48)


def wait_until_ended(threads: set[threading.Thread]) -> None:
    """Threads end soon after they are told to."""
    assert threads
    until = time.monotonic() + 60
    while any(thread.is_alive() for thread in threads):
        assert time.monotonic() < until, threads
        time.sleep(0.01)


def test_closing_or_forgetting_a_loader_ends_its_threads(shards: Path) -> None:
    before = set(threading.enumerate())
    with Loader(config(shards), 8, seed=SEED) as loader:
        first = next(iter(loader))
        started = set(threading.enumerate()) - before
    wait_until_ended(started)
    assert loader.position == 8 and len(list(loader)) == 3  # it can go on
    loader.seek(0)
    assert equal(islice(loader, 1), [first])
    again = set(threading.enumerate()) - before - started
    del loader  # nothing else holds it: it need not wait for the garbage collector
    wait_until_ended(again)


def scaled(picture: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """(CROP, CROP, 3): a region (top, left, height, width), scaled by Pillow."""
    top, left, height, width = box
    region = picture.crop((left, top, left + width, top + height))
    return np.asarray(region.resize((CROP, CROP), Image.Resampling.BILINEAR), np.float64)


@pytest.mark.parametrize("which", ["shards", "original"])
def test_resized_crops_are_near_pillows(which: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(which)
    augment = replace(PLAIN, crop="resized")
    loader = Loader(config(root, augment=augment), 24, seed=SEED)
    pictures, labels = next(iter(loader))
    order, files = epoch_order(SEED, 0, loader.samples), stored(root, "train")
    chosen = [files[sample] for sample in order[:24]]
    sizes = np.array([(picture.height, picture.width) for picture in chosen])
    boxes = regions(region_draws(augment, seed=SEED, first=0, count=24), sizes)
    mirrors = random_words(SEED, AUGMENT, 0, 24, 8)[:, 2] >> np.uint64(63)
    expected = [scaled(picture, box) for picture, box in zip(chosen, boxes.tolist(), strict=True)]
    expected = [each[:, ::-1] if mirror else each for each, mirror in zip(expected, mirrors, strict=True)]
    error = np.abs(pictures.permute(0, 2, 3, 1).numpy() - np.stack(expected))
    assert error.max() <= RESIZED and error.mean() <= RESIZED_MEAN
    assert labels.tolist() == np.load(root / "train/samples.npy")["label"][order[:24]].tolist()


def test_sizes_of_pictures_are_read_from_their_headers() -> None:
    """Of chroma in any layout, too: one that simplejpeg has no name for is made of a usual one's sampling factors."""
    usual = encoded(photo(0, 48, 40), subsampling=0)
    frame = usual.index(b"\xff\xc0")
    odd = usual[: frame + 11] + b"\x31" + usual[frame + 12 :]
    files = [usual, odd, encoded(photo(0, 30, 20).convert("L")), usual[:20], b"no picture", b""]
    sizes = picture_sizes([np.frombuffer(file, np.uint8) for file in files] + [np.zeros((7, 9, 3), np.uint8)])
    assert sizes.tolist() == [[40, 48], [40, 48], [20, 30], [1, 1], [1, 1], [1, 1], [7, 9]]


def test_validation_pictures_are_scaled_then_cropped(original: Path) -> None:
    pictures, _ = next(iter(Loader(config(original), 4, split="val", resize=80)))
    for picture, found in zip(stored(original, "val"), pictures.permute(0, 2, 3, 1).numpy(), strict=True):
        scale = 80 / min(picture.size)
        whole = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
        left, top = ((side - 80) // 2 + (80 - CROP) // 2 for side in whole.size)
        error = np.abs(found - np.asarray(whole.crop((left, top, left + CROP, top + CROP)), np.float64))
        assert error.max() <= RESIZED and error.mean() <= RESIZED_MEAN


def test_stored_squares_can_be_scaled_too(shards: Path) -> None:
    pictures, _ = next(iter(Loader(config(shards, crop=48), 9, split="val", resize=48)))
    for picture, found in zip(stored(shards, "val"), pictures.permute(0, 2, 3, 1).numpy(), strict=True):
        error = np.abs(found - np.asarray(picture.resize((48, 48), Image.Resampling.BILINEAR), np.float64))
        assert error.max() <= RESIZED and error.mean() <= RESIZED_MEAN


def jittered(picture: np.ndarray, brightness: float, contrast: float, saturation: float, turn: float) -> np.ndarray:
    """Hue turned in YIQ, saturation and contrast scaled, then brightness: float64, rounded and clipped at the end."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    y, i, q = np.moveaxis(picture @ to_yiq.T, -1, 0)
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    turned = np.stack([y, saturation * (cos * i + sin * q), saturation * (cos * q - sin * i)], axis=-1)
    values = ((turned @ np.linalg.inv(to_yiq).T - 128) * contrast + 128) * brightness
    return np.rint(np.clip(values, 0, 255))


def test_colours_are_jittered_as_documented(shards: Path) -> None:
    jitter = replace(PLAIN, brightness=0.4, contrast=0.5, saturation=0.6, hue=0.2)
    (plain, _), (found, _) = (next(iter(Loader(config(shards, augment=a), 16, seed=SEED))) for a in (PLAIN, jitter))
    factors = jitter_draws(jitter, seed=SEED, first=0, count=16)
    for before, after, row in zip(plain.permute(0, 2, 3, 1), found.permute(0, 2, 3, 1), factors, strict=True):
        assert np.abs(jittered(before.double().numpy(), *row) - after.numpy()).max() <= JITTER
    assert equal(Loader(config(shards, augment=jitter), 9, split="val"), list(Loader(config(shards), 9, split="val")))


def test_jittered_floats_are_the_same_pictures_normalised(original: Path) -> None:
    """By the graph: what it makes of colours is rounded to whole values in between."""
    augment = replace(PLAIN, crop="resized", brightness=0.4, hue=0.1)
    (whole, _), (floats, _) = (
        next(iter(Loader(config(original, augment=augment, output=output), 24, seed=SEED)))
        for output in ("uint8", "float32")
    )
    expected = (whole.permute(0, 2, 3, 1).double() / 255 - MEAN) / STD
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert (floats.permute(0, 2, 3, 1) - expected).abs().max() <= 1e-5


def test_raw_squares_give_the_same_resized_crops(shards: Path, tmp_path: Path) -> None:
    options = ShardOptions(source=shards.parent / "source", out=str(tmp_path), size=72, workers=1, shard_samples=8)
    assert shard(replace(options, store="raw")) == 0
    for split, augment in ("train", replace(PLAIN, crop="resized", contrast=0.5)), ("val", PLAIN):
        jpeg, raw = (Loader(config(root, augment=augment), 9, split=split, resize=70) for root in (shards, tmp_path))
        raw.load_state_dict(jpeg.state_dict())
        assert equal(raw, list(jpeg))


def test_the_packages_names_are_these() -> None:
    """That they need none of the trainer's libraries is seen in tests/test_library_example.py."""
    assert pipeline.__all__ == ["AugmentConfig", "DataConfig", "InputError", "Loader"]
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        pipeline.Trainer  # noqa: B018
