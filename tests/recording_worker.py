"""service.train that also records the positions that each rank trains on: RECORD/rank-N-PID.txt, a line a step."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from pipeline.command import run_command
from pipeline.loader import Batch, Loader
from service.train import main

folder = Path(os.environ["RECORD"])
plain = Loader.train


def recorded(self: Loader, batch_size: int, first: int = 0) -> Iterator[Batch]:
    path = folder / f"rank-{self.rank}-{os.getpid()}.txt"
    for step, batch in enumerate(plain(self, batch_size, first)):
        with path.open("a") as file:
            counted = batch.positions[batch.weights > 0].tolist()
            file.write(" ".join(map(str, (first // batch_size + step + 1, *counted))) + "\n")
        yield batch


if __name__ == "__main__":
    sys.argv[0] = "service.train"
    with mock.patch.object(Loader, "train", recorded):
        run_command(main)
