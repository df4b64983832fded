"""Asks for samples' bytes before they are needed, which is possible because their order is known.

A disk that is slow, and a store that is far, are as fast as any as long as enough is asked for: what matters is how
many bytes are on their way, not how many batches.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from pipeline.load.inputs import SampleInputs
from pipeline.load.order import Shuffle, blocks_needed
from pipeline.load.storage import SampleStore

_MORE: Final = 3  # batches asked for while one is used, until all are: the first does not wait for all of them

Ask = Callable[[SampleInputs], None]


def asked_ahead(rows: Iterable[SampleInputs], ask: Ask, *, batches: int, most_bytes: int) -> Iterator[SampleInputs]:
    """The rows; `ask` is told of each so many batches early, and of more until `most_bytes` are asked for."""
    ahead, waiting, rows = deque[tuple[SampleInputs, int]](), 0, iter(rows)
    while True:
        more = 0
        while len(ahead) <= batches or (waiting < most_bytes and more < _MORE):
            if (row := next(rows, None)) is None:
                break
            ask(row)
            size = sum(location[2] for location in row.locations)
            ahead.append((row, size))
            waiting, more = waiting + size, more + 1
        if not ahead:
            return
        row, size = ahead.popleft()
        waiting -= size
        yield row


def ask_for_blocks(store: SampleStore, seed: int, shuffle: Shuffle) -> Ask:
    """Asks for whole blocks when their first sample is needed, wherever the samples of this rank lie among them."""
    asked: int | None = None  # positions before it

    def ask(rows: SampleInputs) -> None:
        nonlocal asked
        stop = int(rows.positions[-1]) + 1
        if asked is None:  # what the first batch waits for comes first, then the blocks that are under way
            store.prefetch(rows.locations)
            asked = max(int(rows.positions[0]) - shuffle.window, 0)
        for begin, end in blocks_needed(seed, len(store), asked, stop, shuffle) if stop > asked else ():
            store.prefetch(store.locate(np.arange(begin, end)))
        asked = max(asked, stop)
        store.prefetch(rows.locations)

    return ask


def ask_for_samples(store: SampleStore) -> Ask:
    """Asks for the samples themselves; those that follow one another in a shard are one range."""
    return lambda rows: store.prefetch(rows.locations)
