"""The same pictures in every form that ImageNet comes in: the same shards, byte for byte."""

import tarfile
from pathlib import Path

import pytest

from layouts import LAYOUTS, Pictures, archives_2010, class_tars, image_folder, some_pictures, tar_of, write_files
from paths import REAL_PICTURES
from pictures import encoded, photo, tree_bytes
from pipeline.manifest import load_dataset, load_samples
from pipeline.shard import ShardOptions, shard


def real_files(year: str = "2012") -> Pictures:
    """The miniature's names, with pictures in them."""
    numbers = iter(range(1000))
    pictures: Pictures = {
        split: {
            id: {name: encoded(photo(next(numbers)), quality=90) for name in sorted(named)}
            for id, named in sorted(classes.items())
        }
        for split, classes in some_pictures(year).items()
    }
    return pictures


def with_a_reject() -> Pictures:
    """The same, but for a file of train that is no picture."""
    pictures = real_files()
    some_class, named = next(iter(pictures["train"].items()))
    return {**pictures, "train": {**pictures["train"], some_class: {**named, next(iter(named)): b"no picture"}}}


def sharded(source: Path, out: Path, size: int = 32) -> dict[str, bytes]:
    options = ShardOptions(source=source, out=str(out), size=size, workers=1, shard_samples=3)
    assert shard(options) == 0
    return tree_bytes(out)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of the pictures in class folders."""
    root = tmp_path_factory.mktemp("expected")
    files = sharded(LAYOUTS["class_folders"](root / "source", with_a_reject()), root / "out")
    assert files["rejects.jsonl"].count(b"\n") == 1
    return files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_data_set(layout: str, expected: dict[str, bytes], tmp_path: Path) -> None:
    source = LAYOUTS[layout](tmp_path / "source", with_a_reject())
    assert sharded(source, tmp_path / "out") == expected


def test_the_archives_of_2010_give_a_labelled_test_split(tmp_path: Path) -> None:
    pictures = real_files("2010")
    names = list(pictures["test"][""])
    pictures["test"] = {
        id: {name: encoded(photo(900 + place))}
        for place, (id, name) in enumerate(zip(reversed(sorted(pictures["train"])), names, strict=False))
    }
    out = tmp_path / "out"
    sharded(archives_2010(tmp_path / "source", pictures), out)
    dataset = load_dataset(out)
    assert {name: split.samples for name, split in dataset.splits.items()} == {
        split: sum(len(named) for named in classes.values()) for split, classes in pictures.items()
    }
    assert sorted(load_samples(out, dataset, "test")["label"].tolist()) == [0, 1, 2, 3]


def test_a_plain_image_folder_is_a_training_split(tmp_path: Path) -> None:
    pictures = real_files()
    files = sharded(image_folder(tmp_path / "source", pictures), tmp_path / "out")
    assert not any(name.startswith(("val/", "test/")) for name in files)
    assert load_dataset(tmp_path / "out").splits["train"].samples == sum(map(len, pictures["train"].values()))


def test_a_test_split_without_labels_has_no_cls(expected: dict[str, bytes], tmp_path: Path) -> None:
    out = write_files(tmp_path, expected)
    dataset = load_dataset(out)
    assert load_samples(out, dataset, "test")["label"].tolist() == [-1] * 5
    for path in sorted(out.glob("test/*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert names and all(name.endswith(".jpg") for name in names)
        lines = path.with_suffix(".idx").read_text().splitlines()
        assert lines[0] == f"v1.2 {len(names)}" and all(line.startswith("jpg ") for line in lines[1:])


def test_words_are_kept_and_subsets_are_nested(tmp_path: Path) -> None:
    source = LAYOUTS["class_folders"](tmp_path / "source", real_files())
    options = ShardOptions(source=source, out=str(tmp_path / "out"), size=32, workers=1, classes=2, limit=3)
    assert shard(options) == 0
    dataset = load_dataset(tmp_path / "out")
    assert [(each.index, each.words) for each in dataset.classes] == [(0, "tench, Tinca tinca"), (1, "flamingo")]
    assert dataset.splits["train"].samples == 6


@pytest.mark.skipif(
    not REAL_PICTURES.exists(), reason="the sample of real ImageNet pictures is not beside the repository"
)
@pytest.mark.parametrize("size", [pytest.param(256, marks=pytest.mark.slow), 0])
def test_real_pictures_in_folders_and_in_a_tar_of_tars_give_the_same_shards(tmp_path: Path, size: int) -> None:
    with tarfile.open(REAL_PICTURES) as tar:
        tar.extractall(tmp_path / "folders", filter="data")
    classes = {
        folder.name: {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (tmp_path / "folders/train").iterdir()
    }
    assert sum(map(len, classes.values())) == 200
    archive = {"ILSVRC2012_img_train.tar": tar_of(class_tars(classes))}
    assert sharded(tmp_path / "folders", tmp_path / "from-folders", size) == sharded(
        write_files(tmp_path / "archive", archive) / "ILSVRC2012_img_train.tar", tmp_path / "from-archive", size
    )
    assert load_dataset(tmp_path / "from-archive").rejected == 0
