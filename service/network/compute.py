"""Chunks of work on all cores, one thread each: a chunk's result is the same however many cores there are.

A matrix product may sum in another order when it has more threads, or more rows. So what must not depend on the
machine's cores, on ranks or on batches is computed in chunks of one shape, each by one thread.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from pipeline.host.cpus import usable_cores

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def map_chunks(work: Callable[[Chunk], Result], chunks: Iterable[Chunk], device: torch.device) -> Iterator[Result]:
    """`work` of each chunk, in order: on a CPU in as many threads as this process has cores or torch was given."""
    if device.type != "cpu":
        yield from map(work, chunks)
        return
    threads = min(torch.get_num_threads(), usable_cores())
    with _one_thread_each(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: deque[Future[Result]] = deque()
        for chunk in chunks:
            pending.append(pool.submit(work, chunk))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # what the pool's threads start from
    try:
        yield
    finally:
        torch.set_num_threads(before)
