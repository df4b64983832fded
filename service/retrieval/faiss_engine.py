"""Bounds by faiss, where it is installed: it says which rows of a block are nearest, and about how far they are."""

import importlib
import warnings
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.command import InputError
from service.retrieval.bounds import Block, LowerBounds, Queries, product_bounds

# Rows beyond k that faiss is asked for, so that what it leaves out is beyond the k-th in most blocks.
MARGIN: Final = 32


def load_faiss() -> LowerBounds:
    """The engine; InputError where faiss is not installed."""
    try:
        with warnings.catch_warnings():  # of its bindings
            warnings.simplefilter("ignore", DeprecationWarning)
            faiss: Any = importlib.import_module("faiss")
    except ImportError as error:
        raise InputError(
            "--engine faiss needs faiss, expected it installed; pip install -e '.[faiss]' or use --engine blocks"
        ) from error
    return lambda queries, block, thresholds: _bounds(faiss, queries, block, thresholds)


def _bounds(faiss: Any, queries: Queries, block: Block, thresholds: Tensor) -> Tensor:
    """Lower bounds of the rows that faiss finds nearest; of all rows for queries whose other rows may count as well."""
    faiss.omp_set_num_threads(1)  # of this thread, which is one of as many as there are cores
    count = min(queries.k + MARGIN, len(block.values))
    squares, rows = faiss.knn(queries.values.numpy(), block.values.numpy(), count)
    # faiss sums squared differences, or makes the same product as ours: either errs by less than slack_of allows.
    error = torch.from_numpy(queries.norms)[:, None] + queries.slack * float(block.norms.max())
    found = (torch.from_numpy(squares).double() - error).float()
    bounds = torch.full((len(squares), len(block.values)), torch.inf).scatter_(1, torch.from_numpy(rows), found)
    cut = (found[:, -1:] <= thresholds).any(1).nonzero().flatten()
    if count < len(block.values) and len(cut):
        some = Queries(queries.values[cut], queries.norms[cut.numpy()], queries.slack, queries.k)
        bounds[cut] = product_bounds(some, block, thresholds[cut])
    return bounds
