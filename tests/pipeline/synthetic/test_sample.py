"""The generated picture tree: the same bytes from the same options, ten learnable classes, nothing half-made."""

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import sample
from pipeline.command import InputError
from pipeline.sample import SampleConfig, already_made, make
from pipeline.synthetic.scene import picture
from pipeline.synthetic.textures import TEXTURES, RandomDraws, Texture, plane, stripes

CLASSES = len(TEXTURES)


def small(folder: Path) -> SampleConfig:
    return SampleConfig(dir=folder, train_pictures=3, val_pictures=2, side=(64, 80), workers=1)


def made(config: SampleConfig) -> dict[str, bytes]:
    """Make the tree; its files by their path in it."""
    make(config)
    return contents(config.dir)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def jpegs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".JPEG")}


# The same bytes


def test_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    config = small(tmp_path / "one")
    assert made(config) == made(replace(config, dir=tmp_path / "two", workers=2))


def test_every_picture_is_different_in_a_tree_and_from_another_seeds(tmp_path: Path) -> None:
    config = small(tmp_path / "one")
    pictures = [jpegs(made(tree)).values() for tree in (config, replace(config, dir=tmp_path / "two", seed=1))]
    assert len({hashlib.sha256(data).digest() for tree in pictures for data in tree}) == 2 * config.pictures


def test_larger_tree_holds_the_smaller_ones_pictures(tmp_path: Path) -> None:
    config = small(tmp_path / "small")
    larger = replace(config, dir=tmp_path / "large", train_pictures=27, val_pictures=3)  # more than one task a class
    assert jpegs(made(config)).items() <= jpegs(made(larger)).items()


# The tree


def test_tree_has_the_shape_of_imagenets(tmp_path: Path) -> None:
    config = small(tmp_path / "tree")
    files = made(config)
    folders = [str(Path(name).parent) for name in jpegs(files)]
    wnids = [line.split(" ", 1)[0] for line in files["LOC_synset_mapping.txt"].decode().splitlines()]
    words = [line.split(" ", 1)[1] for line in files["LOC_synset_mapping.txt"].decode().splitlines()]
    expected = {f"{split}/{wnid}": count for split, count in (("train", 3), ("val", 2)) for wnid in wnids}
    assert {folder: folders.count(folder) for folder in folders} == expected
    assert len(set(wnids)) == len(set(words)) == 10 and wnids == sorted(wnids)
    assert len({Path(name).name for name in jpegs(files)}) == config.pictures


def test_tree_without_validation_pictures_has_no_val_folder(tmp_path: Path) -> None:
    config = replace(small(tmp_path / "tree"), val_pictures=0)
    assert {name.split("/")[0] for name in jpegs(made(config))} == {"train"}
    assert not (config.dir / "val").exists()


def test_pictures_are_rgb_jpeg_of_many_sizes_within_the_sides(tmp_path: Path) -> None:
    sizes = set()
    for data in jpegs(made(small(tmp_path / "tree"))).values():
        with Image.open(io.BytesIO(data)) as opened:
            assert (opened.format, opened.mode) == ("JPEG", "RGB")
            sizes.add(opened.size)
    widths, heights = zip(*sizes, strict=True)
    assert min(widths + heights) >= 64 and max(widths + heights) <= 80
    assert len(sizes) > 25 and len(set(widths)) > 10 and len(set(heights)) > 10


def test_sides_above_the_tables_still_draw() -> None:
    assert {picture(0, 0, label, 0, (700, 700)).shape for label in range(CLASSES)} == {(700, 700, 3)}


# The classes


def log_spectrum(grey: NDArray[np.floating]) -> NDArray[np.floating]:
    """Log power at the lower frequencies less its mean, (41, 41).

    Frequency 0 lies in the middle of an odd side, so that flipping axis 1 mirrors it; the mean tells only contrast.
    """
    hann = np.hanning(grey.shape[0])[:, None] * np.hanning(grey.shape[1])
    power = np.abs(np.fft.fftshift(np.fft.fft2((grey - grey.mean()) * hann))) ** 2
    middle = grey.shape[0] // 2
    log_power = np.log(power[middle - 20 : middle + 21, middle - 20 : middle + 21] + 1e-2)
    return log_power - log_power.mean()


@cache
def spectra(count: int, split: int) -> NDArray[np.floating]:
    """Of the first `count` pictures of every class, (classes, count, 41, 41)."""
    return np.array(
        [[log_spectrum(picture(0, split, c, i, (96, 96)).mean(2) / 255) for i in range(count)] for c in range(CLASSES)]
    )


def nearest(points: NDArray[np.floating], centres: NDArray[np.floating]) -> list[int]:
    """For each point the index of the nearest centre."""
    flat, targets = points.reshape(len(points), 1, -1), centres.reshape(1, len(centres), -1)
    return np.linalg.norm(flat - targets, axis=2).argmin(1).tolist()


def mirrored(means: NDArray[np.floating]) -> NDArray[np.floating]:
    return means[:, :, ::-1]


def test_each_class_mirrored_is_most_like_itself() -> None:
    means = spectra(80, split=0).mean(1)
    assert nearest(mirrored(means), means) == list(range(CLASSES))


def test_mirror_test_would_catch_opposite_slants() -> None:
    def one_way(degrees: float) -> NDArray[np.floating]:
        fields = [stripes(plane(96, 96), RandomDraws(0, stream=99, index=i), degrees) for i in range(30)]
        return np.mean([log_spectrum(field) for field in fields], axis=0)

    means = np.array([one_way(degrees) for degrees in (0, 45, 90, 135)])
    assert nearest(mirrored(means), means) == [0, 3, 2, 1]


def linear_error(train: NDArray[np.floating], val: NDArray[np.floating]) -> float:
    """Least validation error of ridge regression over several penalties; (classes, pictures, features) each."""
    x, y = train.reshape(-1, train.shape[2]), np.repeat(np.eye(CLASSES), train.shape[1], axis=0)
    mean = x.mean(0)
    gram = (x - mean) @ (x - mean).T
    errors = []
    for penalty in 10.0 ** np.arange(-1, 5):
        scores = (val - mean) @ (x - mean).T @ np.linalg.solve(gram + penalty * np.eye(len(x)), y - y.mean(0))
        errors.append(np.mean(scores.argmax(2) != np.arange(CLASSES)[:, None]))
    return float(min(errors))


def pixels(count: int, split: int) -> NDArray[np.floating]:
    """Of every class's first pictures, 16 x 16 RGB, (classes, count, 768)."""
    small = [[picture(0, split, c, i, (96, 96)).reshape(16, 6, 16, 6, 3) for i in range(count)] for c in range(CLASSES)]
    return np.mean(small, axis=(3, 5)).reshape(CLASSES, count, -1) / 255


def spectral_error() -> float:
    """Validation error of the nearest class mean of the spectra."""
    val = spectra(20, split=1)
    found = nearest(val.reshape(-1, 41, 41), spectra(80, split=0).mean(1))
    return float(np.mean(found != np.repeat(np.arange(CLASSES), 20)))


def test_pixels_hide_the_class_and_spectra_tell_it() -> None:
    assert linear_error(pixels(40, 0), pixels(20, 1)) > 0.6  # chance is 0.9
    assert spectral_error() < 0.5


@pytest.mark.parametrize("texture", TEXTURES, ids=lambda texture: texture.words)
def test_field_stays_within_paper_and_ink(texture: Texture) -> None:
    fields = np.array([texture.draw(plane(64, 90), RandomDraws(3, stream=0, index=i)) for i in range(20)])
    assert fields.dtype == np.float64 and fields.min() >= -1e-15 and fields.max() <= 1 + 1e-15  # a few roundings
    assert fields.std(axis=(1, 2)).min() > 0.1  # never a plain surface


# Whole or not at all


def test_same_options_find_their_tree_and_other_options_are_refused(tmp_path: Path) -> None:
    config = small(tmp_path / "tree")
    assert not already_made(config)
    made(config)
    assert already_made(replace(config, workers=7))
    for other in (replace(config, seed=1), replace(config, val_pictures=1), replace(config, side=(64, 81))):
        with pytest.raises(InputError, match="other options"):
            already_made(other)


def test_tree_that_lost_a_picture_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path / "tree")
    made(config)
    next(config.dir.glob("val/*/*.JPEG")).unlink()
    with pytest.raises(InputError, match="holds 49 pictures, expected 50"):
        already_made(config)


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(small(tmp_path / "tree"))
    assert list(tmp_path.iterdir()) == []


# The command


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "pipeline.sample", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, timeout=60)


def test_command_makes_a_tree_in_an_empty_folder_and_then_leaves_it_alone(tmp_path: Path) -> None:
    options = ("--train-pictures", 1, "--val-pictures", 1, "--side", 64, 64, "--workers", 1)
    first = command(tmp_path, *options)
    files = contents(tmp_path)
    second = command(tmp_path, *options)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "20 pictures in 10 classes" in first.stdout and "already there" in second.stdout
    assert len(jpegs(files)) == 20 and contents(tmp_path) == files


def test_command_leaves_a_strangers_folder_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refused = command(tmp_path)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_command_refuses_a_file_in_the_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        refused = command(target)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [{"train_pictures": 0}, {"val_pictures": -1}, {"seed": -1}, {"seed": 2**64}, {"workers": 0}]
    + [{"side": side} for side in ((63, 80), (80, 79), (80, 2049))],
    ids=str,
)
def test_values_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    flag = "--" + next(iter(wrong)).replace("_", "-")
    with pytest.raises(InputError, match=f"{flag} .*expected"):
        replace(small(tmp_path), **wrong)
