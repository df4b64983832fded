"""The signals that ask a run to end."""

import os
import signal
from typing import Final

from torch.distributed import is_torchelastic_launched

from pipeline.command import hangup

HANDLED_BY_TORCHRUN: Final = "TORCHELASTIC_SIGNALS_TO_HANDLE"  # that it passes on to its ranks


def signals_to_stop_at() -> tuple[int, ...]:
    """SIGTERM, SIGINT, and SIGHUP, which comes when a terminal or an ssh session ends.

    SIGHUP is left alone where `nohup` has it ignored, unless torchrun, which takes no heed of that, would pass it on:
    a rank that ignored it would be killed, and lose what it has not saved.
    """
    passed_on = is_torchelastic_launched() and "SIGHUP" in os.environ.get(HANDLED_BY_TORCHRUN, "SIGHUP")
    return (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if passed_on else hangup()))


class GracefulStop:
    """Whether a signal has asked for the run to end."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._signals = signals_to_stop_at()

    def listen(self) -> None:
        """Note the signals from now on; a second Ctrl-C ends the process at once.

        A second SIGTERM does not: torchrun passes on the one that it gets, and a scheduler sends its own to all.
        """
        for number in self._signals:
            signal.signal(number, self.request)

    def request(self, number: int, _frame: object) -> None:
        """Note the signal."""
        self.signal = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def ignore(self) -> None:
        """Ignore signals from now on: the run is over, and one would only change its exit status.

        torchrun sends one when a rank ends early, and Python restores the default action of signals that it handles,
        which is to kill the process, while it shuts down.
        """
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)

    @property
    def name(self) -> str:
        """Who asked: this process's signal, or another rank's."""
        return "another rank" if self.signal is None else signal.Signals(self.signal).name

    @property
    def status(self) -> int:
        """The exit status of a process that stopped because of it."""
        return 128 + (self.signal or signal.SIGTERM)
