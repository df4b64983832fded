"""What a trial is told, and what it returns."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


class Failed(Exception):
    """A trial found what it should not."""


class Skipped(Exception):
    """A trial cannot run here."""


@dataclass(frozen=True)
class Context:
    """Where a trial runs."""

    device: Literal["cpu", "cuda"]
    folder: Path
    """For this call's data; it goes when the call ends."""
    shards: str
    """Of pictures, given by the user, or empty."""

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def place(self) -> Literal["cpu", "gpu"]:
        """The device as the loader and the worker call it."""
        return "gpu" if self.cuda else "cpu"

    @property
    def squares(self) -> str:
        """Shards of pictures of 256 x 256."""
        return self.shards or str(self.folder / "squares")

    @property
    def originals(self) -> str:
        """Shards of pictures of their own sizes."""
        return str(self.folder / "originals")

    @property
    def raw(self) -> str:
        """Shards of pixels."""
        return str(self.folder / "raw")

    @property
    def crop(self) -> int:
        """Of the networks whose speed is measured, pixels."""
        return 224 if self.cuda else 67

    @property
    def fc_width(self) -> int:
        return 4096 if self.cuda else 64

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return (128, 1024) if self.cuda else (8,)


@dataclass(frozen=True)
class Figure:
    """A figure with all its values, one a round."""

    what: str
    unit: str
    values: list[float]


@dataclass(frozen=True)
class Found:
    """What a trial that passed has to say."""

    words: str = ""
    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


Trial = Callable[..., Found]


def wait_for(context: Context) -> None:
    """Until the device has done all that it was given."""
    if context.cuda:
        import torch

        torch.cuda.synchronize()


def seconds_each(context: Context, work: Callable[[], Any], rounds: int = 5) -> list[float]:
    """Seconds that a call of `work` takes, the device's part with it: a value a round of about a second."""
    for _ in range(5 if context.cuda else 1):
        work()
    wait_for(context)
    start = time.perf_counter()
    work()
    wait_for(context)
    calls = max(1, round((1.0 if context.cuda else 0.05) / (time.perf_counter() - start)))
    found = []
    for _ in range(rounds if context.cuda else 2):
        start = time.perf_counter()
        for call in range(calls):
            work()
            if context.cuda and call % 16 == 15:
                wait_for(context)  # or the host would run far ahead of the device, and queue memory
        wait_for(context)
        found.append((time.perf_counter() - start) / calls)
    return found
