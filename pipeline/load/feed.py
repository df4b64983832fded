"""Batches by the DALI graph: what it is fed, and how a picture that it cannot decode is taken out of it."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import simplejpeg
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.tensors import TensorCPU

from pipeline.load.inputs import Replace, SampleInputs
from pipeline.load.storage import Location, SampleStore
from pipeline.picture.raw import npy_square

Feed = Callable[[], tuple[Any, ...]]


def graph_batches(
    store: SampleStore,
    rows: Iterator[SampleInputs],
    replace: Replace,
    graph_inputs: Callable[[SampleInputs], tuple[Any, ...]],
    build: Callable[[Feed], Pipeline],
) -> Iterator[tuple[Any, SampleInputs]]:
    """The graph's pictures of each of the rows, in order, and the rows as they came to be.

    A picture that DALI cannot decode costs its whole batch and the graph: the samples to blame are found and replaced,
    and another graph goes on with the batches that have not been handed over. graph_inputs: what the graph takes; it is
    kept until its batch is out, so that DALI need not copy it.
    """
    unusable = set[Location]()
    waiting = deque[tuple[SampleInputs, tuple[Any, ...]]]()  # what a graph was given and has not handed over
    again = deque[SampleInputs]()  # what another graph was given in vain

    def is_sound(location: Location, whole: bool = False) -> bool:
        return location not in unusable and _is_picture(store, location, whole)

    def feed() -> tuple[Any, ...]:
        batch = again.popleft() if again else next(rows, None)
        if batch is None:
            raise StopIteration
        damaged = [row for row, location in enumerate(batch.locations) if not is_sound(location)]
        batch = replace(batch, damaged, partial(is_sound, whole=True))
        files, *drawn = graph_inputs(batch)
        given = [TensorCPU(file) for file in files], *drawn  # DALI takes its own tensors in half the time of arrays
        waiting.append((batch, given))
        return given

    while True:
        graph = build(feed)
        while True:
            try:
                (pictures,) = graph.run()
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
