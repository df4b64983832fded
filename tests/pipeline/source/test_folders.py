import os
from collections.abc import Callable
from pathlib import Path

import pytest

from layouts import archives, image_folder, kaggle, some_pictures, tar_of, write_files
from pictures import encoded, photo
from pipeline.command import InputError
from pipeline.shard import shard
from pipeline.source.ilsvrc import Source, find_pictures
from pipeline.source.listing import read_picture
from sharding import options

SYSTEM_FOLDERS = [
    *("@eaDir", "lost+found", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "~snapshot", "@tmp"),
    *("$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "RECYCLER", "__MACOSX", "__pycache__"),
    *(".Trash-1000", ".AppleDouble", ".snapshot", ".ipynb_checkpoints", ".old"),
]
TWO = {f"{split}/{id}/{n}.jpg": f"{split}{id}{n}".encode() for split in ("train", "val") for id in "ab" for n in "12"}


def plain(*classes: str) -> dict[str, bytes]:
    return {f"{id}/{n}.jpg": f"{id}{n}".encode() for id in classes for n in "12"}


def found(source: Source) -> dict[str, dict[str, bytes]]:
    """Each class's pictures in train, as they are read."""
    pictures = source.splits["train"]
    return {
        each.id: {p.name: read_picture(source.root, p) for p in pictures if p.label == each.index}
        for each in source.classes
    }


def the_notice(source: Source) -> str:
    (notice,) = source.notices
    assert notice.isprintable()
    return notice


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_that_systems_make_are_passed_over_at_every_depth_and_said_once(tmp_path: Path, name: str) -> None:
    clean = find_pictures(write_files(tmp_path / "clean", TWO))
    depths = [name, f"train/{name}", f"val/{name}/a", f"train/a/{name}/1.jpg", f"train/a/deep/er/{name}"]
    source = find_pictures(write_files(tmp_path / "s", TWO | {f"{depth}/1.jpg": b"thumbnail" for depth in depths}))
    assert source.sha256() == clean.sha256() and not clean.notices
    said = the_notice(source)
    assert said.startswith("passed over folders that are hidden or made by a system (5), such as ") and name in said
    folders = find_pictures(write_files(tmp_path / "p", plain("bus", "car") | {f"{name}/x/1.jpg": b"thumbnail"}))
    assert [each.id for each in folders.classes] == ["bus", "car"] and name in the_notice(folders)


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_that_systems_make_are_passed_over_in_archives(tmp_path: Path, name: str) -> None:
    clean = {"1.jpg": b"1", "deep/2.jpg": b"2"}
    inner = tar_of({**clean, f"{name}/1.jpg": b"x", f"./a/deep/{name}/y/1.jpg": b"x", f"a/{name}/1.jpg": b"x"})
    outer = tar_of({"a.tar": inner, f"{name}/b.tar": b"no tar", f"./train/{name}/c.tar": b"no tar"})
    source = find_pictures(write_files(tmp_path / "tar of tars", {"ILSVRC2012_img_train.tar": outer}))
    assert found(source) == {"a": clean}
    assert "system (3), " in the_notice(source) and name in the_notice(source)
    packed = find_pictures(write_files(tmp_path / "tars", {"train/a.tar": inner}))
    assert found(packed) == {"a": clean}
    assert "system (2), " in the_notice(packed) and "such as train/a.tar/" in the_notice(packed)
    flat_tar = {"ILSVRC2012_img_test.tar": tar_of({"t.jpg": b"t", f"test/{name}/t.jpg": b"x"}), **TWO}
    assert len(find_pictures(write_files(tmp_path / "flat", flat_tar)).splits["test"]) == 1


def test_a_folder_of_a_system_that_cannot_be_listed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {**TWO, "lost+found/x": b"", "train/lost+found/x": b"", "backup/x/1.jpg": b""})
    scandir = os.scandir

    def guarded(path: str | Path) -> object:  # rights do not bind root, as whom tests may run
        if Path(path).name in ("lost+found", "backup"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert "system (2), " in the_notice(find_pictures(tmp_path))


def test_the_command_says_each_notice_once_and_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = {f"{id}/{n}.jpg": encoded(photo(n)) for id in ("bus", "car") for n in range(5)}
    hidden = {"bus/@eaDir/0.jpg": b"x", "bus/@eaDir/1.jpg": b"x", "car/@eaDir/a\nb/1.jpg": b"x", "bus/.9.jpg": b"x"}
    source = write_files(tmp_path / "two\nlines", pictures | hidden)
    assert shard(options(source, tmp_path / "out")) == 0
    assert capsys.readouterr().err.splitlines() == [
        "notice: passed over hidden pictures (1), such as bus/.9.jpg",
        "notice: passed over folders that are hidden or made by a system (2), such as bus/@eaDir",
    ]


@pytest.mark.parametrize("write", [kaggle, archives, image_folder])
def test_nothing_is_said_of_what_comes_with_imagenet(tmp_path: Path, write: Callable) -> None:
    notices = find_pictures(write(tmp_path, some_pictures())).notices
    assert [each for each in notices if "ILSVRC2012_img_train_t3.tar" not in each] == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"logo.png": b""}, "files and folders beside the splits that may hold pictures (1), such as logo.png"),
        ({"unsorted/more/1.jpg": b""}, "such as unsorted"),
        ({"Data/1.jpg": b""}, "such as Data"),
        ({"fall11_whole.tar": b""}, "such as fall11_whole.tar"),
        ({"train/c.zip": b"", "val/c.tar.gz": b""}, "archives that are not looked into (2), such as train/c.zip"),
        ({"train/ILSVRC2012_img_train.tar": b""}, "such as train/ILSVRC2012_img_train.tar"),
        ({"train/a/.x.jpg": b"", "train/.y.PNG": b"", "train/a/._1.jpg": b""}, "hidden pictures (2), such as train/.y"),
        ({"train/a/out/dataset.json": b'{"source_sha256": 1}', "train/a/out/1.jpg": b""}, "that pipeline.shard writes"),
    ],
)
def test_nothing_with_pictures_disappears_without_a_line(
    tmp_path: Path, files: dict[str, bytes], expected: str
) -> None:
    source = find_pictures(write_files(tmp_path / "s", TWO | files))
    assert source.sha256() == find_pictures(write_files(tmp_path / "clean", TWO)).sha256()
    assert expected in the_notice(source)


def test_only_what_pipeline_shard_writes_is_taken_for_its_output(tmp_path: Path) -> None:
    others = {"bus/dataset.json": b"{}", "bus/unfinished/3.jpg": b"3", "car/unfinished": b"notes"}
    source = find_pictures(write_files(tmp_path, plain("bus", "car") | others))
    assert found(source)["bus"].keys() == {"1.jpg", "2.jpg", "dataset.json", "unfinished/3.jpg"}
    assert not source.notices


# A link's place and where it leads, from there.
LINKS = [
    *[("train/a/up", to) for to in ("..", "../..", "../../..", "/", ".", "../b", "../../val", "../../val/b")],
    *[("train/a/deep/up", to) for to in ("..", "../..", "../../..", "../../b", "../../b/deep", "../../../val/a")],
    *[("train/up", to) for to in (".", "..", "../..", "/")],
    *[("up", to) for to in (".", "/")],
]


@pytest.mark.parametrize(("place", "to"), LINKS)
def test_no_link_brings_pictures_of_another_class_or_of_a_folder_above(tmp_path: Path, place: str, to: str) -> None:
    files = TWO | {"train/a/deep/3.jpg": b"a3", "train/b/deep/3.jpg": b"b3"}
    clean = find_pictures(write_files(tmp_path / "clean", files))
    root = write_files(tmp_path / "s", files)
    (root / place).symlink_to(to)
    source = find_pictures(root)
    assert source.sha256() == clean.sha256()
    said = [f"passed over links to a folder above or in another class (1), such as {place}"] if "/" in place else []
    assert list(source.notices) == said
    # The same through a link to the source, which has another folder above it.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/linked").symlink_to(root)
    assert find_pictures(tmp_path / "elsewhere/linked").sha256() == clean.sha256()


@pytest.mark.parametrize(("place", "to"), [("bus/up", ".."), ("up", "."), ("bus/x", "../car"), ("car/x/y", "../..")])
def test_no_link_does_so_in_a_folder_of_classes(tmp_path: Path, place: str, to: str) -> None:
    files = plain("bus", "car") | {"car/x/3.jpg": b"3"}
    clean = find_pictures(write_files(tmp_path / "clean", files))
    root = write_files(tmp_path / "s", files)
    (root / place).symlink_to(to)
    assert find_pictures(root).sha256() == clean.sha256()


def test_classes_that_are_links_are_kept_apart_and_links_out_of_the_source_are_followed(tmp_path: Path) -> None:
    pool = write_files(tmp_path / "pool", plain("a", "b") | {"more/9.jpg": b"9", "b/deep/3.jpg": b"b3"})
    write_files(tmp_path / "s/train/c", {"1.jpg": b"c"})
    for id in "ab":
        (tmp_path / "s/train" / id).symlink_to(pool / id)
    (pool / "a/more").symlink_to("../more")
    (pool / "a/all").symlink_to("..")  # above where the class really lies
    (pool / "more/back").symlink_to(tmp_path / "s")  # out of the source, and back into it
    (pool / "more/other").symlink_to("../b/deep")
    source = find_pictures(tmp_path / "s")
    assert found(source) == {
        "a": {"1.jpg": b"a1", "2.jpg": b"a2", "more/9.jpg": b"9"},
        "b": {"1.jpg": b"b1", "2.jpg": b"b2", "deep/3.jpg": b"b3"},
        "c": {"1.jpg": b"c"},
    }
    assert the_notice(source).startswith("passed over links to a folder above or in another class (3), ")


def test_one_folder_is_not_two_classes_but_may_serve_two_splits(tmp_path: Path) -> None:
    root = write_files(tmp_path, {name: data for name, data in TWO.items() if name.startswith("train")})
    (root / "val").symlink_to("train")
    source = find_pictures(root)
    assert list(source.splits["val"]) == [each._replace(file="val" + each.file[5:]) for each in source.splits["train"]]
    (root / "train/c").symlink_to("b")
    with pytest.raises(InputError, match=r"has one folder as 2 classes \(b, c\), expected a folder for each; remove"):
        find_pictures(root)


def test_a_class_that_is_a_link_which_leads_nowhere_is_said(tmp_path: Path) -> None:
    root = write_files(tmp_path, TWO)
    (root / "train/c").symlink_to("/mnt/not-mounted/c")
    assert the_notice(find_pictures(root)) == "passed over links that lead nowhere (1), such as train/c"
