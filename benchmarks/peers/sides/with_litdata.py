"""LitData: its chunks of JPEG bytes, torchvision's decoder and transforms v2, its loader with workers."""

# pyright: reportMissingImports=false

import shutil
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from serving import Batches, Work, listed, main


class Pictures(StreamingDataset):
    """Samples decoded and transformed."""

    def __init__(self, work: Work):
        super().__init__(f"{work.own}/chunks", shuffle=True)
        steps: list[v2.Transform] = [v2.RandomCrop(work.crop), v2.RandomHorizontalFlip()]
        if work.output == "float32":
            mean, std = ([value / 255 for value in values] for values in (work.mean, work.std))
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.change = v2.Compose(steps)

    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        encoded = torch.frombuffer(bytearray(sample["jpeg"]), dtype=torch.uint8)
        return self.change(decode_image(encoded, ImageReadMode.RGB)), sample["label"]


def sample_of(item: tuple[str, int]) -> dict[str, Any]:
    """What a chunk keeps of a picture."""
    return {"jpeg": Path(item[0]).read_bytes(), "label": item[1]}


def prepare(work: Work) -> None:
    """Write the chunks."""
    shutil.rmtree(f"{work.own}/chunks", ignore_errors=True)
    optimize(sample_of, listed(work.files), f"{work.own}/chunks", chunk_bytes="64MB", num_workers=work.threads)


def batches(work: Work) -> Batches:
    """Endless batches."""
    loader = StreamingDataLoader(
        Pictures(work), batch_size=work.batch_size, num_workers=work.threads, persistent_workers=True
    )
    while True:
        yield from loader


if __name__ == "__main__":
    main(batches, prepare)
