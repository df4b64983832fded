import re
from pathlib import Path

import pytest

from layouts import (
    ILSVRC_IDS,
    WORDS,
    flat,
    ground_truth,
    kit,
    kit_archive,
    mapping,
    meta_mat,
    solution,
    some_pictures,
    write_files,
)
from pipeline.command import InputError
from pipeline.source.devkit import DevelopmentKit, read_ground_truths, read_kits, read_words
from pipeline.source.labels import label_flat_folder
from pipeline.source.synsets import read_synsets

PICTURES = some_pictures()
VAL = {Path(name).stem: id for id, named in PICTURES["val"].items() for name in named}
NAMES = [name.encode() for name in flat(PICTURES["val"])]


def test_the_classes_of_meta_mat_are_its_leaves() -> None:
    for year in ("2012", "2010"):
        found, synsets = read_synsets(meta_mat(year))
        assert found == year
        assert {each.id: each.number for each in synsets} == ILSVRC_IDS
        assert {each.id: each.words for each in synsets} == WORDS


@pytest.mark.parametrize("data", [b"", b"no matrix", meta_mat()[:300]])
def test_an_unusable_meta_mat_is_told_in_a_line(data: bytes) -> None:
    with pytest.raises(ValueError) as raised:
        read_synsets(data)
    assert "\n" not in str(raised.value) and str(raised.value)


def test_a_reader_that_crashes_is_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    write_files(tmp_path / "devkit", {"data/meta.mat": b"anything"})
    with pytest.raises(InputError, match=r"devkit has an unusable meta.mat \(its reader ended with status -11\)"):
        read_kits([tmp_path])


@pytest.mark.parametrize("folder", ["ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/ILSVRC2012_devkit_t12", "."])
def test_a_kit_is_found_unpacked_and_packed_and_says_the_same(tmp_path: Path, folder: str) -> None:
    unpacked = read_kits([write_files(tmp_path / "a", {f"{folder}/{k}": v for k, v in kit(PICTURES).items()}) / ""])
    packed = read_kits([write_files(tmp_path / "b", kit_archive(PICTURES))])
    assert len(unpacked) == len(packed) == 1
    assert unpacked[0]._replace(source="") == packed[0]._replace(source="")
    (truth,) = read_ground_truths("val", [tmp_path], packed)
    assert {stem: truth.ids[truth.key(stem)] for stem in VAL} == VAL


def test_kaggles_table_gives_the_first_class_of_a_picture(tmp_path: Path) -> None:
    write_files(tmp_path, {"LOC_val_solution.csv": b"\xef\xbb\xbf" + solution(PICTURES["val"]).replace(b"\n", b"\r\n")})
    (truth,) = read_ground_truths("val", [tmp_path], ())
    assert {stem: truth.ids[truth.key(stem)] for stem in VAL} == VAL
    assert read_ground_truths("test", [tmp_path], ()) == []


def test_words_come_from_lists(tmp_path: Path) -> None:
    write_files(tmp_path, {"LOC_synset_mapping.txt": mapping() + b"n09\n\nn08 \xff bad\n"})
    assert read_words([tmp_path / "x", tmp_path], "LOC_synset_mapping.txt") == {**WORDS, "n08": "� bad"}
    assert read_words([tmp_path], "synset_words.txt") == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", None),
        (b"a,b\n", "row 1 is 'a,b', expected its header"),
        (b"ImageId,PredictionString\nx\n", "row 2 is 'x', expected a new picture"),
        (b"ImageId,PredictionString\nx, \n", "row 2 is"),
        (b"ImageId,PredictionString\nx,n1\nx,n1\n", "row 3 is"),
        (b'ImageId,PredictionString\n"' + b"x" * 200_000, "is damaged"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, table: bytes, message: str | None) -> None:
    write_files(tmp_path, {"LOC_val_solution.csv": table})
    if message is None:
        assert read_ground_truths("val", [tmp_path], ())[0].ids == {}
        return
    with pytest.raises(InputError, match=rf"LOC_val_solution\.csv.*{re.escape(message)}"):
        read_ground_truths("val", [tmp_path], ())


@pytest.mark.parametrize("line", [b"5", b"x", b"-1", b"9" * 5000, b"1.0", "²".encode()])
def test_a_ground_truth_names_only_leaves(tmp_path: Path, line: bytes) -> None:
    made = DevelopmentKit(
        "here", "2012", {1: "n1"}, {}, {"ILSVRC2012_validation_ground_truth.txt": f"1\n{line.decode()}\n"}
    )
    with pytest.raises(InputError, match=r"here: line 2 of the ground truth is"):
        read_ground_truths("val", [tmp_path], [made])


def test_labels_published_apart_need_their_kit(tmp_path: Path) -> None:
    write_files(tmp_path, {"ILSVRC2010_test_ground_truth.txt": b"1\n"})
    with pytest.raises(InputError, match="no development kit of 2010 beside it"):
        read_ground_truths("test", [tmp_path], [DevelopmentKit("here", "2012", {1: "n1"}, {}, {})])
    (truth,) = read_ground_truths("test", [tmp_path], [DevelopmentKit("here", "2010", {1: "n1"}, {}, {})])
    assert truth.ids == {"1": "n1"}


@pytest.mark.parametrize("name", ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2010_devkit-1.0.tar.gz"])
@pytest.mark.parametrize("data", [b"", b"text", 40, 500])
def test_a_damaged_archive_of_a_kit_is_named(tmp_path: Path, name: str, data: bytes | int) -> None:
    """data: what is in its place, or how many of its own bytes are (gzip writes the time into them)."""
    write_files(tmp_path, {name: kit_archive(PICTURES).popitem()[1][:data] if isinstance(data, int) else data})
    with pytest.raises(InputError, match=rf"{re.escape(name)} (cannot be unpacked|has no meta.mat)"):
        read_kits([tmp_path])


def made_kit(**changes: str) -> DevelopmentKit:
    truth = ground_truth(PICTURES["val"]).decode()
    texts = {f"ILSVRC{year}_validation_ground_truth.txt": truth for year in ("2012", "2010")}
    return DevelopmentKit("kit", "2012", {number: id for id, number in ILSVRC_IDS.items()}, {}, texts)._replace(
        **changes
    )


def test_two_sources_may_agree_and_must_not_disagree(tmp_path: Path) -> None:
    write_files(tmp_path, {"LOC_val_solution.csv": solution(PICTURES["val"])})
    both = read_ground_truths("val", [tmp_path], [made_kit()])
    ids, origins = label_flat_folder("val", NAMES, both)
    assert ids == [VAL[name.decode()[:-5]] for name in NAMES]
    assert origins == [f"{tmp_path}/LOC_val_solution.csv", "kit"]
    stem, id = next(iter(both[0].ids.items()))
    both[0].ids[stem] = "n99"
    with pytest.raises(InputError, match=f"{stem} is n99 in .*LOC_val_solution.csv and {id} in kit, expected"):
        label_flat_folder("val", NAMES, both)


def test_a_kit_of_another_year_says_nothing(tmp_path: Path) -> None:
    truths = read_ground_truths("val", [tmp_path], [made_kit(year="2010")])
    assert len(truths) == 1 and label_flat_folder("val", NAMES, truths) == ([], [])
    renamed = [name.replace(b"ILSVRC2012_", b"") for name in NAMES]
    assert label_flat_folder("val", renamed, truths)[0] == [VAL[name.decode()[:-5]] for name in NAMES]


def test_pictures_and_labels_must_be_equally_many(tmp_path: Path) -> None:
    truths = read_ground_truths("val", [tmp_path], [made_kit()])
    again = NAMES[1][:-5] + b".png"
    for names in (NAMES[1:], [*NAMES[1:], again], [*NAMES, again], [*NAMES, b"ILSVRC2012_val_00000099.JPEG"]):
        with pytest.raises(InputError, match=rf"val holds {len(names)} pictures and kit labels 7, expected the same"):
            label_flat_folder("val", names, truths)
