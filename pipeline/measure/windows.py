"""One measurement of a side for some seconds; sides take turns, so that what else the machine does falls on all."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import Advance

_PROCESS: Final = Path("/proc/self")
_CLEAR_PEAK: Final = "5"  # to clear_refs: the peak of resident memory begins anew, see proc(5)
_LEAST_BATCHES: Final = 3  # of a window, however short


class Work(NamedTuple):
    """A batch that a side has done."""

    images: int
    bytes: int  # as stored
    batch: Any = None  # what a consumer is given


Stream = Generator[Work, None, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """What a side did for some seconds."""

    images: int
    bytes: int
    seconds: float
    cpu_seconds: float
    waits: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # seconds until each batch came
    peak_rss: int = 0  # bytes of resident memory, those of mapped shards among them
    peak_own: int = 0  # bytes of it that are this process's own
    engine_use: float | None = None  # 0..1, of a GPU's JPEG engines

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """Something that is measured."""

    name: str
    run: Callable[[float], Window]  # seconds -> what was done in about so many


def take_turns(sides: Sequence[Side], rounds: int, seconds: float, advance: Advance) -> dict[str, list[Window]]:
    """`rounds` windows of each side, by name; every other round goes backwards, so that none is always the first."""
    windows: dict[str, list[Window]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            windows[side.name].append(side.run(seconds))
            advance(1, side.name)
    return windows


def time_stream(
    start: Callable[[], Stream],
    seconds: float,
    *,
    warm_up: int,
    consume: Callable[[Any], None] = lambda batch: None,
    finish: Callable[[], None] = lambda: None,
    engine_use: Callable[[], float | None] = lambda: None,
) -> Window:
    """Take batches from a stream for some seconds, after some that are not counted: those fill its queue.

    consume: what is done with a batch, which is no waiting. finish: waits until what was begun is done.
    """
    with closing(start()) as stream:
        for _ in range(warm_up):
            consume(next(stream).batch)
        finish()
        clear_peak()
        images = size = own = 0
        waits: list[float] = []
        cpu, begin = time.process_time(), time.perf_counter()
        now = begin
        while now - begin < seconds or len(waits) < _LEAST_BATCHES:
            asked = time.perf_counter()
            work = next(stream)
            waits.append(time.perf_counter() - asked)
            images, size = images + work.images, size + work.bytes
            consume(work.batch)
            own = max(own, own_memory())
            now = time.perf_counter()
        finish()
        ended = time.perf_counter()
        return Window(
            images=images,
            bytes=size,
            seconds=ended - begin,
            cpu_seconds=time.process_time() - cpu,
            waits=np.array(waits),
            peak_rss=status_bytes("VmHWM"),
            peak_own=own,
            engine_use=engine_use(),
        )


def clear_peak() -> None:
    """Let the peak of resident memory begin anew; where the kernel does not let it be, it is the process's."""
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")


def own_memory() -> int:
    """Bytes of resident memory that are no file's."""
    return status_bytes("RssAnon") + status_bytes("RssShmem")


def status_bytes(name: str) -> int:
    """A size of /proc/self/status; 0 where the kernel does not say."""
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
    return 0
