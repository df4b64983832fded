"""service.train in float64 that also records the positions each rank trains on: RECORD/rank-N-PID.txt, a line a step.

Float64, because then the order of sums, which another number of ranks changes, is far below what a test looks for.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from model.network import make_network
from pipeline.command import run_command
from pipeline.load.batch_loader import Batch, BatchLoader
from service.run.preprocessing import Preprocessing
from service.train import main

folder = Path(os.environ["RECORD"])
plain = BatchLoader.train
mean_crop = Preprocessing.mean_crop


def recorded(self: BatchLoader, batch_size: int, first: int = 0) -> Iterator[Batch]:
    path = folder / f"rank-{self.rank}-{os.getpid()}.txt"
    for step, batch in enumerate(plain(self, batch_size, first)):
        with path.open("a") as file:
            counted = batch.positions[batch.weights > 0].tolist()
            file.write(" ".join(map(str, (first // batch_size + step + 1, *counted))) + "\n")
        yield batch


if __name__ == "__main__":
    sys.argv[0] = "service.train"
    with (
        mock.patch.object(BatchLoader, "train", recorded),
        mock.patch(
            "service.training.setup.make_network", lambda *given, **named: make_network(*given, **named).double()
        ),
        mock.patch.object(Preprocessing, "mean_crop", lambda *given: mean_crop(*given).astype("float64")),
    ):
        run_command(main)
