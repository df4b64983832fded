import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.command import printable
from pipeline.source.listing import File, Listing, Picture, UnreadablePicture, concatenate, make_listing, read_picture

# What a file system allows: spaces, dots, other scripts, bytes that are no UTF-8, a very long name, line breaks.
NAMES = [b"a b.JPEG", b"..x.jpg", "pêche".encode(), b"\xff\xfe.JPEG", b"x" * 255, b"deep/er/x.JPEG", b"two\nlines"]


def listing() -> Listing:
    files = [File(name, 10 + place, -1) for place, name in enumerate(NAMES)]
    packed = [File(b"n01_1.JPEG", 7, 512), File(b"n01_0.JPEG", 8, 2048)]
    return concatenate([make_listing("train/c", files, [0] * len(files)), make_listing("some.tar", packed, [1, 1])])


def test_pictures_come_sorted_and_whatever_their_names_are_bytes() -> None:
    pictures = list(listing())
    assert [os.fsencode(each.name) for each in pictures[:-2]] == sorted(NAMES)
    assert {os.fsencode(each.name): each.bytes for each in pictures[:-2]} == {
        name: 10 + place for place, name in enumerate(NAMES)
    }
    assert pictures[0] == Picture("..x.jpg", 0, 11, "train/c/..x.jpg", -1)
    assert pictures[-2:] == [
        Picture("n01_0.JPEG", 1, 8, "some.tar", 2048),
        Picture("n01_1.JPEG", 1, 7, "some.tar", 512),
    ]


def test_labels_come_before_names_in_a_packed_folder() -> None:
    files = [File(b"a", 1, -1), File(b"b", 2, -1), File(b"c", 3, -1)]
    assert [(each.label, each.name) for each in make_listing("val", files, [2, 0, 2])] == [(0, "b"), (2, "a"), (2, "c")]


def test_any_choice_of_pictures_is_the_same_from_a_listing_and_from_what_was_taken_of_it() -> None:
    whole = listing()
    chosen = np.array([8, 0, 3, 3, 7])
    pictures = list(whole)
    expected = [pictures[index] for index in chosen]
    assert list(whole.pictures(chosen)) == expected
    assert list(whole.take(chosen)) == expected
    assert list(whole.take(chosen).take(np.array([4, 1]))) == [expected[4], expected[1]]
    assert list(whole.take(np.empty(0, np.int64))) == []
    assert list(concatenate([whole.take(chosen), whole])) == expected + pictures


def test_columns_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        listing().labels[0] = 5


def test_a_million_pictures_would_take_less_than_100_megabytes() -> None:
    files = [File(f"n01440764_{number}.JPEG".encode(), 110_000, -1) for number in range(1000)]
    files.append(File(b"x" * 255, 1, -1))  # one long name costs no other anything
    packed = make_listing("train/n01440764", files, [0] * len(files))
    columns = (packed.labels, packed.bytes, packed.offsets, packed.path_indices, packed.name_ends)
    assert (sum(column.nbytes for column in columns) + len(packed.names)) / len(packed) < 60


def test_a_picture_is_read_from_its_file_and_from_within_an_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    assert read_picture(tmp_path, Picture("whole", 0, 10, "x.tar", -1)) == b"0123456789"
    assert read_picture(tmp_path, Picture("part", 0, 3, "x.tar", 4)) == b"456"
    assert read_picture(tmp_path, Picture("none", 0, 0, "x.tar", 10)) == b""


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Picture("x", 0, 9, "x", -1), r"^x has changed: more bytes, listed with 9$"),
        (Picture("x", 0, 11, "x", -1), r"^x has changed: 10 bytes, listed with 11$"),
        (Picture("n.JPEG", 0, 3, "x", 8), r"^n\.JPEG in x has changed: 2 bytes, listed with 3$"),
        (Picture("gone", 0, 3, "a/gone", -1), r"^a/gone cannot be read \(No such file or directory\)$"),
        (Picture("f", 0, 3, "folder", -1), r"^folder cannot be read \(Is a directory\)$"),
        (Picture("l", 0, 3, "a\nb", -1), r"^a\\nb cannot be read"),
    ],
)
def test_a_picture_that_is_not_as_listed_is_named(tmp_path: Path, picture: Picture, message: str) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadablePicture, match=message):
        read_picture(tmp_path, picture)


def test_a_message_is_one_line_that_can_be_printed() -> None:
    assert printable("pêche \udcff\n\x1b[0m") == r"pêche \udcff\n\x1b[0m"
