"""service.train that also records its batches as the steps take them: RECORD/step-N-rank-R.npz."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from pipeline.command import run_command
from pipeline.load.batch_loader import Batch, BatchLoader
from service.train import main

folder = Path(os.environ["RECORD"])
plain = BatchLoader.train


def recorded(self: BatchLoader, batch_size: int, first: int = 0) -> Iterator[Batch]:
    for step, batch in enumerate(plain(self, batch_size, first), first // batch_size + 1):
        np.savez(folder / f"step-{step}-rank-{self.rank}.npz", **{k: v.numpy() for k, v in batch._asdict().items()})
        yield batch


if __name__ == "__main__":
    sys.argv[0] = "service.train"
    with mock.patch.object(BatchLoader, "train", recorded):
        run_command(main)
