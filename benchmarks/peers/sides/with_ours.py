"""Ours: the trainer's loader. float32 is the compiled step's first operation on its uint8 batches, counted.

Ways: `jpeg`, `fast` (decodes faster, not exactly), `raw` (pixels). It holds every sample against its checksum.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from model.step import StepInputs, normalise_pictures
from pipeline.host.memory import keep_freed_memory
from pipeline.load.augment import AugmentConfig
from pipeline.load.batch_loader import BatchLoader
from pipeline.load.config import DataConfig
from serving import Batches, Work, main


def batches(work: Work) -> Batches:
    """Endless batches."""
    keep_freed_memory()  # as the worker does
    torch.set_num_threads(work.threads)
    options: dict[str, Any] = {"decoding": "fast"} if work.way == "fast" else {}
    missing = options.keys() - {field.name for field in fields(DataConfig)}
    assert not missing, f"DataConfig has no {missing}"
    config = DataConfig(
        shards=Path(work.raw_shards if work.way == "raw" else work.shards),
        crop=work.crop,
        augment=AugmentConfig(colour="off"),
        output="uint8",
        threads=work.threads,
        **options,
    )
    mean = torch.tensor(work.mean).expand(work.crop, work.crop, 3).contiguous()

    std = work.std[0], work.std[1], work.std[2]

    @torch.compile(fullgraph=True, dynamic=False, disable=work.output == "uint8")
    def finished(inputs: StepInputs) -> torch.Tensor:
        return normalise_pictures(inputs, mean, std) if work.output == "float32" else inputs.pictures

    for batch in BatchLoader(config).train(work.batch_size):
        yield finished(StepInputs(*(getattr(batch, name) for name in StepInputs._fields))), batch.labels


if __name__ == "__main__":
    main(batches)
