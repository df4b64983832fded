import unicodedata

import pytest
from PIL import Image

from pipeline.source.names import differ_in_capitals, first_few, is_passed_over, is_picture, look_the_same

# Of pipeline.picture; MPO is Pillow's name for a JPEG of several pictures.
DECODED = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def test_every_name_that_pillow_knows_for_a_format_that_is_decoded_is_a_picture() -> None:
    Image.init()
    endings = [ending for ending, format in Image.registered_extensions().items() if format in DECODED]
    assert {".jfif", ".jpe", ".png"} <= set(endings)
    assert not [ending for ending in endings if not (is_picture(f"x{ending}") and is_picture(f"X{ending.upper()}"))]


@pytest.mark.parametrize("name", ["x.txt", "jpg", "Thumbs.db", "x.jpg.tar", "x.pdf", "x.svg"])
def test_other_names_are_no_pictures(name: str) -> None:
    assert not is_picture(name)


@pytest.mark.parametrize("name", ["recycle", "snapshot", "lost", "train", "Recycler", "@home", "#1", "$", "temporary"])
def test_what_only_resembles_a_folder_of_a_system_may_be_a_class(name: str) -> None:
    assert not is_passed_over(name)


@pytest.mark.parametrize("name", ["caf\u00e9", "\ud55c\uae00", "\u1e69x", "na\u00efve \udcff"])
def test_names_in_two_normalisations_are_told_apart_by_code_points(name: str) -> None:
    other = unicodedata.normalize("NFD", name)
    told = look_the_same([name, "a", other, name])
    assert told.isascii() and set(told.split(" and ")) == {
        each.encode("unicode_escape").decode("ascii") for each in (name, other)
    }
    assert look_the_same([name, "a", name.upper(), name]) == ""


def test_names_that_differ_in_capitals_are_grouped() -> None:
    assert differ_in_capitals(["Cat", "dog", "cat", "CAT", "Stra\u00dfe", "STRASSE"]) == [
        ["Cat", "cat", "CAT"],
        ["Stra\u00dfe", "STRASSE"],
    ]


def test_of_many_names_a_message_has_five() -> None:
    assert first_few("abcde") == "a, b, c, d, e"
    assert first_few(iter("abcdefg")) == "a, b, c, d, e and 2 more"
