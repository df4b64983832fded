import gzip
import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from layouts import TRAIN_ALONE, Pictures, class_tars, image_folder, mapping, some_pictures, tar_of, write_files
from pipeline.command import InputError
from pipeline.source.ilsvrc import find_pictures
from pipeline.source.listing import read_picture

CLASS_TARS = class_tars(some_pictures()["train"])


def plain(*classes: str) -> dict[str, bytes]:
    return {f"{id}/{n}.jpg": b"x" * n for id in classes for n in (1, 2)}


@pytest.mark.parametrize("write", TRAIN_ALONE.values(), ids=TRAIN_ALONE)
def test_classes_alone_are_the_same_source_in_folders_tars_or_a_tar_of_tars(
    tmp_path: Path, write: Callable[[Path, Pictures], Path]
) -> None:
    pictures = some_pictures()
    expected = find_pictures(image_folder(tmp_path / "expected", pictures))
    given = write(tmp_path / "given", pictures)
    source = find_pictures(given)
    assert source.sha256() == expected.sha256() and not source.notices and list(source.splits) == ["train"]
    for each in source.splits["train"]:
        id = source.classes[each.label].id
        assert read_picture(source.root, each) == pictures["train"][id][each.name]
    for place in (tmp_path / "expected", given if given.is_dir() else given.parent):
        write_files(place, {"synset_words.txt": mapping()})
    assert find_pictures(given).sha256() == find_pictures(tmp_path / "expected").sha256() != expected.sha256()


def test_a_tar_of_tars_is_listed_by_its_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes, each, size = 7, 5, 9 << 30  # the last in bytes: more than the header's octal digits can say

    def header(name: str, size: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.GNU_FORMAT)

    inner = each * (tarfile.BLOCKSIZE + size) + tarfile.RECORDSIZE
    with open(tmp_path / "fall11_whole.tar", "wb") as stream:  # 315 GiB of holes
        for number in range(classes):
            stream.write(header(f"n{number}.tar", inner))
            for picture in range(each):
                stream.write(header(f"n{number}_{picture}.JPEG", size))
                stream.seek(size, os.SEEK_CUR)
            stream.seek(tarfile.RECORDSIZE, os.SEEK_CUR)
        stream.truncate(stream.tell() + tarfile.RECORDSIZE)
    read = 0
    pread = os.pread

    def counted(descriptor: int, length: int, position: int) -> bytes:
        nonlocal read
        data = pread(descriptor, length, position)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    pictures = find_pictures(tmp_path).splits["train"]
    assert len(pictures) == classes * each and pictures.bytes.tolist() == [size] * classes * each
    # Headers and end marks of the outer tar, of each inner one, and the first again to see what it is.
    assert read <= tarfile.BLOCKSIZE * (classes + 1 + classes * (each + 1) + 1)


def test_what_an_error_says_of_a_packed_release_helps(tmp_path: Path) -> None:
    expected = find_pictures(write_files(tmp_path / "expected/train", CLASS_TARS).parent).sha256()
    whole = tar_of({f"winter21_whole/{name}": data for name, data in CLASS_TARS.items()})
    packed = write_files(tmp_path / "packed", {"winter21_whole.tar.gz": gzip.compress(whole)})
    with pytest.raises(InputError, match=r"is compressed \(gzip\), expected a plain tar; decompress or unpack it$"):
        find_pictures(packed / "winter21_whole.tar.gz")
    with pytest.raises(InputError, match=r"holds winter21_whole\.tar\.gz, expected .*; unpack its archives, or give"):
        find_pictures(packed)
    (tmp_path / "decompressed").mkdir()
    (tmp_path / "decompressed/winter21_whole.tar").write_bytes(whole)
    assert find_pictures(tmp_path / "decompressed/winter21_whole.tar").sha256() == expected
    with tarfile.open(packed / "winter21_whole.tar.gz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    with pytest.raises(InputError, match=r"holds winter21_whole/, expected .*; give the folder that holds one of"):
        find_pictures(tmp_path / "unpacked")
    assert find_pictures(tmp_path / "unpacked/winter21_whole").sha256() == expected


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({"a.tar": tar_of(CLASS_TARS), "b.tar": tar_of(CLASS_TARS)}, "", r"holds tars of tars \(a\.tar, b\.tar\), exp"),
        (
            {"a.tar": tar_of(CLASS_TARS), **CLASS_TARS},
            "",
            r"tars of tars \(a\.tar\) and, beside, classes \(n01440764\.",
        ),
        ({"a.tar": tar_of(CLASS_TARS), "b/1.jpg": b""}, "", r"and, beside, classes \(b/\), expected one"),
        ({"train/a.tar": tar_of(CLASS_TARS)}, "", r"train/a\.tar holds 4 tars and no pictures .* as the source itself"),
        (
            {"train/n1/n1.tar": tar_of({"x.jpg": b""})},
            "",
            r"train/n1 holds 1 tars and no pictures \(n1\.tar\)",
        ),
        ({**CLASS_TARS, "n1.tar": tar_of({})}, "", r"1 classes without pictures, .*fill or remove them.*: n1$"),
        ({**CLASS_TARS, "n1.tar": tar_of({"x.jpg": b"x" * 900})[:1000]}, "", r"n1\.tar ends within x\.jpg"),
        ({"d.tar": tar_of({"train/a/x.jpg": b""})}, "", r"holds d\.tar, expected .*; unpack its archives, or give"),
        ({"d.tar": tar_of({"a/x.jpg": b""})}, "d.tar", r"is a file that is none of ImageNet's archives, .*; unpack it"),
        ({"n1.tar": tar_of({"x.jpg": b""})}, "n1.tar", r"is a file that is none of ImageNet's archives"),
        ({"x.jpg": b""}, "x.jpg", r"is a file that is none of ImageNet's archives"),
        # Names.
        (plain("bus", "car", "test"), "", r"has test and, beside, folders of pictures \(bus, car\), expected all cl"),
        (plain("bus", "train", "val"), "", r"has train, val and, beside, folders of pictures \(bus\), .*goes into it"),
        (plain("train", "test1"), "", r"has train and, beside, folders of pictures \(test1\)"),
        (plain("train", "train_masks", "bus"), "", r"has train and, beside, folders of pictures \(bus, train_masks\)"),
        (plain("Train", "Test"), "", r"holds Test/, Train/, named like splits, expected classes; rename"),
        (plain("imagenet21k_train/n1", "imagenet21k_val/n1"), "", r"holds imagenet21k_train/, imagenet21k_val/, named"),
        (
            {f"{split}.tar": tar_of({"x.jpg": b""}) for split in ("train", "val")},
            "",
            r"holds train\.tar, val\.tar, n",
        ),
        (
            plain("bus", "car", "Data/bus"),
            "",
            r"pictures deep in Data, .*expected one or the other; give .*/Data",
        ),
    ],
)
def test_what_might_be_meant_otherwise_is_an_error(
    tmp_path: Path, files: dict[str, bytes], source: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        find_pictures(write_files(tmp_path, files) / source)
    assert "expected" in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["train", "Data", "Annotations", "ImageSets", "CLS-LOC"])
def test_a_class_may_have_a_name_of_imagenets_own_tree(tmp_path: Path, name: str) -> None:
    source = find_pictures(write_files(tmp_path / "s", plain("bus", "car", name)))
    assert [each.id for each in source.classes] == sorted(["bus", "car", name])
    assert source.notices == (f"taken as a class, like bus/, car/: {name}",)
    as_train = {f"train/{path}": data for path, data in plain("bus", "car", name).items()}
    assert find_pictures(write_files(tmp_path / "t", as_train)).sha256() == source.sha256()
    tars = {f"{id}.tar": tar_of({"1.jpg": b"x", "2.jpg": b"xx"}) for id in ("bus", "car", name)}
    assert find_pictures(write_files(tmp_path / "tars", tars)).sha256() == source.sha256()


@pytest.mark.parametrize("names", [("train_interior", "train_station"), ("trainer", "testudo"), ("crash_test", "a")])
def test_classes_that_only_resemble_splits_are_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert [each.id for each in find_pictures(write_files(tmp_path, plain(*names))).classes] == sorted(names)


def test_folders_of_imagenets_names_without_pictures_are_no_classes(tmp_path: Path) -> None:
    others = {"Annotations/bus/1.xml": b"", "ImageSets/val.txt": b"", "Data/CLS-LOC/readme.txt": b""}
    source = find_pictures(write_files(tmp_path, plain("bus", "car") | others))
    assert [each.id for each in source.classes] == ["bus", "car"] and not source.notices


NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.mark.parametrize(
    "files",
    [
        plain(NFC, NFD),
        {f"train/{name}": data for name, data in plain(NFC, NFD).items()},
        {f"{id}.tar": tar_of({"1.jpg": b""}) for id in (NFC, NFD)},
        {"all.tar": tar_of({f"{id}.tar": tar_of({"1.jpg": b""}) for id in (NFC, NFD)})},
    ],
)
def test_two_classes_that_look_the_same_are_shown_by_code_points(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"\(cafe\\u0301 and caf\\xe9\), expected one of them; merge"):
        find_pictures(write_files(tmp_path, files))


def test_a_class_that_is_written_otherwise_in_val_is_shown_by_code_points(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"differ only in Unicode .*, rename them: caf\\xe9 and cafe\\u0301$"):
        find_pictures(write_files(tmp_path, {f"train/{NFC}/1.jpg": b"", f"val/{NFD}/1.jpg": b""}))


def test_pictures_that_are_written_otherwise_in_their_labels_are_shown_by_code_points(tmp_path: Path) -> None:
    table = f"ImageId,PredictionString\n{NFC},a 1 2 3 4\n".encode()
    files = {"train/a/1.jpg": b"", f"val/{NFD}.jpg": b"", "LOC_val_solution.csv": table}
    with pytest.raises(InputError, match=r"some differ only in Unicode normalisation: cafe\\u0301 and caf\\xe9"):
        find_pictures(write_files(tmp_path, files))


def test_classes_that_differ_in_capitals_are_said(tmp_path: Path) -> None:
    source = find_pictures(write_files(tmp_path, plain("Cat", "cat", "dog")))
    assert len(source.classes) == 3
    assert source.notices == ("1 groups of classes differ only in capitals: Cat, cat",)


def test_jpegs_under_their_other_names_are_pictures(tmp_path: Path) -> None:
    files = {"a/1.jfif": b"", "b/1.JPE": b"", "b/2.jif.tar": tar_of({})}
    assert len(find_pictures(write_files(tmp_path / "plain", files)).splits["train"]) == 3
    flat = {"train/a/1.jpg": b"", "test/1.jfif": b"", "test/2.jpe": b"", "test/3.JPG": b"", "test/notes.txt": b""}
    assert len(find_pictures(write_files(tmp_path / "flat", flat)).splits["test"]) == 3
