from pathlib import Path

import pytest

from pictures import write_tree
from pipeline.command import InputError
from pipeline.ilsvrc import find_pictures, hold_out


def test_classes_and_pictures_come_sorted_with_labels(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": {"n02": 2, "n01": 1}, "val": {"n01": 1, "n02": 1}})
    source = find_pictures(tmp_path)
    assert [(each.index, each.id, each.words) for each in source.classes] == [(0, "n01", "n01"), (1, "n02", "n02")]
    assert [(picture.path, picture.label) for picture in source.splits["train"]] == [
        ("train/n01/00.JPEG", 0),
        ("train/n02/00.JPEG", 1),
        ("train/n02/01.JPEG", 1),
    ]
    assert [picture.path for picture in source.splits["val"]] == ["val/n01/00.JPEG", "val/n02/00.JPEG"]
    assert source.splits["train"][0].bytes == (tmp_path / "train/n01/00.JPEG").stat().st_size


def test_words_come_from_the_synset_mapping(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": {"n01440764": 1, "n9": 1}})
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn2 another\n")
    assert [each.words for each in find_pictures(tmp_path).classes] == ["tench, Tinca tinca", "n9"]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": {"a": 1, ".hidden": 1}})
    (tmp_path / "train/a/.DS_Store").write_bytes(b"x")
    source = find_pictures(tmp_path)
    assert [each.id for each in source.classes] == ["a"]
    assert len(source.splits["train"]) == 1


def test_no_val_folder_is_no_val_split(tmp_path: Path) -> None:
    assert list(find_pictures(write_tree(tmp_path, {"train": {"a": 1}})).splits) == ["train"]


def test_a_class_may_be_empty_in_val_but_not_in_train(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 0}})
    assert [picture.label for picture in find_pictures(tmp_path).splits["val"]] == [0]
    (tmp_path / "train/b/00.JPEG").unlink()
    with pytest.raises(InputError, match=r"without files.*: b$"):
        find_pictures(tmp_path)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "has no folder train/"),
        ({"val": {"a": 1}}, "has no folder train/"),
        ({"train": {}}, "holds no class folders"),
        ({"train": {"a": 1, "b": 1}, "val": {"a": 1, "c": 1}}, "only in train: b; only in val: c"),
        ({"train": {"a": 1}, "val": {"a": 0}}, "val holds no pictures"),
    ],
)
def test_wrong_sources_are_named(tmp_path: Path, splits: dict[str, dict[str, int]], message: str) -> None:
    for split in splits:
        (tmp_path / split).mkdir()
    write_tree(tmp_path, splits)
    with pytest.raises(InputError, match=message) as raised:
        find_pictures(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        find_pictures(tmp_path / "nowhere")


def test_held_out_pictures_are_a_seeded_share_of_each_class(tmp_path: Path) -> None:
    source = find_pictures(write_tree(tmp_path, {"train": {"a": 10, "b": 5, "c": 1}}, width=8, height=8))
    split = hold_out(source, 0.4, seed=3).splits
    assert sorted(split["train"] + split["val"]) == sorted(source.splits["train"])
    assert [sum(picture.label == label for picture in split["val"]) for label in range(3)] == [4, 2, 0]
    assert hold_out(source, 0.4, seed=3).splits == split
    assert hold_out(source, 0.4, seed=4).splits != split
    # Every class draws from its own stream: two classes alike in size do not lose the same numbers.
    twins = find_pictures(write_tree(tmp_path / "twins", {"train": {"a": 20, "b": 20}}, width=8, height=8))
    held = hold_out(twins, 0.5, seed=0).splits["val"]
    names = [{Path(picture.path).name for picture in held if picture.label == label} for label in range(2)]
    assert names[0] != names[1]


def test_a_class_never_loses_all_its_training_pictures(tmp_path: Path) -> None:
    source = find_pictures(write_tree(tmp_path, {"train": {"a": 3, "b": 1}}, width=8, height=8))
    assert {picture.label for picture in hold_out(source, 0.99, seed=0).splits["train"]} == {0, 1}
    with pytest.raises(InputError, match="holds out no picture"):
        hold_out(source, 0.1, seed=0)
