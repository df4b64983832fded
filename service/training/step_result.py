"""Numbers on their way from the device to the host, such as a step's result: no step waits for them; what is wrong."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final

import torch
from torch import Tensor

from model.optim import LearningRates
from model.step import StepResult
from service.run.checkpoint import RunState
from service.training.snapshot import host_memory

WINDOW: Final = 100  # losses whose median the limit is a multiple of
LEAST: Final = 20  # of them; before there is no limit
DELAY: Final = 4  # steps whose losses a GPU may still be computing, and so count on no device


@dataclass(frozen=True)
class Copying:
    """A tensor that is being copied to the host."""

    host: Tensor
    arrived: "torch.cuda.Event | None"  # None: it is there

    @classmethod
    def start(cls, values: Tensor) -> "Copying":
        """Of the values, (n,), as torch's current stream makes them; later changes do not show."""
        if not values.is_cuda:
            return cls(values.clone(), None)
        host = host_memory(values.nbytes, pinned=True).view(values.dtype).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(host, arrived)

    def read(self) -> list[float]:
        """The numbers, waited for where they are still under way."""
        if self.arrived:
            self.arrived.synchronize()
        return self.host.tolist()


@dataclass(frozen=True)
class PendingResult:
    """A step's result while it is copied to the host."""

    state: RunState  # after the step
    rates: LearningRates
    values: Copying  # (6,): loss, gradient norm, all_finite, and the three local flags summed over ranks


def start_copy(state: RunState, rates: LearningRates, result: StepResult) -> PendingResult:
    """Start copying a result to the host."""
    values = torch.cat([value.float().flatten() for value in result])
    return PendingResult(state, rates, Copying.start(values))


class StepFault(Exception):
    """A step's loss or gradient was NaN or infinite, or its loss beyond the limit; the weights are as before it."""

    def __init__(self, message: str, state: RunState):
        """state: after the step."""
        super().__init__(message)
        self.state = state


class RecentLosses:
    """The losses of the last steps, and the limit that follows from them."""

    def __init__(self, losses: Iterable[tuple[int, float]]):
        """losses: by step, as `RunState` keeps them."""
        self._losses = deque(losses, maxlen=WINDOW + DELAY)

    def add(self, step: int, loss: float) -> None:
        """Of a step that was sound."""
        self._losses.append((step, loss))

    def limit(self, factor: float, step: int) -> float:
        """What the loss of a step may be at most: a multiple of the median; infinite while few are known."""
        known = [loss for at, loss in self._losses if at <= step - DELAY][-WINDOW:]
        return factor * median(known) if len(known) >= LEAST else float("inf")

    def kept(self) -> tuple[tuple[int, float], ...]:
        """What a checkpoint keeps of them."""
        return tuple(self._losses)
