import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layouts import (
    LAYOUTS,
    WORDS,
    Pictures,
    archives,
    archives_2010,
    class_folders,
    class_tars,
    flat,
    flat_val_and_kit,
    image_folder,
    kaggle,
    kaggle_cls_loc,
    kit_archive,
    mapping,
    solution,
    some_pictures,
    tar_of,
    write_files,
)
from pipeline.command import InputError
from pipeline.manifest import PictureClass
from pipeline.source.ilsvrc import Source, find_pictures
from pipeline.source.listing import File, Listing, make_listing, read_picture
from pipeline.source.subset import hold_out, subset


def rows(pictures: Pictures) -> dict[str, list[tuple[int, str, int]]]:
    """What any layout must give: per split, sorted, the label, the name and the bytes of every picture."""
    labels = {id: label for label, id in enumerate(sorted(WORDS))} | {"": -1}
    return {
        split: sorted((labels[id], name, len(data)) for id, named in classes.items() for name, data in named.items())
        for split, classes in pictures.items()
    }


def found_rows(source: Source) -> dict[str, list[tuple[int, str, int]]]:
    return {
        split: [(each.label, each.name, each.bytes) for each in listing] for split, listing in source.splits.items()
    }


def names(listing: Iterable) -> list[str]:
    return [each.name for each in listing]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return find_pictures(class_folders(tmp_path_factory.mktemp("reference"), some_pictures()))


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_pictures_are_the_same_source_in_any_layout(
    tmp_path: Path, reference: Source, write: Callable[[Path, Pictures], Path]
) -> None:
    pictures = some_pictures()
    source = find_pictures(write(tmp_path, pictures))
    assert [(each.index, each.id, each.words) for each in source.classes] == [
        (index, id, WORDS[id]) for index, id in enumerate(sorted(WORDS))
    ]
    assert found_rows(source) == rows(pictures)
    assert list(source.splits) == list(source.descriptions) == ["train", "val", "test"]
    assert source.sha256() == reference.sha256()
    for split, listing in source.splits.items():
        data = flat(pictures[split])
        assert {each.name: read_picture(source.root, each) for each in listing} == data


def test_what_was_found_is_told(tmp_path: Path) -> None:
    assert find_pictures(archives(tmp_path / "a", some_pictures())).descriptions == {
        "train": "archive ILSVRC2012_img_train.tar",
        "val": "archive ILSVRC2012_img_val.tar, labels from ILSVRC2012_devkit_t12.tar.gz",
        "test": "archive ILSVRC2012_img_test_v10102019.tar, no labels",
    }
    assert find_pictures(flat_val_and_kit(tmp_path / "b", some_pictures())).descriptions == {
        "train": "4 class folders in train/",
        "val": "flat folder val/, labels from ILSVRC2012_devkit_t12",
        "test": "flat folder test/, no labels",
    }


def test_the_archives_of_2010_label_their_test_set(tmp_path: Path) -> None:
    pictures = some_pictures("2010")
    pictures["test"] = {id: {} for id in WORDS}
    for number, id in enumerate(("n02012849", "n01440764", "n03126707", "n02007558"), start=1):
        pictures["test"][id] = {f"ILSVRC2010_test_{number:08d}.JPEG": b"t" * number}
    source = find_pictures(archives_2010(tmp_path / "a", pictures))
    assert found_rows(source) == rows(pictures)
    assert source.descriptions["test"].endswith("labels from ILSVRC2010_test_ground_truth.txt")
    assert source.sha256() == find_pictures(class_folders(tmp_path / "b", pictures)).sha256()


def test_an_image_folder_is_train(tmp_path: Path, reference: Source) -> None:
    source = find_pictures(image_folder(tmp_path, some_pictures()))
    assert found_rows(source) == {"train": rows(some_pictures())["train"]}
    assert [each.words for each in source.classes] == sorted(WORDS)  # no words there: the ids
    write_files(tmp_path, {"synset_words.txt": mapping()})
    alone = replace(reference, splits={"train": reference.splits["train"]})
    assert find_pictures(tmp_path).sha256() == alone.sha256() != source.sha256()


def test_pictures_may_lie_deep_in_a_class_and_behind_links_but_not_in_circles(tmp_path: Path) -> None:
    write_files(tmp_path / "disk", {"d.JPEG": b"ddd"})
    write_files(tmp_path / "s/train/a", {"images/0.JPEG": b"0", "images/more/x.JPEG": b"11", "b.JPEG": b"2"})
    (tmp_path / "s/train/a/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "s/train/a/images/circle").symlink_to(tmp_path / "s/train/a")
    (tmp_path / "s/train/a/images/self").symlink_to(tmp_path / "s/train/a/images/self")
    source = find_pictures(tmp_path / "s")
    assert names(source.splits["train"]) == [
        "b.JPEG",
        "images/0.JPEG",
        "images/more/x.JPEG",
        "images/self",  # leads nowhere: listed, so that it is missed
        "linked/d.JPEG",
    ]
    whole = [each for each in source.splits["train"] if each.bytes]
    assert b"".join(read_picture(source.root, each) for each in whole) == b"2011ddd"


def test_names_are_bytes(tmp_path: Path) -> None:
    strange = {"pêche \udcff.JPEG": b"1", " .x.JPEG": b"22", "a\nb.JPEG": b"333"}
    write_files(tmp_path / "a/train/n1 \udcfe", strange)
    write_files(tmp_path / "b", {"ILSVRC2012_img_train.tar": tar_of(class_tars({"n1 \udcfe": strange}))})
    folders, packed = find_pictures(tmp_path / "a"), find_pictures(tmp_path / "b")
    assert sorted(names(folders.splits["train"])) == sorted(strange)
    assert found_rows(folders) == found_rows(packed)
    assert folders.sha256() == packed.sha256()


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    hidden = {"a/.DS_Store": b"x", ".hidden/b.JPEG": b"x", "__MACOSX/c.JPEG": b"x", "a/__MACOSX/d.JPEG": b"x"}
    write_files(tmp_path / "train", {"a/0.JPEG": b"x", **hidden})
    source = find_pictures(tmp_path)
    assert [each.id for each in source.classes] == ["a"]
    assert names(source.splits["train"]) == ["0.JPEG"]
    inner = tar_of({"./a/0.JPEG": b"x", "a/._0.JPEG": b"x", "__MACOSX/1.JPEG": b"x", "./": b""})
    write_files(tmp_path / "t", {"ILSVRC2012_img_train.tar": tar_of({"./a.tar": inner, "._a.tar": b"x"})})
    assert find_pictures(tmp_path / "t").sha256() == source.sha256()


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    again = tar_of({"x.JPEG": b"old"})[:1024] + tar_of({"./x.JPEG": b"newer"})
    write_files(tmp_path, {"train/a.tar": again})
    source = find_pictures(tmp_path)
    assert [read_picture(source.root, each) for each in source.splits["train"]] == [b"newer"]


def test_the_digest_depends_on_all_that_makes_the_shards(reference: Source) -> None:
    def changed(**fields: object) -> str:
        return replace(reference, **fields).sha256()

    train = reference.splits["train"]
    other = {
        "words": changed(classes=(replace(reference.classes[0], words="x"), *reference.classes[1:])),
        "id": changed(classes=(replace(reference.classes[0], id="x"), *reference.classes[1:])),
        "order": changed(splits={**reference.splits, "train": train.take(np.arange(len(train))[::-1])}),
        "fewer": changed(splits={**reference.splits, "train": train.take(np.arange(len(train) - 1))}),
        "split": changed(splits={"train": reference.splits["val"], "val": train}),
        "label": changed(splits={**reference.splits, "train": replace(train, labels=train.labels[::-1])}),
        "name": changed(
            splits={**reference.splits, "train": replace(train, names=memoryview(b"x" * len(train.names)))}
        ),
        "bytes": changed(splits={**reference.splits, "train": replace(train, bytes=train.bytes + 1)}),
    }
    assert len({*other.values(), reference.sha256()}) == len(other) + 1
    assert changed(root=Path("elsewhere"), descriptions={}) == reference.sha256()


def test_a_class_may_be_empty_in_val_but_not_in_train(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/a/0.JPEG": b"", "train/b/0.JPEG": b"", "val/a/0.JPEG": b""})
    (tmp_path / "val/b").mkdir()
    assert find_pictures(tmp_path).splits["val"].labels.tolist() == [0]
    (tmp_path / "train/b/0.JPEG").unlink()
    with pytest.raises(InputError, match=r"1 classes without pictures.*: b$"):
        find_pictures(tmp_path)


X = {"train/a/x.JPEG": b"x"}
VAL = some_pictures()["val"]
FLAT_VAL = {f"val/{name}": data for name, data in flat(VAL).items()}
TRAIN = {f"train/{id}/x.JPEG": b"x" for id in WORDS}
NO_SIGNS: dict[str, bytes] = {}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (NO_SIGNS, "holds nothing, expected train/<class>"),
        ({"notes/a.txt": b"", "b.txt": b""}, r"holds notes/, b\.txt, expected"),
        ({"ILSVRC2012_devkit_t12/x.JPEG": b""}, "holds ILSVRC2012_devkit_t12/, expected"),
        ({"val/a/x.JPEG": b""}, "has no train/ beside val"),
        ({"ILSVRC2012_img_val.tar": b""}, r"has no train/ beside ILSVRC2012_img_val\.tar"),
        ({"train/.x/x.JPEG": b""}, "train holds no classes"),
        ({"train/x.JPEG": b""}, "train holds no classes, but 1 pictures without"),
        ({"a/x.JPEG": b"", "b/notes.txt": b""}, "1 classes without pictures.*: b$"),
        ({"train/a\n\udcff/.x": b""}, r"1 classes without pictures.*: a\\n\\udcff$"),
        ({**X, "val/.x": b""}, "val holds no pictures"),
        ({**X, "train/b/x.JPEG": b"", "val/a/x.JPEG": b"", "val/c/x": b""}, "only in train: b; only in val: c$"),
        ({**X, "test/b/x.JPEG": b""}, "only in train: a; only in test: b$"),
        # Twice, or half done.
        ({**X, "ILSVRC2012_img_train.tar": b""}, r"has train 2 times \(train/, ILSVRC2012_img_train\.tar\)"),
        ({"ILSVRC2010_images_train.tar": b"", "ILSVRC2012_img_train.tar": b""}, "has train 2 times"),
        ({**X, "ILSVRC/Data/CLS-LOC/train/a/x.JPEG": b""}, r"pictures in \./ \(train\) and ILSVRC/Data/CLS-LOC/"),
        ({**X, "b/x.JPEG": b"", "docs/x.txt": b""}, r"has train and, beside, folders of pictures \(b\)"),
        ({**X, "train/a.tar": b""}, r"both as folder and as \.tar \(a\)"),
        ({**X, "val/a/x.JPEG": b"", "val/y.JPEG": b""}, r"holds 1 classes \(a\) and, outside them, 1 pictures"),
        # Labels.
        (
            {**X, "val/y.JPEG": b""},
            r"val holds 1 pictures without classes.*expected LOC_val_solution\.csv, ILSVRC2012_d",
        ),
        ({**X, **FLAT_VAL, "LOC_val_solution.csv": solution(VAL)}, "only in val: n01440764, n02007558"),
        (
            {**TRAIN, "val/y.JPEG": b"", "LOC_val_solution.csv": solution(VAL)},
            "no label for y; no picture for ILSVRC2012",
        ),
        ({**TRAIN, **dict([*FLAT_VAL.items()][1:]), **kit_archive(some_pictures())}, "6 pictures and .* labels 7"),
        # Archives.
        ({"ILSVRC2012_img_train.tar": b"text" * 200}, r"img_train\.tar is no tar"),
        ({"ILSVRC2012_img_train.tar": b"\x1f\x8b" * 400}, "is compressed"),
        ({"ILSVRC2012_img_train.tar": tar_of({})}, "holds no classes"),
        ({"ILSVRC2012_img_train.tar": tar_of({"a.tar": tar_of({})})}, "1 classes without pictures.*: a$"),
        ({"ILSVRC2012_img_train.tar": tar_of({"a.tar": b"no"})}, r"a\.tar in .*img_train\.tar is no tar"),
        ({"ILSVRC2012_img_train.tar": tar_of({"a.tar": b"", "b.JPEG": b""})}, "outside them, 1 pictures"),
        ({"ILSVRC2012_img_train.tar": tar_of({"a/x.JPEG": b""})}, r"holds folders \(a/x\.JPEG\), expected"),
        ({"train/a.tar": tar_of({"x.JPEG": b"x" * 900})[:1000]}, r"a\.tar ends within x\.JPEG"),
    ],
)
def test_a_wrong_source_is_told_in_one_line(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        find_pictures(write_files(tmp_path, files))
    assert "expected" in str(raised.value) and str(raised.value).isprintable()


def test_two_labels_that_disagree_are_an_error(tmp_path: Path) -> None:
    kaggle(tmp_path, some_pictures())
    write_files(tmp_path, kit_archive(some_pictures()))
    assert find_pictures(tmp_path).descriptions["val"].endswith("LOC_val_solution.csv and ILSVRC2012_devkit_t12.tar.gz")
    table = (tmp_path / "LOC_val_solution.csv").read_bytes().replace(b"0001,n03126707", b"0001,n02012849")
    write_files(tmp_path, {"LOC_val_solution.csv": table})
    with pytest.raises(
        InputError, match=r"ILSVRC2012_val_00000001 is n02012849 in .* and n03126707 in .*expected them"
    ):
        find_pictures(tmp_path)


def test_kaggles_lists_are_found_above_the_splits_in_either_place(tmp_path: Path, reference: Source) -> None:
    source = kaggle_cls_loc(tmp_path, some_pictures())
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (tmp_path / name).rename(tmp_path / "ILSVRC" / name)
    assert find_pictures(source).sha256() == reference.sha256()


def test_a_missing_source_and_a_strange_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not there"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"my\.tar is a file that is none of ImageNet's archives"):
        find_pictures(write_files(tmp_path, {"my.tar": tar_of({})}) / "my.tar")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"train/a/x.JPEG": b"", "train/secret/x.JPEG": b""})
    scandir = os.scandir

    def guarded(path: str | Path) -> object:  # rights do not bind root, as whom tests may run
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InputError, match=r"train/secret cannot be read \(Permission denied\), expected"):
        find_pictures(tmp_path)


def made(train: list[int], val: tuple[int, ...] = (), test: int = 0) -> Source:
    """A source of so many pictures in each class, and of so many unlabelled ones."""
    splits = {"train": made_split(train)}
    if val:
        splits["val"] = made_split(val)
    if test:
        splits["test"] = make_listing("test", [File(b"%d" % number, 1, -1) for number in range(test)], [-1] * test)
    classes = tuple(PictureClass(index=label, id=f"n{label}", words="") for label in range(len(train)))
    return Source(root=Path(), descriptions=dict.fromkeys(splits, "made"), classes=classes, splits=splits)


def made_split(counts: Iterable[int]) -> Listing:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return make_listing("all", [File(b"%04d" % number, number, -1) for number in range(len(labels))], labels)


def test_held_out_pictures_are_a_seeded_share_of_each_class() -> None:
    source = made([10, 5, 1], test=3)
    held = hold_out(source, 0.4, seed=3)
    assert list(held.splits) == list(held.descriptions) == ["train", "val", "test"]
    assert sorted([*held.splits["train"], *held.splits["val"]]) == sorted(source.splits["train"])
    assert held.splits["train"].labels.tolist() == sorted(held.splits["train"].labels.tolist())
    assert np.bincount(held.splits["val"].labels, minlength=3).tolist() == [4, 2, 0]
    assert hold_out(source, 0.4, seed=3).sha256() == held.sha256() != hold_out(source, 0.4, seed=4).sha256()
    # Pinned: these draws decide what shards hold.
    assert names(held.splits["val"]) == ["0005", "0007", "0008", "0009", "0011", "0014"]
    # Every class draws from its own stream: two classes alike in size do not lose the same numbers.
    twins = hold_out(made([20, 20]), 0.5, seed=0).splits["val"]
    lost = [{int(each.name) % 20 for each in twins if each.label == label} for label in range(2)]
    assert lost[0] != lost[1]


def test_a_class_never_loses_all_its_training_pictures() -> None:
    source = made([3, 1])
    assert set(hold_out(source, 0.99, seed=0).splits["train"].labels.tolist()) == {0, 1}
    with pytest.raises(InputError, match="holds out no picture"):
        hold_out(source, 0.1, seed=0)


def test_a_subset_is_so_many_classes_and_at_most_so_many_pictures_of_each() -> None:
    source = made([10, 3, 7], (5, 0, 4), test=100)
    part = subset(source, classes=2, limit=4, seed=1)
    assert [each.id for each in part.classes] == ["n0", "n1"]
    assert {split: np.bincount(listing.labels + 1).tolist() for split, listing in part.splits.items()} == {
        "train": [0, 4, 3],
        "val": [0, 4],
        "test": [8],
    }
    whole = {split: set(listing) for split, listing in source.splits.items()}
    assert all(set(listing) <= whole[split] for split, listing in part.splits.items())
    assert [list(listing.labels) == sorted(listing.labels) for listing in part.splits.values()] == [True] * 3
    assert subset(source, 0, 0, seed=1).sha256() == source.sha256()


def test_subsets_are_drawn_by_seed_and_larger_ones_contain_smaller_ones() -> None:
    source = made([30, 30, 30], (30, 30, 30), test=90)
    drawn = {
        (classes, limit): {split: set(listing) for split, listing in subset(source, classes, limit, 5).splits.items()}
        for classes in (1, 2, 0)
        for limit in (1, 7, 20, 0)
    }
    for classes, limit in drawn:
        for split, pictures in drawn[classes, limit].items():
            assert pictures <= drawn[0, limit][split]
            assert pictures <= drawn[classes, 0][split]
            assert limit != 7 or drawn[classes, 1][split] <= pictures <= drawn[classes, 20][split]
    assert names(subset(made([10, 10]), 0, 3, 1).splits["train"]) == ["0000", "0003", "0004", "0014", "0018", "0019"]
    sevens = subset(source, 0, 7, 5)
    assert sevens.sha256() == subset(source, 0, 7, 5).sha256() != subset(source, 0, 7, 6).sha256()
    # Each class of each split draws for itself.
    places = {
        (split, label): {int(each.name) % 30 for each in sevens.splits[split] if each.label == label}
        for split in ("train", "val")
        for label in range(3)
    }
    assert len({frozenset(each) for each in places.values()}) == 6


def test_a_subset_that_cannot_be_is_told() -> None:
    source = made([2, 2], (0, 2))
    with pytest.raises(InputError, match="has 2 classes, expected 3"):
        subset(source, 3, 0, seed=0)
    with pytest.raises(InputError, match="the first 1 classes have no pictures in val"):
        subset(source, 1, 0, seed=0)
