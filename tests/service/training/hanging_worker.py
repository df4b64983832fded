"""service.train that hangs in its fifth step, on the last rank alone: by sleeping, or with the interpreter's lock held.

HANG: sleep or lock. A process that torchrun has started again does not.
"""

import ctypes
import os
import sys
import time
from unittest import mock

from pipeline.command import run_command
from pipeline.load.batch_loader import Batch
from service.train import main
from service.training.worker import Worker

plain = Worker.step


def sleeps_for_ever() -> None:
    if os.environ["HANG"] == "lock":
        ctypes.PyDLL(None).sleep(10**6)  # PyDLL keeps the interpreter's lock
    time.sleep(10**6)


def step(self: Worker, batch: Batch) -> None:
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if self.state.step == 4 and self.ranks.rank == self.ranks.world_size - 1 and not again:
        sleeps_for_ever()
    plain(self, batch)


if __name__ == "__main__":
    sys.argv[0] = "service.train"
    with mock.patch.object(Worker, "step", step):
        run_command(main)
