"""Batches by the DALI graph: what it is fed, and how a picture that it cannot decode is taken out of it.

DALI asks for what it is fed in the thread that trains, once a batch. So that thread does little for a sample: threads
of this file check the bytes of the batches that come next, most of it without Python's lock.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import simplejpeg
import torch
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from pipeline.load.crops import parts_of
from pipeline.load.inputs import Replace, SampleInputs
from pipeline.load.storage import Location, SampleStore
from pipeline.picture.raw import npy_square

CHECK_THREADS: Final = 2  # more would rather wait for Python's lock than check
CHECKED_AHEAD: Final = 2  # batches that are being checked while one is fed

Feed = Callable[[], tuple[Any, ...]]


def graph_batches(
    store: SampleStore,
    rows: Iterator[SampleInputs],
    replace: Replace,
    graph_inputs: Callable[[SampleInputs], tuple[Any, ...]],
    build: Callable[[Feed], Pipeline],
    on_gpu: bool = False,
) -> Generator[tuple[Any, SampleInputs], None, None]:
    """The graph's pictures of each of the rows, in order, and the rows as they came to be.

    A picture that DALI cannot decode costs its whole batch and the graph: the samples to blame are found and replaced,
    and another graph goes on with the batches that have not been handed over. graph_inputs: what the graph takes; it is
    kept until its batch is out, so that DALI need not copy it, and no thread of DALI's is the last to drop it, which
    takes Python's lock for each sample. on_gpu: torch's current stream waits for the pictures, and the host does not.
    """
    unusable = set[Location]()
    waiting = deque[tuple[SampleInputs, tuple[Any, ...]]]()  # what a graph was given and has not handed over
    again = deque[SampleInputs]()  # what another graph was given in vain

    def is_sound(location: Location, whole: bool = False) -> bool:
        return location not in unusable and _is_picture(store, location, whole)

    def feed() -> tuple[Any, ...]:
        if again:
            batch = again.popleft()
            damaged = _damaged(batch.locations, range(len(batch.locations)), is_sound)
        else:
            batch, damaged = next(checked)  # its StopIteration ends the graph
            if unusable:  # more may be since the batch was checked
                found = {row for row, location in enumerate(batch.locations) if location in unusable}
                damaged = sorted(found.union(damaged))
        batch = replace(batch, damaged, partial(is_sound, whole=True))
        files, *drawn = graph_inputs(batch)
        given = _tensor_list(files, store.kind == "raw"), *drawn
        waiting.append((batch, given))
        return given

    process, pool = os.getpid(), ThreadPoolExecutor(CHECK_THREADS, "checks")
    checked = _checked(pool, rows, is_sound)
    try:
        while True:
            graph = build(feed)
            while True:
                try:
                    (pictures,) = graph.run(torch.cuda.current_stream()) if on_gpu else graph.run()
                except StopIteration:
                    return
                except RuntimeError as error:
                    failure = error.with_traceback(None)  # which holds the graph
                    break
                yield pictures, waiting.popleft()[0]
            del graph  # two would not fit into every GPU's memory
            lost = [batch for batch, _ in waiting]
            unusable |= _culprits(store, lost, failure)
            again.extendleft(reversed(lost))
            waiting.clear()
    finally:
        if os.getpid() == process:  # a fork's child has no such threads
            pool.shutdown(wait=False, cancel_futures=True)


def _checked(
    pool: ThreadPoolExecutor, rows: Iterator[SampleInputs], is_sound: Callable[[Location], bool]
) -> Iterator[tuple[SampleInputs, list[int]]]:
    """Each of the rows, in order, and which of its samples are damaged; the next ones are being checked meanwhile."""
    begun = deque[Any]()
    while True:
        while len(begun) <= CHECKED_AHEAD and (batch := next(rows, None)) is not None:
            parts = parts_of(len(batch.locations), CHECK_THREADS)
            begun.append((batch, [pool.submit(_damaged, batch.locations, part, is_sound) for part in parts]))
        if not begun:
            return
        batch, parts = begun.popleft()
        yield batch, [row for part in parts for row in part.result()]


def _damaged(locations: Sequence[Location], which: range, is_sound: Callable[[Location], bool]) -> list[int]:
    """Those of these rows whose samples are not sound."""
    return [row for row in which if not is_sound(locations[row])]


def _tensor_list(files: Sequence[Any], raw: bool) -> TensorListCPU:
    """The files, none copied, as DALI takes them in a third of the time that arrays need."""
    make: Any = TensorListCPU  # whose stubs lack `contiguous`
    return make([TensorCPU(file) for file in files], "HWC" if raw else "", contiguous=False)


def _culprits(store: SampleStore, lost: list[SampleInputs], failure: RuntimeError) -> set[Location]:
    """Samples of these batches that do not decode; the failure, with where it happened, if all do."""
    found = {location for batch in lost for location in batch.locations if not _is_picture(store, location, whole=True)}
    if found:
        return found
    if not lost:
        raise failure
    names = sorted({store.shards[shard].name for shard, *_ in lost[0].locations})
    where = f"position {lost[0].positions[0]} and after, of {store.split}/{', '.join(names)}"
    raise RuntimeError(f"DALI fails at {where}, whose pictures libjpeg-turbo decodes: {failure}") from failure


def _is_picture(store: SampleStore, location: Location, whole: bool) -> bool:
    """Whether the bytes are those that were sharded, and a picture, of the size that all have where all have one.

    By its header; whole: by decoding it. Of a picture of another size the graph would silently take another crop.
    """
    try:
        data, size = store.read_intact(location), store.size
        if store.kind == "raw":
            return len(npy_square(data, size)) == size
        if whole:
            height, width, _ = simplejpeg.decode_jpeg(data, "RGB").shape
        elif size:
            height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        else:
            return True
    except ValueError:
        return False
    except KeyError:  # chroma of a layout that simplejpeg has no name for
        return True
    return not size or height == width == size
