"""Numbers on their way from the device to the host, such as a step's result: no step waits for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.optim import LearningRates
from model.step import StepResult
from service.run.checkpoint import RunState
from service.training.snapshot import pinned_like


@dataclass(frozen=True)
class Copying:
    """A tensor that is being copied to the host."""

    host: Tensor
    arrived: "torch.cuda.Event | None"  # None: it is there

    @classmethod
    def start(cls, values: Tensor) -> "Copying":
        """Of the values as torch's current stream makes them; later changes do not show."""
        if not values.is_cuda:
            return cls(values.clone(), None)
        host = pinned_like(values).copy_(values, non_blocking=True)
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
