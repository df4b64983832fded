"""The exact search against all distances in float64, on data that is easy and on data made to mislead it."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.command import InputError
from service.retrieval import search as module
from service.retrieval.bounds import Block, Queries, product_bounds, slack_of
from service.retrieval.search import Engine, RowsFile, engine_of, passes, search

ENGINES: tuple[Engine, ...] = ("blocks", "faiss")
Half = NDArray[np.float16]


def saved(path: Path, rows: Half) -> RowsFile:
    np.save(path, rows)
    return RowsFile(path, np.load(path, mmap_mode="r").offset, *rows.shape)


def all_squares(rows: Half, query: Half) -> NDArray[np.float64]:
    """(N,) squared distances, of which float64 holds every term exactly but for rare last bits."""
    return ((rows.astype(np.float64) - query.astype(np.float64)) ** 2).sum(1)


def check(file: RowsFile, rows: Half, queries: Half, k: int, engine: Engine, own: NDArray[np.int64] | None = None):
    """The search finds what sorting all distances finds, distances and all."""
    found = search(file, queries, k, own=own, engine=engine)
    for number, query in enumerate(queries):
        squares = all_squares(rows, query)
        if own is not None and own[number] >= 0:
            squares[own[number]] = np.inf
        order = np.lexsort((np.arange(len(rows)), squares))[:k]
        order = order[np.isfinite(squares[order])]
        assert found.rows[number, : len(order)].tolist() == order.tolist()
        assert found.distances[number, : len(order)].tolist() == np.sqrt(squares[order]).tolist()
        assert (found.rows[number, len(order) :] == -1).all() and np.isinf(found.distances[number, len(order) :]).all()


def features(rng: np.random.Generator, n: int, width: int) -> Half:
    return np.maximum(rng.normal(size=(n, width)), 0).astype(np.float16)


def near_duplicates(rng: np.random.Generator, n: int, width: int) -> Half:
    """Rows that differ from one another in the last bit of one value or two."""
    rows = features(rng, 1, width).repeat(n, 0)
    for row in rows:
        at = rng.integers(0, width, 2)
        row[at] = np.nextafter(row[at], np.float16(np.inf))
    return rows


def far_out(rng: np.random.Generator, n: int, width: int) -> Half:
    """Norms near the end of float16, differences of 32: float32's product cannot tell them apart."""
    return (60_000 + 32 * rng.integers(-2, 3, (n, width))).astype(np.float16)


def copies(rng: np.random.Generator, n: int, width: int) -> Half:
    """Three different rows, over and over."""
    return features(rng, 3, width)[rng.integers(0, 3, n)]


def mixed_sizes(rng: np.random.Generator, n: int, width: int) -> Half:
    """Rows from subnormal to as large as they can be, and some that are 0."""
    scale = 2.0 ** rng.integers(-26, 14, (n, 1))
    return (rng.normal(size=(n, width)) * scale).astype(np.float16)


KINDS: tuple[Callable[[np.random.Generator, int, int], Half], ...] = (
    features,
    near_duplicates,
    far_out,
    copies,
    mixed_sizes,
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "width"), [(700, 64), (333, 37), (5, 3), (1, 1)])
def test_the_nearest_are_those_of_float64(
    tmp_path: Path, kind: Callable[..., Half], engine: Engine, n: int, width: int
):
    rng = np.random.default_rng([n, width])
    rows = kind(rng, n, width)
    file = saved(tmp_path / "rows.npy", rows)
    own = rng.integers(0, n, 5)
    for k in (1, 6, n, n + 3):
        check(file, rows, rows[own], k, engine)  # each finds itself, or a copy that comes first
        check(file, rows, rows[own], k, engine, own)
        check(file, rows, kind(rng, 3, width), k, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_groups_of_queries_change_nothing(
    tmp_path: Path, kind: Callable[..., Half], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    rows = kind(rng, 257, 24)
    file = saved(tmp_path / "rows.npy", rows)
    monkeypatch.setattr(module, "BLOCK_ROWS", 50)
    monkeypatch.setattr(module, "QUERIES", 4)
    monkeypatch.setattr(module, "PAIR_VALUES", 100)
    own = np.array([0, 256, -1, 49, 50, -1, 200, 3, 3])
    counts: list[int] = []
    check(file, rows, rows[own], 6, engine, own)
    search(file, rows[own], 6, engine=engine, advance=counts.append)
    assert sum(counts) == passes(len(own)) * len(rows) == 3 * 257


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [7, 1000])
def test_bounds_are_below_the_distances(kind: Callable[..., Half], width: int) -> None:
    rng = np.random.default_rng(width)
    rows, some = kind(rng, 300, width), kind(rng, 20, width)
    values = torch.from_numpy(rows.astype(np.float32))
    block = Block(values, torch.linalg.vector_norm(values, dim=1).square())
    norms = (some.astype(np.float64) ** 2).sum(1)
    queries = Queries(torch.from_numpy(some.astype(np.float32)), norms, slack_of(width), 6)
    bounds = product_bounds(queries, block, torch.zeros(20, 1)).double().numpy()
    squares = np.array([all_squares(rows, query) for query in some])
    assert (bounds + (1 - queries.slack) * norms[:, None] <= squares).all()


def resident(field: str) -> int:
    """Bytes of this process's memory, by /proc."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = saved(tmp_path / "small.npy", features(rng, 2048, 256))
    with (tmp_path / "large.npy").open("wb") as stream:
        stream.write(bytes(128))
        for _ in range(80):
            stream.write(features(rng, 4096, 64).tobytes())
    large = RowsFile(tmp_path / "large.npy", 128, 80 * 1024, 256)  # 42 MB, in float32 84
    queries = features(rng, 64, 256)
    search(small, queries, 6)  # what threads and libraries take once
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError as error:
        pytest.skip(f"this system keeps a process's peak ({error})")
    before = resident("VmRSS")
    search(large, queries, 6)
    assert resident("VmHWM") - before < 20e6  # a block in both forms is 3 MB, its product with the queries 0.5


def test_a_file_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    rows = features(np.random.default_rng(0), 40, 8)
    file = saved(tmp_path / "rows.npy", rows)
    longer = RowsFile(file.path, file.offset, 41, 8)
    with pytest.raises(InputError, match=r"ends before row 41"):
        search(longer, rows[:1], 1)
    rows[17, 3] = np.nan
    with pytest.raises(InputError, match=r"damaged at row 17"):
        search(saved(tmp_path / "rows.npy", rows), rows[:1], 1)


def test_without_faiss_its_engine_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[faiss\]'"):
        engine_of("faiss")
