"""A step's result on its way from the device to the log."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.optim import LearningRates
from model.step import StepResult


class PendingResult(NamedTuple):
    """A step's result while it is copied to the host."""

    step: int
    position: int
    rates: LearningRates
    values: Tensor  # (6,) on the host: loss, gradient norm, all_finite, and the three local flags summed over ranks
    arrived: "torch.cuda.Event | None"


def start_copy(step: int, position: int, rates: LearningRates, result: StepResult) -> PendingResult:
    """Start copying a result to the host; no step waits for it."""
    values = torch.cat([value.float().flatten() for value in result])
    if not values.is_cuda:
        return PendingResult(step, position, rates, values, None)
    host = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return PendingResult(step, position, rates, host, arrived)
