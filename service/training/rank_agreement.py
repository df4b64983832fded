"""What all ranks have agreed to: to end the run, or to act for an operator; the same step on each of them."""

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from service.training.control_queue import Desk, Request
from service.training.graceful_stop import Stop
from service.training.ranks import Ranks


class Steering:
    """What this process was told by a signal or at the desk, and what all ranks know of each other."""

    def __init__(self, ranks: Ranks, stop: Stop, desk: Desk, device: torch.device):
        self._ranks, self._stop, self._desk = ranks, stop, desk
        self._words = torch.tensor([[[0, 0], [0, 1]], [[1, 0], [1, 1]]], dtype=torch.float32, device=device)
        self._end = self._act = False  # agreed

    def told(self) -> Tensor:
        """(2,) float32 on the device, 1 where this process was told to end the run; to act for an operator."""
        return self._words[int(self._stop.signal is not None), int(self._desk.waiting)]

    def heard(self, told: Sequence[float]) -> None:
        """How many ranks were told so, as a step or a validation batch found."""
        end, act = told
        if self._ranks.ranks > 1:
            self._end |= end > 0
            self._act |= act > 0

    def end(self) -> None:
        """End the run; called on all ranks alike."""
        self._end = True

    @property
    def ending(self) -> bool:
        """Whether to end the run now; the same on every rank."""
        return self._end or (self._ranks.ranks == 1 and self._stop.signal is not None)

    @property
    def acting(self) -> bool:
        """Whether an operator's act is to be done now; the same on every rank."""
        return self._act or (self._ranks.ranks == 1 and self._desk.waiting)

    def requests(self, patience_seconds: float = 0.0) -> list[Request]:
        """Operators' acts, the same on all ranks, which call it together; the leader waits so long for one to come."""
        self._act = False
        mine = self._desk.take(patience_seconds) if self._ranks.leads else []
        found = self._ranks.gathered((self._stop.signal is not None, [request.act for request in mine]))
        self._end |= any(told for told, _ in found)
        return mine if self._ranks.leads else [Request(act, Future()) for act in found[0][1]]
