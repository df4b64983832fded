"""Each picture as the network's first layer sees it, against numpy and Pillow; and the order in which they come.

Tolerances on pixels of 0..255:
- EXACT 0: Pillow, simplejpeg and DALI all decode with libjpeg-turbo's accurate DCT and smooth upsampling, cropping and
  mirroring copy, and the mean and shift are added in float32 in the same order.
- FLOAT32 2e-4: the loader takes off `mean - shift` as one number, in another order of rounding.
- FLOAT16 0.13: half a unit in the last place of a float16 below 256 is 0.0625, for the picture and for the shift.
- RESIZED 2.5 at most and 0.4 on average: pictures of original size are resized by DALI in floating point and by Pillow
  in fixed point with rounded weights, and each rounds to whole pixels between its two passes.
"""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.step import StepInputs, normalise_pictures
from paths import REAL_PICTURES
from pictures import write_tree
from pipeline.command import InputError
from pipeline.load.augment import AugmentConfig
from pipeline.load.batch_loader import Batch, BatchLoader, central_crop
from pipeline.load.config import DataConfig
from pipeline.load.order import epoch_order
from pipeline.manifest import load_mean
from pipeline.randomness import AUGMENT, random_words, uniform
from pipeline.shard import ShardOptions, shard

EXACT, FLOAT32, FLOAT16, RESIZED = 0.0, 2e-4, 0.13, 2.5
SEED = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 training and 9 validation pictures of three classes, upright and wide, larger than 256."""
    root = tmp_path_factory.mktemp("source")
    return write_tree(root, {"train": {"a": 10, "b": 10, "c": 10}, "val": {"a": 3, "b": 3, "c": 3}}, 400, 300)


@pytest.fixture(scope="module")
def square(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("square") / "shards"
    assert shard(ShardOptions(source=source, out=str(out), workers=1, shard_samples=8)) == 0
    return out


@pytest.fixture(scope="module")
def original(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("original") / "shards"
    assert shard(ShardOptions(source=source, out=str(out), workers=1, shard_samples=8, size=0)) == 0
    return out


def jpegs_by_reading_tars(root: Path, split: str) -> list[tuple[bytes, int]]:
    """(JPEG, label) in the order of the tars, by tarfile alone."""
    found = []
    for path in sorted((root / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in sorted(name for name in files if name.endswith(".jpg")):
            found.append((files[name], int(files[name.replace(".jpg", ".cls")])))
    return found


def square_256(jpeg: bytes) -> np.ndarray:
    """The central 256 x 256 of a picture with its shorter side at 256, by Pillow."""
    picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
    width, height = picture.size
    if min(width, height) != 256:
        scale = 256 / min(width, height)
        size = (round(width * scale), round(height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (picture.width - 256) // 2, (picture.height - 256) // 2
    return np.asarray(picture.crop((left, top, left + 256, top + 256)), np.float32)


def reference_input(root: Path, position: int, augment: AugmentConfig) -> tuple[np.ndarray, int]:
    """What the first layer should see at a training position, (224, 224, 3), and its label: numpy and Pillow alone."""
    jpegs = jpegs_by_reading_tars(root, "train")
    colour = json.loads((root / "dataset.json").read_text())["colour"]
    sample = int(epoch_order(SEED, position // len(jpegs), len(jpegs))[position % len(jpegs)])
    words = random_words(SEED, AUGMENT, position, 1, 8)[0]
    top, left = (int(uniform(word) * 33) for word in words[:2])
    picture = square_256(jpegs[sample][0])[top : top + 224, left : left + 224]
    if augment.mirror and int(words[2]) >> 63:
        picture = picture[:, ::-1]
    mean = np.load(root / "mean.npy")[16:240, 16:240]
    shift, scale = np.zeros(3), 1.0
    if augment.colour != "off":
        u = uniform(words[3:7])
        radius, angle = np.sqrt(-2 * np.log(1 - u[0::2])), 2 * np.pi * u[1::2]
        alpha = 0.1 * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:3]
        length = np.array(colour["eigenvalues"]) / 255
        if augment.colour == "deviations":
            length, scale = np.array(colour["standard_deviations"]), 1 / 1.1
        shift = np.array(colour["eigenvectors"]) @ (alpha * length)
    return (picture + shift.astype(np.float32) - mean) * np.float32(scale), jpegs[sample][1]


def seen_by_the_network(batch: Batch, root: Path, config: DataConfig) -> np.ndarray:
    """(B, 224, 224, 3) as the step prepares it."""
    mean = torch.from_numpy(central_crop(load_mean(root, BatchLoader(config).dataset), config.crop))
    return normalise_pictures(StepInputs(*batch), mean, 1.0).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("colour", ["eigenvalues", "deviations", "off"])
@pytest.mark.parametrize(("output", "tolerance"), [("uint8", EXACT), ("float32", FLOAT32), ("float16", FLOAT16)])
def test_training_pictures_equal_the_reference(square: Path, output, tolerance: float, colour) -> None:
    config = DataConfig(shards=square, output=output, augment=AugmentConfig(colour=colour))
    batch = next(BatchLoader(config, seed=SEED).train(12, first=25))  # across the end of the first epoch of 30
    seen = seen_by_the_network(batch, square, config)
    for i, position in enumerate(range(25, 37)):
        expected, label = reference_input(square, position, config.augment)
        assert int(batch.positions[i]) == position and int(batch.labels[i]) == label
        np.testing.assert_allclose(seen[i], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("output", ["uint8", "float32"])
def test_training_pictures_of_original_size_are_near_the_reference(original: Path, output) -> None:
    config = DataConfig(shards=original, output=output)
    batch = next(BatchLoader(config, seed=SEED).train(12, first=25))
    seen = seen_by_the_network(batch, original, config)
    for i, position in enumerate(range(25, 37)):
        expected, label = reference_input(original, position, config.augment)
        assert int(batch.labels[i]) == label
        error = np.abs(seen[i] - expected)
        assert error.max() <= RESIZED and error.mean() <= 0.4


@pytest.mark.parametrize("shards", ["square", "original"])
def test_fixed_crops_are_those_of_validation(shards: str, request: pytest.FixtureRequest) -> None:
    augment = AugmentConfig(crop="centre", mirror=False, colour="off")
    loader = BatchLoader(DataConfig(shards=request.getfixturevalue(shards), augment=augment), seed=SEED)
    count = loader.dataset.splits["train"].samples
    trained = next(loader.train(count)).pictures
    (in_order,) = (batch.pictures for batch in loader.pictures("train", range(count), count))
    assert torch.equal(trained, in_order[epoch_order(SEED, 0, count).copy()])


@pytest.mark.parametrize(("output", "tolerance"), [("uint8", EXACT), ("float32", FLOAT32), ("float16", FLOAT16)])
def test_validation_is_the_centre_crop_of_every_picture_once(square: Path, output, tolerance: float) -> None:
    config = DataConfig(shards=square, output=output)
    batches = list(BatchLoader(config, seed=SEED).validation(4))
    assert [len(batch.labels) for batch in batches] == [4, 4, 1]  # complete and unpadded
    seen = np.concatenate([seen_by_the_network(batch, square, config) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    expected = jpegs_by_reading_tars(square, "val")
    assert labels == [label for _, label in expected]
    mean = np.load(square / "mean.npy")[16:240, 16:240]
    for picture, (jpeg, _) in zip(seen, expected, strict=True):
        np.testing.assert_allclose(picture, square_256(jpeg)[16:240, 16:240] - mean, rtol=0, atol=tolerance)


def test_a_real_picture_equals_the_reference(tmp_path: Path) -> None:
    if not REAL_PICTURES.exists():
        pytest.skip("needs the ImageNet sample beside the repository")
    with tarfile.open(REAL_PICTURES) as tar:
        members = [member for member in tar if member.isfile()][:24]
        tar.extractall(tmp_path / "source", members, filter="data")
    root = tmp_path / "shards"
    assert shard(ShardOptions(source=tmp_path / "source", out=str(root), workers=1)) == 0
    config = DataConfig(shards=root)
    batch = next(BatchLoader(config, seed=SEED).train(24))
    seen = seen_by_the_network(batch, root, config)
    for position in range(24):
        expected, label = reference_input(root, position, config.augment)
        assert int(batch.labels[position]) == label
        np.testing.assert_allclose(seen[position], expected, rtol=0, atol=EXACT)


def take(loader: BatchLoader, batch_size: int, first: int, count: int) -> list[Batch]:
    return list(islice(loader.train(batch_size, first), count))


def counted(batches: list[Batch]) -> list[Tensor]:
    """The columns of all batches together, without the pictures that only fill up."""
    whole = Batch(*(torch.cat(columns) for columns in zip(*batches, strict=True)))
    return [column[whole.weights > 0] for column in whole]


def test_any_number_of_ranks_sees_the_same_global_batches(square: Path) -> None:
    config = DataConfig(shards=square)
    whole = take(BatchLoader(config, seed=SEED), 10, 0, 4)
    for ranks in (2, 3, 4, 11):
        parts = [take(BatchLoader(config, seed=SEED, rank=r, world_size=ranks), 10, 0, 4) for r in range(ranks)]
        for step, batch in enumerate(whole):
            mine = [part[step] for part in parts]
            assert {len(batch.labels) for batch in mine} == {-(-10 // ranks)}  # as even as can be, and all as long
            assert all((batch.weights == 0).sum() <= 1 for batch in mine)
            for found, expected in zip(counted(mine), batch, strict=True):
                assert torch.equal(found, expected)
            assert batch.weights.sum().item() == pytest.approx(1)  # float32


def test_repeated_validation_is_the_same_each_time(square: Path) -> None:
    loader = BatchLoader(DataConfig(shards=square))
    once = list(loader.validation(5))
    repeated = loader.validation(5, repeated=True)
    for _ in range(3):
        for expected, found in zip(once, repeated, strict=False):
            assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    repeated.close()


def test_validation_ranks_partition_every_batch(square: Path) -> None:
    config = DataConfig(shards=square)
    whole = list(BatchLoader(config).validation(5))
    for ranks in (2, 3, 4):
        parts = [list(BatchLoader(config, rank=rank, world_size=ranks).validation(5)) for rank in range(ranks)]
        assert {len(part) for part in parts} == {len(whole)}  # or some would wait for others in vain
        for step, batch in enumerate(whole):
            for found, expected in zip(counted([part[step] for part in parts]), batch, strict=True):
                assert torch.equal(found, expected)
    assert torch.cat([batch.weights for batch in whole]).tolist() == [1] * sum(len(b.labels) for b in whole)


def test_a_resume_is_one_integer(square: Path) -> None:
    config = DataConfig(shards=square)
    whole, resumed = take(BatchLoader(config, seed=SEED), 16, 0, 5), take(BatchLoader(config, seed=SEED), 16, 48, 2)
    for batch, again in zip(whole[3:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))


def test_a_batch_may_exceed_the_data_set_and_drops_nothing(square: Path) -> None:
    batch = next(BatchLoader(DataConfig(shards=square), seed=SEED).train(75))
    assert batch.positions.tolist() == list(range(75))
    labels = batch.labels.tolist()
    assert sorted(labels[:30]) == sorted(labels[30:60]) == [0] * 10 + [1] * 10 + [2] * 10


def test_batches_stay_as_they_are_while_the_loader_goes_on(square: Path) -> None:
    kept = [
        (batch.pictures, batch.pictures.clone()) for batch in take(BatchLoader(DataConfig(shards=square)), 8, 0, 12)
    ]
    assert all(torch.equal(view, copy) for view, copy in kept)


def test_threads_and_prefetch_change_nothing(square: Path) -> None:
    config = DataConfig(shards=square)
    other = replace(config, threads=1, prefetch=4)
    for a, b in zip(take(BatchLoader(config), 8, 0, 3), take(BatchLoader(other), 8, 0, 3), strict=True):
        assert torch.equal(a.pictures, b.pictures)


def test_wrong_calls_say_what_is_expected(square: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crop is 300 pixels, expected at most the 256"):
        BatchLoader(DataConfig(shards=square, crop=300))
    with pytest.raises(InputError, match="is not a folder, expected shards"):
        BatchLoader(DataConfig(shards=tmp_path / "none"))
    with pytest.raises(InputError, match="decoder is gpu, expected cpu or auto"):
        BatchLoader(DataConfig(shards=square, decoder="gpu"))
    with pytest.raises(InputError, match="crop 0, threads 0, prefetch 0"):
        DataConfig(crop=0)


def test_a_shard_cut_short_is_refused(square: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(square, copy)
    tar = copy / "train/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(InputError, match=r"000001\.tar has \d+ bytes, expected \d+"):
        next(BatchLoader(DataConfig(shards=copy)).train(4))


def test_a_damaged_sample_is_replaced_by_the_next_sound_one_label_and_all(square: Path, tmp_path: Path) -> None:
    """Any single flipped bit of its bytes is found; all other positions are as they were."""
    root = tmp_path / "shards"
    shutil.copytree(square, root)
    samples = np.load(root / "train/samples.npy")
    for sample, bit in ((3, 0), (4, 12345), (17, -1)):  # two neighbours, so that one stand-in is the second next
        row = samples[sample]
        path = root / f"train/{row['shard']:06d}.tar"
        data = bytearray(path.read_bytes())
        start, stop = int(row["offset"]), int(row["offset"]) + int(row["size"])
        data[range(start, stop)[bit // 8]] ^= 1 << (bit % 8)
        path.write_bytes(data)
    stand_ins = {3: 5, 4: 5, 17: 18}
    # Without augmentation a sample looks the same wherever it comes.
    config = DataConfig(shards=root, crop=256, threads=1, augment=AugmentConfig(colour="off", mirror=False))
    loader = BatchLoader(config, seed=SEED)
    sound = BatchLoader(replace(config, shards=square), seed=SEED)
    (found,), (expected,) = take(loader, 30, 0, 1), take(sound, 30, 0, 1)
    order = epoch_order(SEED, 0, 30).tolist()
    for place, sample in enumerate(order):
        looked_for = order.index(stand_ins.get(sample, sample))
        assert torch.equal(found.pictures[place], expected.pictures[looked_for])
        assert found.labels[place] == expected.labels[looked_for]
    names = {f"train/{samples[s]['shard']:06d}.tar, byte {samples[s]['offset']}" for s in stand_ins}
    assert set(loader.damaged) == names and not sound.damaged
