"""The nearest rows of a file of features to each query by Euclidean distance, exactly, in bounded memory.

The file is read in blocks, a thread each. A block's squared distances are estimated for all queries together by one
matrix product in float32,

    |q - x|^2 = |q|^2 - 2 q.x + |x|^2,

whose errors can be larger than the distances: |q|^2 and 2 q.x cancel. So the product only says what to leave out. Every
estimate is lowered by the most that it can be too high (`bounds.slack_of`), and a row is left out only if this lower
bound exceeds the distance of a query's k-th nearest row so far. Every other row's distance is computed anew as the sum
of (q - x)^2 in float64, and by that alone rows are chosen and ordered; of equally distant rows the lower comes first.

What is guaranteed: the result is that of computing all distances in float64 and sorting them, whatever the values, the
block, the engine or the number of cores. There is no margin that could be too small: where many rows are as near as the
bound is wide (copies of one picture, features that hardly differ), more distances are computed, and it takes longer.
float64 itself is exact to width * 1.1e-16 of a squared distance.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.command import InputError
from service.network.compute import map_chunks
from service.retrieval.bounds import Block, Float, LowerBounds, Queries, product_bounds, slack_of
from service.retrieval.faiss_engine import load_faiss

BLOCK_VALUES: Final = 1 << 20  # of a block: in float16 and float32 6 MB, which a core's cache nearly holds
BLOCK_ROWS: Final = 2048  # at most, for narrow features
QUERIES: Final = 1024  # that are looked for in one pass through the file
PAIR_VALUES: Final = 1 << 19  # of the differences that are computed at a time: 4 MB

Engine = Literal["blocks", "faiss"]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class RowsFile:
    """(rows, width) float16 in a file, little-endian, row by row from a byte on."""

    path: Path
    offset: int
    rows: int
    width: int

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """Some rows."""
        out = np.empty((stop - start, self.width), np.float16)
        with self.path.open("rb") as stream:
            self.read_into(stream.fileno(), start, out)
        return out

    def read_into(self, descriptor: int, start: int, out: NDArray[np.float16]) -> None:
        """Fill (n, width) with the rows from `start` on; InputError where the file has become shorter."""
        # Reading costs a copy, which stays in the cache, and is faster than to map the file: that costs page faults.
        left, place = out.reshape(-1).view(np.uint8).data, self.offset + start * self.width * 2
        while left:
            count = os.preadv(descriptor, [left], place)
            if not count:
                raise InputError(f"{self.path} ends before row {start + len(out):,}; copy it again or index again")
            left, place = left[count:], place + count


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of each of Q queries, the nearest first; where there are fewer than k, row -1 at infinity."""

    rows: Whole  # (Q, k)
    distances: Float  # (Q, k) Euclidean


class Hits(NamedTuple):
    """Pairs of a query and a row, and how far from each other they are."""

    query: Whole  # (P,)
    row: Whole  # (P,)
    square: Float  # (P,) squared distance


def search(
    file: RowsFile,
    queries: NDArray[np.float16],
    k: int,
    *,
    own: Whole | None = None,
    engine: Engine = "blocks",
    advance: Callable[[int], None] = lambda count: None,
) -> Neighbours:
    """The k nearest rows to each of (Q, width) queries.

    own: (Q,) for each query the row that it is, which is left out, or -1. advance: called with counts of rows, which
    are read once for every QUERIES queries. InputError where the engine is not installed, or the file damaged.
    """
    bounds = engine_of(engine)
    own = np.full(len(queries), -1) if own is None else own
    parts = [
        _search(file, queries[start : start + QUERIES], k, own[start : start + QUERIES], bounds, advance)
        for start in range(0, len(queries), QUERIES)
    ]
    return Neighbours(np.concatenate([part.rows for part in parts]), np.concatenate([part.distances for part in parts]))


def engine_of(name: Engine) -> LowerBounds:
    """An engine; InputError where it is not installed."""
    return product_bounds if name == "blocks" else load_faiss()


def passes(queries: int) -> int:
    """How often the file is read for so many queries."""
    return -(-queries // QUERIES)


def _search(
    file: RowsFile,
    queries: NDArray[np.float16],
    k: int,
    own: Whole,
    bounds: LowerBounds,
    advance: Callable[[int], None],
) -> Neighbours:
    with file.path.open("rb") as stream:
        one_pass = _Pass(file, stream.fileno(), queries, k, own, bounds)
        size = max(min(BLOCK_VALUES // file.width, BLOCK_ROWS), 1)
        blocks = (range(start, min(start + size, file.rows)) for start in range(0, file.rows, size))
        for count, hits in map_chunks(one_pass.look, blocks, torch.device("cpu")):
            if len(hits.query):
                one_pass.keep(hits)
            advance(count)
    return Neighbours(one_pass.rows, np.sqrt(one_pass.squares))


class _Pass:
    """One pass through the file: the k nearest rows so far, and blocks that are held against them.

    Threads look at blocks with limits that another block may just have lowered, which costs work and no row.
    """

    def __init__(
        self,
        file: RowsFile,
        descriptor: int,
        queries: NDArray[np.float16],
        k: int,
        own: Whole,
        bounds: LowerBounds,
    ):
        self.file, self.descriptor, self.own, self.bounds = file, descriptor, own, bounds
        self.values = queries.astype(np.float32)
        norms = np.square(self.values, dtype=np.float64).sum(1)
        self.queries = Queries(torch.from_numpy(self.values), norms, slack_of(file.width), k)
        self.rows = np.full((len(queries), k), -1)
        self.squares = np.full((len(queries), k), np.inf)
        self._limit()
        self._buffers = threading.local()

    def keep(self, hits: Hits) -> None:
        """Take the pairs among the nearest, as far as they belong there."""
        k, touched = self.queries.k, np.unique(hits.query)
        query = np.concatenate([touched.repeat(k), hits.query])
        row = np.concatenate([self.rows[touched].ravel(), hits.row])
        square = np.concatenate([self.squares[touched].ravel(), hits.square])
        best = _best(Hits(query, row, square), k)
        self.rows[touched] = best.row.reshape(-1, k)
        self.squares[touched] = best.square.reshape(-1, k)
        self._limit()

    def _limit(self) -> None:
        limits = self.squares[:, -1].copy()
        self.limits = limits, self.queries.thresholds(limits)  # both at once, for threads that read them

    def look(self, rows: range) -> tuple[int, Hits]:
        """How many rows were looked at, and which may be among the nearest: at most k for each query."""
        block, (limits, thresholds) = self._read(rows), self.limits
        bounds = self.bounds(self.queries, block, thresholds)
        wanted = bounds <= thresholds
        itself = np.flatnonzero((self.own >= rows.start) & (self.own < rows.stop))
        wanted[itself, self.own[itself] - rows.start] = False
        if not wanted.any():
            return len(rows), Hits(_NONE, _NONE, np.zeros(0))
        self._thin(wanted, bounds, block, limits)
        query, row = (each.numpy() for each in wanted.nonzero(as_tuple=True))
        found = Hits(query, row + rows.start, self._squares(block, query, row))
        return len(rows), _best(found, self.queries.k)

    def _thin(self, wanted: Tensor, bounds: Tensor, block: Block, limits: Float) -> None:
        """Of queries that want more than k rows: lower the limit to their k likeliest rows' largest distance."""
        k = self.queries.k
        crowded = (wanted.sum(1) > k).nonzero().flatten()
        if not len(crowded):
            return
        likeliest = bounds[crowded].masked_fill(~wanted[crowded], torch.inf).topk(k, largest=False).indices
        squares = self._squares(block, crowded.repeat_interleave(k).numpy(), likeliest.flatten().numpy())
        lowered = limits.copy()
        lowered[crowded.numpy()] = np.minimum(limits[crowded.numpy()], squares.reshape(-1, k).max(1))
        wanted &= bounds <= self.queries.thresholds(lowered)

    def _squares(self, block: Block, query: Whole, row: Whole) -> Float:
        """(P,) squared distances in float64; numpy sums each row in one order, so equal rows are equally distant."""
        values, out = block.values.numpy(), np.empty(len(query))
        each = max(PAIR_VALUES // self.file.width, 1)
        for start in range(0, len(query), each):
            part = slice(start, start + each)
            difference = values[row[part]].astype(np.float64)
            difference -= self.values[query[part]]
            np.square(difference, out=difference)
            out[part] = difference.sum(1)
        return out

    def _read(self, rows: range) -> Block:
        halves, values = self._buffer(rows)
        self.file.read_into(self.descriptor, rows.start, halves.numpy())
        values.copy_(halves)
        norms = torch.linalg.vector_norm(values, dim=1).square_()
        if not norms.isfinite().all():
            row = rows.start + int(norms.isfinite().logical_not().nonzero()[0])
            raise InputError(f"{self.file.path} is damaged at row {row:,}, expected finite numbers; index again")
        return Block(values, norms)

    def _buffer(self, rows: range) -> tuple[Tensor, Tensor]:
        """Room for the rows in float16 and in float32, a thread's own, which its next block overwrites."""
        if not hasattr(self._buffers, "pair"):
            shape = rows.stop - rows.start, self.file.width
            self._buffers.pair = torch.empty(shape, dtype=torch.float16), torch.empty(shape)
        halves, values = self._buffers.pair
        if len(halves) < len(rows):  # the first block was the last one, which is shorter
            del self._buffers.pair
            return self._buffer(rows)
        return halves[: len(rows)], values[: len(rows)]


_NONE: Final = np.zeros(0, np.int64)


def _best(hits: Hits, k: int) -> Hits:
    """The k nearest rows of each query, queries ascending, the nearest first, of equally distant ones the lower."""
    order = np.lexsort((hits.row, hits.square, hits.query))
    query = hits.query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    taken = order[rank < k]
    return Hits(hits.query[taken], hits.row[taken], hits.square[taken])
