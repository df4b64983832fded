"""What is looked for: picture files, and rows of the index by number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError
from service.network.compute import map_chunks
from service.network.pictures import class_of, file_name, listed_files, usable_pictures
from service.network.trained import TrainedNetwork
from service.retrieval.features import Index, as_float16


@dataclass(frozen=True, eq=False)
class Query:
    """A picture, as it is looked for."""

    name: str  # of the file, or the row's number
    features: NDArray[np.float16]  # (width,)
    row: int = -1  # of the index, -1 for a file
    square: NDArray[np.uint8] | None = None  # (side, side, 3) RGB, of a file
    label: int | None = None  # of a file in a folder that is called as a class


def parse_queries(words: Sequence[str], index: Index) -> list[int | Path]:
    """Row numbers and files: a word of digits is a row, unless a file is called so; a folder stands for its pictures.

    InputError where a row or a file is not there.
    """
    return [each for word in words for each in _parsed(word, index)]


def _parsed(word: str, index: Index) -> list[int | Path]:
    if not (word.isascii() and word.isdigit()) or Path(word).exists():
        return list(listed_files([Path(word)]))
    if int(word) >= index.facts.samples:
        raise InputError(
            f"query {word} is no row of {index.path}, expected a picture or 0 to {index.facts.samples - 1}; "
            "give another --query"
        )
    return [int(word)]


def read_queries(
    wanted: Sequence[int | Path], index: Index, load: Callable[[], TrainedNetwork]
) -> tuple[list[Query], list[tuple[Path, str]]]:
    """Queries in their order, and the files that are no pictures, each with the reason.

    load: the index's network; only called where there is a picture.
    """
    found = [None if isinstance(each, Path) else _row_query(each, index) for each in wanted]
    unusable: list[tuple[Path, str]] = []
    files = [(place, each) for place, each in enumerate(wanted) if isinstance(each, Path)]
    if files:
        for place, query in _picture_queries(files, load(), unusable):
            found[place] = query
    return [query for query in found if query], unusable


def _row_query(row: int, index: Index) -> Query:
    return Query(str(row), index.rows.read(row, row + 1)[0], row)


def _picture_queries(
    files: Sequence[tuple[int, Path]], network: TrainedNetwork, unusable: list[tuple[Path, str]]
) -> Iterator[tuple[int, Query]]:
    """Each file's place with its query; as in the index, features are of the centre crop, rounded to float16."""

    def squares() -> Iterator[tuple[int, Path, NDArray[np.uint8]]]:
        for place, path in files:
            for _, square in usable_pictures([path], network.preprocessing, unusable):
                yield place, path, square

    def work(job: tuple[int, Path, NDArray[np.uint8]]) -> tuple[int, Query]:
        place, path, square = job
        features = network.features(square[None]).cpu().numpy()
        name = file_name(path)
        return place, Query(
            name, as_float16(features, lambda _: name)[0], square=square, label=class_of(path, network.preprocessing)
        )

    return map_chunks(work, squares(), network.device)
