"""MosaicML Streaming: an MDS data set of JPEG bytes, torchvision's decoder and transforms v2, its loader."""

# pyright: reportMissingImports=false

import shutil
from pathlib import Path

import torch
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from serving import Batches, Work, listed, main


class Pictures(StreamingDataset):
    """Samples decoded and transformed."""

    def __init__(self, work: Work):
        super().__init__(local=f"{work.own}/mds", shuffle=True, batch_size=work.batch_size)
        steps: list[v2.Transform] = [v2.RandomCrop(work.crop), v2.RandomHorizontalFlip()]
        if work.output == "float32":
            mean, std = ([value / 255 for value in values] for values in (work.mean, work.std))
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.change = v2.Compose(steps)

    def __getitem__(self, at):
        sample = super().__getitem__(at)
        encoded = torch.frombuffer(bytearray(sample["jpeg"]), dtype=torch.uint8)
        return self.change(decode_image(encoded, ImageReadMode.RGB)), sample["label"]


def prepare(work: Work) -> None:
    """Write the shards."""
    shutil.rmtree(f"{work.own}/mds", ignore_errors=True)
    with MDSWriter(out=f"{work.own}/mds", columns={"jpeg": "bytes", "label": "int"}) as writer:
        for path, label in listed(work.files):
            writer.write({"jpeg": Path(path).read_bytes(), "label": label})


def batches(work: Work) -> Batches:
    """Endless batches."""
    clean_stale_shared_memory()
    loader = StreamingDataLoader(
        Pictures(work), batch_size=work.batch_size, num_workers=work.threads, persistent_workers=True
    )
    while True:
        yield from loader


if __name__ == "__main__":
    main(batches, prepare)
