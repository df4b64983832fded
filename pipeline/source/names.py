"""What names say: pictures, archives, what systems make among a person's files, and names that look alike."""

import unicodedata
from collections.abc import Callable, Iterable
from typing import Final

from pipeline.folder import is_system_folder

TAR: Final = ".tar"
# Of the formats that pipeline.picture decodes.
_PICTURES: Final = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
_PACKED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return name.lower().endswith(_PICTURES)


def is_packed(name: str) -> bool:
    """Whether a file's name says that it is a compressed archive, which cannot be read in place."""
    return name.lower().endswith(_PACKED)


def is_passed_over(name: str) -> bool:
    """Whether a name is hidden, or that of a folder that systems make: nothing in it is anybody's training picture."""
    return name.startswith(".") or is_system_folder(name)


def passed_over_as(name: str, *, is_folder: bool) -> str:
    """What to call one that is passed over, in the plural for a message; "" where no picture is lost with it."""
    if is_folder:
        return "folders that are hidden or made by a system"
    # "._x.JPEG" is what macOS keeps about x.JPEG on other file systems, and no picture.
    return "hidden pictures" if is_picture(name) and not name.startswith("._") else ""


def first_few(names: Iterable[str], most: int = 5) -> str:
    """The first names of some, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def look_the_same(names: Iterable[str]) -> str:
    """The first of these names that differ only in Unicode normalisation, as code points; "" when there are none.

    macOS writes "é" as two code points (NFD), others as one (NFC), and no person sees the difference.
    """
    groups = _alike(names, lambda name: unicodedata.normalize("NFC", name))
    return " and ".join(name.encode("unicode_escape").decode("ascii") for name in groups[0]) if groups else ""


def differ_in_capitals(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that are one when capitals do not count."""
    return _alike(names, str.casefold)


def _alike(names: Iterable[str], form: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(form(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
