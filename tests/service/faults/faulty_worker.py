"""service.train whose numbers go wrong on the pictures of given steps, or that leaves such batches out by itself.

POISON: steps (5, or 5- for that and all later ones) whose pictures are NaN, or with HUGE count a thousandfold.
LEFT: steps that train on nothing: what a run that leaves them out must be equal to.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

from pipeline.command import run_command
from pipeline.load.batch_loader import Batch, BatchLoader
from service.train import main
from service.training.worker import Worker

plain, plain_batches = Worker.step, BatchLoader.train


def is_named(variable: str, step: int) -> bool:
    for word in os.environ.get(variable, "").split(","):
        first, open_end, _ = word.partition("-")
        if first and (step == int(first) or (open_end and step > int(first))):
            return True
    return False


def step(self: Worker, batch: Batch) -> None:
    position = self.state.position + self.run.batch_size
    if is_named("LEFT", position // self.run.batch_size):
        self.state = replace(self.state, step=self.state.step + 1, position=position)
        return
    plain(self, batch)


def batches(self: BatchLoader, batch_size: int, first: int = 0) -> Iterator[Batch]:
    for number, batch in enumerate(plain_batches(self, batch_size, first), start=first // batch_size + 1):
        poisoned = is_named("POISON", number) and self.rank == self.world_size - 1
        if poisoned and "HUGE" in os.environ:
            batch = batch._replace(weights=1000 * batch.weights)
        elif poisoned:
            batch = batch._replace(offset=batch.offset + float("nan"))
        yield batch


if __name__ == "__main__":
    sys.argv[0] = "service.train"
    with mock.patch.object(Worker, "step", step), mock.patch.object(BatchLoader, "train", batches):
        run_command(main)
