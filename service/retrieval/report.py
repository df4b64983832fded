"""What was found: a table, JSON, and a sheet like Figure 4 of Krizhevsky et al. 2012."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.command import InputError, printable
from pipeline.load.storage import SampleStore
from pipeline.manifest import PictureClass
from pipeline.picture.contact_sheet import Tile, neighbour_sheet
from pipeline.picture.raw import npy_square
from service.results.table import MISSING
from service.retrieval.queries import Query
from service.retrieval.search import Neighbours

HEADINGS: Final = ("query", "rank", "row", "distance", "class")


class Pictures:
    """The pictures of an index, by row."""

    def __init__(self, store: SampleStore, classes: Sequence[PictureClass]):
        self.store, self.classes = store, classes

    def of(self, row: int) -> PictureClass | None:
        """The class of a row; None where the split has no labels."""
        label = int(self.store.labels[row])
        return self.classes[label] if label >= 0 else None

    def of_query(self, query: Query) -> PictureClass | None:
        """The class of a query; None where it is not known."""
        if query.row >= 0:
            return self.of(query.row)
        return self.classes[query.label] if query.label is not None else None

    def picture(self, row: int) -> bytes | NDArray[np.uint8]:
        """The JPEG file of a row, or the pixels of a raw one; InputError where it is damaged."""
        (location,) = self.store.locate(np.array([row]))
        if not self.store.is_intact(location):
            raise InputError(
                f"sample {row:,} of {self.store.root / self.store.split} is damaged, expected what was sharded; "
                "shard the data set again or leave out --out"
            )
        (data,) = self.store.read([location])
        return npy_square(data.tobytes(), self.store.size) if self.store.kind == "raw" else bytes(data)


def table_rows(queries: Sequence[Query], found: Neighbours, pictures: Pictures) -> list[tuple[str, ...]]:
    """A row for each neighbour, a text for each of HEADINGS; before those of a query a row that says what it is."""
    rows: list[tuple[str, ...]] = []
    for number, query in enumerate(queries):
        rows.append((printable(query.name), MISSING, MISSING, MISSING, _words(pictures.of_query(query))))
        rows += [
            ("", str(rank), str(row), f"{distance:.4f}", _words(pictures.of(row)))
            for rank, row, distance in _nearest(found, number)
        ]
    return rows


def _words(each: PictureClass | None) -> str:
    return each.name if each else MISSING


def _nearest(found: Neighbours, number: int) -> list[tuple[int, int, float]]:
    """Rank, row and distance of a query's neighbours."""
    pairs = zip(found.rows[number].tolist(), found.distances[number].tolist(), strict=True)
    return [(rank, row, distance) for rank, (row, distance) in enumerate(pairs, start=1) if row >= 0]


def json_values(queries: Sequence[Query], found: Neighbours, pictures: Pictures) -> list[dict[str, Any]]:
    """The same as plain JSON values; distances are Euclidean, between activations."""
    return [
        {
            "query": query.name,
            "row": query.row if query.row >= 0 else None,
            **_class_values(pictures.of_query(query)),
            "nearest": [
                {"rank": rank, "row": row, "distance": distance, **_class_values(pictures.of(row))}
                for rank, row, distance in _nearest(found, number)
            ],
        }
        for number, query in enumerate(queries)
    ]


def _class_values(each: PictureClass | None) -> dict[str, Any]:
    if not each:
        return {"label": None, "id": None, "words": None}
    return {"label": each.index, "id": each.id, "words": each.words}


def sheet(queries: Sequence[Query], found: Neighbours, pictures: Pictures) -> bytes:
    """A PNG with a row for each query: its picture, then the nearest ones with class and distance."""
    return neighbour_sheet([
        [
            _query_tile(query, pictures),
            *(
                Tile(pictures.picture(row), _words(pictures.of(row)), f"distance {distance:#.4g}")
                for _, row, distance in _nearest(found, number)
            ),
        ]
        for number, query in enumerate(queries)
    ])  # fmt: skip


def _query_tile(query: Query, pictures: Pictures) -> Tile:
    if query.square is None:
        return Tile(pictures.picture(query.row), _words(pictures.of(query.row)), f"query: row {query.row}")
    each = pictures.of_query(query)
    return Tile(query.square, _words(each) if each else printable(query.name.rpartition("/")[2]), "query")
