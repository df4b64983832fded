"""How all ranks agree to end the run, or to do an operator's act, after the same step."""

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from service.training.control_queue import ControlQueue, ControlRequest
from service.training.graceful_stop import GracefulStop
from service.training.ranks import Ranks


class RankAgreement:
    """This rank's local flags, set by a signal or an act in the control queue, and what all ranks have agreed on."""

    def __init__(self, ranks: Ranks, stop: GracefulStop, control_queue: ControlQueue, device: torch.device):
        self._ranks, self._stop, self._control_queue = ranks, stop, control_queue
        self._flag_combinations = torch.tensor([[[0, 0], [0, 1]], [[1, 0], [1, 1]]], dtype=torch.float32, device=device)
        self._end = self._act = False  # agreed on by all ranks

    def local_flags(self) -> Tensor:
        """(2,) float32 on the device, 1 where a signal asks this rank to end the run; where an act waits."""
        return self._flag_combinations[int(self._stop.signal is not None), int(self._control_queue.waiting)]

    def update(self, flags: Sequence[float]) -> None:
        """Take in the sums of all ranks' local flags, as a step or a validation batch returned them."""
        end, act = flags
        if self._ranks.world_size > 1:
            self._end |= end > 0
            self._act |= act > 0

    def request_end(self) -> None:
        """End the run; called on all ranks alike."""
        self._end = True

    @property
    def should_end(self) -> bool:
        """Whether to end the run now; the same on every rank."""
        return self._end or (self._ranks.world_size == 1 and self._stop.signal is not None)

    @property
    def should_act(self) -> bool:
        """Whether an operator's act is to be done now; the same on every rank."""
        return self._act or (self._ranks.world_size == 1 and self._control_queue.waiting)

    def requests(self, timeout_seconds: float = 0.0) -> list[ControlRequest]:
        """Operators' acts, the same on all ranks, which call it together; rank 0 waits so long for one to come."""
        self._act = False
        mine = self._control_queue.take(timeout_seconds) if self._ranks.is_leader else []
        found = self._ranks.all_gather((self._stop.signal is not None, [request.act for request in mine]))
        self._end |= any(stopping for stopping, _ in found)
        return mine if self._ranks.is_leader else [ControlRequest(act, Future()) for act in found[0][1]]
