"""Labels and words that come beside the pictures: ILSVRC's development kits, Kaggle's tables, Caffe's list.

The kits number classes by their own ILSVRC ids, which do not follow the order of the folders: `meta.mat` maps them to
WordNet ids ("n01440764"), and these are the classes here. Line k of a ground truth labels picture number k.
"""

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.command import InputError
from pipeline.source.folders import visible_names
from pipeline.source.synsets import read_synsets

MAPPING_FILE: Final = "LOC_synset_mapping.txt"  # Kaggle's; a line is "n01440764 tench, Tinca tinca"
WORDS_FILE: Final = "synset_words.txt"  # Caffe's, with the same lines
SOLUTION_FILE: Final = "LOC_val_solution.csv"  # Kaggle's; a row is "ILSVRC2012_val_00048981,n03995372 85 1 499 272"
KIT_NAMES: Final = ("ILSVRC2012_devkit_t12", "ILSVRC2010_devkit-1.0", "devkit-1.0")
_ARCHIVES: Final = tuple(name + suffix for name in KIT_NAMES for suffix in (".tar.gz", ".tgz", ".tar"))
_FOLDERS: Final = (*KIT_NAMES, "devkit", "data")  # the last two are a kit only if they hold `meta.mat`

_YEARS: Final = ("2012", "2010")
_META: Final = "meta.mat"
_TRUTH_FILE: Final = re.compile(r"ILSVRC([0-9]{4})_(?:validation|test)_ground_truth\.txt")
_TRUTH_NAMES: Final = {"val": "validation", "test": "test"}
_COLUMNS: Final = ["ImageId", "PredictionString"]
_AGAIN: Final = "download or unpack it again, or remove it"


class DevelopmentKit(NamedTuple):
    """A development kit, as far as labels and words need it."""

    source: str  # for messages
    year: str
    synsets: dict[int, str]  # ILSVRC id -> WordNet id, of the leaves of the hierarchy: these are the classes
    words: dict[str, str]  # by WordNet id
    truths: dict[str, str]  # the texts of ground truths, by file name


class GroundTruth(NamedTuple):
    """What one source says of the pictures of a split."""

    source: str  # for messages
    year: str  # of the pictures it labels; "" where its keys are whole names, which include the year
    key: Callable[[str], str]  # from the stem of a picture's name to a key of `ids`
    ids: dict[str, str]  # to WordNet ids


def read_kits(places: Sequence[Path]) -> tuple[DevelopmentKit, ...]:
    """The development kits that lie in some folders, unpacked or not; InputError when one is damaged."""
    folders = [place / name for place in places for name in _FOLDERS if (place / name).is_dir()]
    archives = [place / name for place in places for name in _ARCHIVES if (place / name).is_file()]
    found = [(folder, _kit_files(folder)) for folder in folders] + [(path, _unpacked(path)) for path in archives]
    return tuple(_kit(path, files) for path, files in found if _META in files or path.name in (*KIT_NAMES, *_ARCHIVES))


def read_ground_truths(split: str, places: Sequence[Path], kits: Sequence[DevelopmentKit]) -> list[GroundTruth]:
    """Everything beside the pictures that labels those of `split`; InputError when a source is damaged."""
    solutions = [place / SOLUTION_FILE for place in places if split == "val" and (place / SOLUTION_FILE).is_file()]
    found = [_solution(path) for path in solutions]
    for year in _YEARS:
        name = f"ILSVRC{year}_{_TRUTH_NAMES[split]}_ground_truth.txt"
        loose = [(str(place / name), _text(place / name)) for place in places if (place / name).is_file()]
        of_year = [kit for kit in kits if kit.year == year]
        if loose and not of_year:
            raise InputError(f"{loose[0][0]} has no development kit of {year} beside it, expected one; put it there")
        found += [_numbered(kit, kit.source, kit.truths[name]) for kit in of_year if name in kit.truths]
        found += [_numbered(of_year[0], *each) for each in loose]
    return found


def read_words(places: Sequence[Path], name: str) -> dict[str, str]:
    """Words by class id from the first list called `name` that lies in some folders; none if there is no such list."""
    paths = [place / name for place in places if (place / name).is_file()]
    lines = _text(paths[0]).splitlines() if paths else []
    return {id: words.strip() for id, _, words in (line.partition(" ") for line in lines) if words.strip()}


def _kit_files(folder: Path) -> dict[str, bytes]:
    inner, _ = visible_names(folder)
    places = [folder, folder / "data", *(folder / name / "data" for name in inner)]
    paths = [place / name for place in places if place.is_dir() for name in visible_names(place)[1] if _is_kept(name)]
    return {path.name: path.read_bytes() for path in paths}


def _unpacked(path: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as tar:
            kept = [member for member in tar if member.isfile() and _is_kept(Path(member.name).name)]
            streams = [(Path(member.name).name, tar.extractfile(member)) for member in kept]
            return {name: stream.read() for name, stream in streams if stream is not None}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        why = str(error).partition(":\n")[0]
        raise InputError(f"{path} cannot be unpacked ({why}), expected ILSVRC's development kit; {_AGAIN}") from error


def _is_kept(name: str) -> bool:
    return name == _META or _TRUTH_FILE.fullmatch(name) is not None


def _kit(path: Path, files: dict[str, bytes]) -> DevelopmentKit:
    if _META not in files:
        raise InputError(f"{path} has no {_META}, expected ILSVRC's development kit; {_AGAIN}")
    try:
        year, synsets = read_synsets(files[_META])
    except ValueError as error:
        raise InputError(f"{path} has an unusable {_META} ({error}), expected ILSVRC's synsets; {_AGAIN}") from error
    texts = {name: data.decode("utf-8", "replace") for name, data in files.items() if name != _META}
    numbers = {each.number: each.id for each in synsets}
    return DevelopmentKit(str(path), year, numbers, {each.id: each.words for each in synsets}, texts)


def _numbered(kit: DevelopmentKit, origin: str, text: str) -> GroundTruth:
    lines = text.split()
    ids = {}
    for number, line in enumerate(lines, start=1):
        if not line.isdecimal() or len(line) > 9 or int(line) not in kit.synsets:
            raise InputError(
                f"{origin}: line {number:,} of the ground truth is {line[:40]!r}, expected one of the "
                f"{len(kit.synsets):,} ids in {_META}; {_AGAIN}"
            )
        ids[str(number)] = kit.synsets[int(line)]
    return GroundTruth(origin, kit.year, _number, ids)


def _number(stem: str) -> str:
    digits = re.search("[0-9]*$", stem)
    return digits[0].lstrip("0") if digits else ""


def _solution(path: Path) -> GroundTruth:
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    ids: dict[str, str] = {}
    try:
        for number, row in enumerate((row for row in rows if row), start=1):
            if (number == 1) != (row == _COLUMNS) or len(row) != 2 or not row[1].split() or row[0] in ids:
                expected = "its header ImageId,PredictionString" if number == 1 else "a new picture and its class"
                raise InputError(f"{path}: row {number:,} is {','.join(row)[:60]!r}, expected {expected}; {_AGAIN}")
            ids[row[0]] = row[1].split()[0]
    except csv.Error as error:
        raise InputError(f"{path} is damaged ({error}), expected {','.join(_COLUMNS)}; {_AGAIN}") from error
    ids.pop(_COLUMNS[0], None)
    return GroundTruth(str(path), "", str, ids)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")
