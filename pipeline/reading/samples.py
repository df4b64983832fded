"""A split's samples in a store: asked for ahead of time, held against their CRCs, kept on this host's disk.

What a store sends is not trusted: bytes that are short or others are asked for again, by requests of their own, and
what stays wrong is handed on, to be counted as damaged as it would be on a disk.
"""

import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pipeline.folder import Folder
from pipeline.reading.cache import Index, Segments
from pipeline.reading.fetch import read_range
from pipeline.reading.passing import Passing
from pipeline.reading.workers import Urgency, outcome, spare_workers, workers

TRIES: Final = 3  # of a sample whose bytes are wrong
SLOW_SECONDS: float = 5.0  # after which a sample that somebody waits for is asked for a second time
_REQUEST_BYTES: Final = 8 * 2**20  # at most, of samples that follow one another
GAP_BYTES: Final = 16 * 2**10  # between samples of one request, at most: a tar's headers, labels and padding
_FILL_SHARE: Final = 16  # bytes that are fetched to fill the cache, for one that was asked for by itself
_FILL_SAMPLES: Final = 256  # of a request that fills it
_FILLS: Final = 4  # at a time
_PASSING_BYTES: Final = 512 * 2**20  # of samples that have come and were not kept, until they are read
_READ_BYTES: Final = 64 * 2**20  # of those that were read, and may be once more


class RemoteSamples:
    """A split's samples, by their numbers in the table."""

    def __init__(self, folder: Folder, names: Sequence[str], table: NDArray[np.void], segments: Segments, index: Index):
        self._folder, self._names = folder, names
        self._shards, self._offsets, self._sizes, self._crcs = (
            np.ascontiguousarray(table[name]) for name in ("shard", "offset", "size", "crc32")
        )
        self._segments, self._index = segments, index
        self._lock = threading.Lock()
        self._coming: dict[int, Future[bytes]] = {}
        self._together: dict[int, list[int]] = {}  # for one that is coming, those of its request
        self._due = self._filled = self._filling = 0
        self._first_fill = secrets.randbelow(max(len(table), 1))  # so that ranks share the work
        self._passing, self._read = Passing(_PASSING_BYTES), Passing(_READ_BYTES)

    def ask(self, samples: range) -> None:
        """Have samples that follow one another in the table here soon; returns at once."""
        missing: list[int] = []
        for sample in samples:
            if (place := self._index.place(sample)) is not None:
                self._segments.advise(*place, int(self._sizes[sample]))
            else:
                missing.append(sample)
        for run in self._runs(missing):
            self._request(run, Urgency.AHEAD)
            if len(run) == 1:
                self._due += _FILL_SHARE * int(self._sizes[run[0]])
        self._fill()

    def get(self, sample: int) -> bytes:
        """A sample's bytes, which are wrong only if the store has sent wrong ones every time.

        InputError where the store keeps failing, RuntimeError where the process is ending before they have come.
        """
        with self._lock:
            coming, data = self._coming.get(sample), self._passed(sample)
        if coming is not None:
            return self._wait(sample, coming)
        if data is None:
            data = self._kept(sample)
        if data is not None:
            return data
        self._request([sample], Urgency.WAITED_FOR)
        return self.get(sample)

    def _passed(self, sample: int) -> bytes | None:
        """A sample that has come and was not kept; called with the lock."""
        if (data := self._passing.take(sample)) is None:
            return self._read.find(sample)
        self._read.put(sample, data)
        return data

    def _kept(self, sample: int) -> bytes | None:
        """A sample from this host's disk; one that is not as it was is forgotten."""
        if (place := self._index.place(sample)) is None:
            return None
        data = self._segments.read(*place, int(self._sizes[sample]))
        if self._is_sound(sample, data):
            return data
        self._index.forget(sample)
        return None

    def _is_sound(self, sample: int, data: bytes) -> bool:
        return len(data) == self._sizes[sample] and crc32(data) == self._crcs[sample]

    def _runs(self, samples: Sequence[int], gap: int = GAP_BYTES) -> list[list[int]]:
        """Samples in ascending order -> those that one request brings: of one shard, close together, not too many."""
        runs: list[list[int]] = []
        for sample in samples:
            shard, begin, end = self._extent(sample)
            if runs:
                last_shard, _, last_end = self._extent(runs[-1][-1])
                close = shard == last_shard and 0 <= begin - last_end <= gap
                if close and end - self._extent(runs[-1][0])[1] <= _REQUEST_BYTES:
                    runs[-1].append(sample)
                    continue
            runs.append([sample])
        return runs

    def _extent(self, sample: int) -> tuple[int, int, int]:
        """A sample's shard, and where in it its bytes begin and end."""
        begin = int(self._offsets[sample])
        return int(self._shards[sample]), begin, begin + int(self._sizes[sample])

    def _request(self, run: Sequence[int], urgency: Urgency) -> None:
        """Ask for samples of one range, but for those that are coming or have come."""
        if new := self._claimed(run):
            workers().do(partial(self._fetch, new), urgency)

    def _claimed(self, run: Sequence[int]) -> list[int]:
        """Those that are neither coming nor have come, and are coming now."""
        with self._lock:
            here = (self._coming, self._passing, self._index)
            new = [sample for sample in run if not any(sample in each for each in here)]
            self._coming |= {sample: Future() for sample in new}
            together = list(new)
            self._together |= {sample: together for sample in new}
        return new

    def _fill(self) -> None:
        """Fetch what the cache has room for by few large requests, beside the many small ones of a random order.

        A small request takes as much of the processor as a large one. So that a short run does not fetch a whole data
        set, a multiple of the bytes that were asked for is fetched, and no more.
        """
        while chunk := self._next_fill():
            workers().do(partial(self._fill_with, sorted(chunk)), Urgency.SPARE)

    def _next_fill(self) -> list[int]:
        """The samples to go on with; none while enough are on their way, or no more are due."""
        samples = len(self._sizes)
        with self._lock:
            enough = self._filling >= _FILLS or self._due <= 0 or self._filled >= samples
            if enough or not self._segments.has_room:
                return []
            stop = min(self._filled + _FILL_SAMPLES, samples)
            chunk = (np.arange(self._filled, stop) + self._first_fill) % samples
            self._filled, self._filling = stop, self._filling + 1
            self._due -= int(self._sizes[chunk].sum())
        return chunk.tolist()

    def _fill_with(self, samples: Sequence[int]) -> None:
        missing = [sample for sample in samples if sample not in self._index]
        for run in self._runs(missing, gap=_REQUEST_BYTES):
            if new := self._claimed(run):
                self._fetch(new)
        with self._lock:
            self._filling -= 1

    def _fetch(self, run: Sequence[int], *, second: bool = False) -> None:
        """Fetch samples of one range and hand each on. second: while the first request for them is on its way."""
        shard, begin, _ = self._extent(run[0])
        try:
            data = read_range(self._folder, self._names[shard], begin, self._extent(run[-1])[2])
        except Exception as error:
            for sample in () if second else run:
                self._finish(sample, error)
            return
        for sample in run:
            _, start, stop = self._extent(sample)
            piece = data[start - begin : stop - begin]
            if self._is_sound(sample, piece):
                self._finish(sample, piece)
            else:  # by a request of its own, so that the others need not wait
                workers().do(partial(self._fetch_alone, sample, second=second), Urgency.WAITED_FOR)

    def _fetch_alone(self, sample: int, *, second: bool = False) -> None:
        """Fetch a sample by requests of its own. second: while the first is on its way, and may be the better one."""
        try:
            data = self._try_alone(sample)
        except Exception as error:
            if not second:
                self._finish(sample, error)
            return
        if not second or self._is_sound(sample, data):
            self._finish(sample, data)

    def _try_alone(self, sample: int) -> bytes:
        """The sample's bytes; what came last where all were wrong."""
        shard, start, stop = self._extent(sample)
        data = b""
        for _ in range(TRIES - 1):
            data = read_range(self._folder, self._names[shard], start, stop)
            if self._is_sound(sample, data):
                break
        return data

    def _finish(self, sample: int, come: bytes | Exception) -> None:
        """Keep a sample or let it pass, then tell who waits: whoever looks for it finds it coming or come."""
        with self._lock:
            future = self._coming.get(sample)
            if future is None or future.running():  # a second request was faster
                return
            future.set_running_or_notify_cancel()
        if isinstance(come, Exception):
            with self._lock:
                del self._coming[sample], self._together[sample]
            future.set_exception(come)
            return
        place = self._segments.append(come) if self._is_sound(sample, come) else None
        if place is not None:
            self._index.set(sample, place)
        with self._lock:
            if place is None:
                self._passing.put(sample, come)
            del self._coming[sample], self._together[sample]
        future.set_result(come)

    def _wait(self, sample: int, coming: "Future[bytes]") -> bytes:
        """What is coming; where that takes long, all of its request is asked for once more: it may hang."""
        try:
            data = outcome(coming, SLOW_SECONDS)
        except TimeoutError:
            with self._lock:
                together = self._together.get(sample, [])
                again = [each for each in together if each in self._coming]
                together.clear()  # once is enough
            if again:
                spare_workers().do(partial(self._fetch, again, second=True), Urgency.WAITED_FOR)
            data = outcome(coming)
        with self._lock:
            self._passed(sample)
        return data
