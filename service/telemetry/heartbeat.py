"""Liveness by progress: how long ago the worker last got something done, and how long the next may take."""

import time
from collections.abc import Callable
from typing import Any, Final

COMPILE_FACTOR: Final = 5  # compiling may take this many times as long as any other progress


class Heartbeat:
    """Beats whenever something was done; a worker without a beat for longer than the limit has stalled."""

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock, self._limit = clock, limit_seconds
        self.beat("starting", COMPILE_FACTOR)

    def beat(self, phase: str, limit_factor: float = 1.0) -> None:
        """Record that something was done; the next beat may take `patience` times the usual limit."""
        self._last = (self._clock(), phase, self._limit * limit_factor)

    @property
    def phase(self) -> str:
        """What the worker is doing, such as training or validating."""
        return self._last[1]

    @property
    def last_time(self) -> float:
        """When it last beat, unix seconds."""
        return time.time() - (self._clock() - self._last[0])

    @property
    def limit_seconds(self) -> float:
        """How long the next beat may take, seconds."""
        return self._last[2]

    def health(self) -> dict[str, Any]:
        """ok or stalled, the phase, and the age of the last progress in seconds against its limit."""
        at, phase, limit = self._last
        age = self._clock() - at
        word = "ok" if age <= limit else "stalled"
        return {"status": word, "phase": phase, "seconds_since_progress": round(age, 3), "limit_seconds": limit}
