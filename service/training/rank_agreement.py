"""How all ranks agree to end the run, to do an operator's act, or to save, after the same step."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

import torch
from torch import Tensor

from service.training.control_queue import ControlQueue, ControlRequest
from service.training.graceful_stop import GracefulStop
from service.training.ranks import Ranks

FLAGS: Final = 3  # what a rank says beside a step: end the run; an act waits; a checkpoint is due


class RankAgreement:
    """This rank's local flags, set by a signal, an act or the clock, and what all ranks have agreed on."""

    def __init__(
        self,
        ranks: Ranks,
        stop: GracefulStop,
        control_queue: ControlQueue,
        save_due: Callable[[], bool],
        device: torch.device,
    ):
        """save_due: whether a checkpoint is due by the clock; only rank 0's counts, for clocks differ."""
        self._ranks, self._stop, self._control_queue, self._save_due = ranks, stop, control_queue, save_due
        # All that may be said, on the device beforehand: to send it there would wait for the device.
        bits = torch.tensor([0.0, 1.0], device=device)
        self._flag_combinations = torch.cartesian_prod(*[bits] * FLAGS).view(*[2] * FLAGS, FLAGS)
        self._end = self._act = self._save = False  # agreed on by all ranks

    def local_flags(self) -> Tensor:
        """(FLAGS,) float32 on the device, 1 where a signal asks to end the run; an act waits; a save is due."""
        return self._flag_combinations[
            int(self._stop.signal is not None),
            int(self._control_queue.waiting),
            int(self._ranks.is_leader and self._save_due()),
        ]

    def update(self, flags: Sequence[float]) -> None:
        """Take in the sums of all ranks' local flags, as a step or a validation batch returned them."""
        end, act, save = flags
        if self._ranks.world_size > 1:
            self._end |= end > 0
            self._act |= act > 0
            self._save |= save > 0

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

    @property
    def should_save(self) -> bool:
        """Whether a checkpoint is due by rank 0's clock; the same on every rank."""
        return self._save or (self._ranks.world_size == 1 and self._save_due())

    def saved(self) -> None:
        """A checkpoint was begun, and every result read of the steps before it; called on all ranks alike."""
        self._save = False

    def requests(self, timeout_seconds: float = 0.0) -> list[ControlRequest]:
        """Operators' acts, the same on all ranks, which call it together; rank 0 waits so long for one to come."""
        self._act = False
        mine = self._control_queue.take(timeout_seconds) if self._ranks.is_leader else []
        found = self._ranks.all_gather((self._stop.signal is not None, [request.act for request in mine]))
        self._end |= any(stopping for stopping, _ in found)
        return mine if self._ranks.is_leader else [ControlRequest(act, Future()) for act in found[0][1]]
