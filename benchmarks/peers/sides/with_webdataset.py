"""webdataset: our tars, its shuffle buffer, torchvision's decoder and transforms v2, and its loader with workers."""

from pathlib import Path
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from webdataset.compat import WebDataset, WebLoader

from serving import Batches, Work, main

BUFFER = 1000  # samples to draw from, as in its documentation


def transform(work: Work) -> v2.Transform:
    """A decoded picture to what a batch is made of."""
    steps: list[v2.Transform] = [v2.RandomCrop(work.crop), v2.RandomHorizontalFlip()]
    if work.output == "float32":
        mean, std = ([value / 255 for value in values] for values in (work.mean, work.std))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)


def batches(work: Work) -> Batches:
    """Endless batches."""
    tars = [str(path) for path in sorted(Path(work.shards, "train").glob("*.tar"))]
    change = transform(work)

    def decoded(sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, int]:
        jpeg, label = sample
        encoded = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        return change(decode_image(encoded, ImageReadMode.RGB)), int(label)

    data: Any = WebDataset(tars, shardshuffle=len(tars), seed=1)
    data = data.repeat().shuffle(BUFFER).to_tuple("jpg", "cls").map(decoded).batched(work.batch_size)
    return iter(WebLoader(data, batch_size=None, num_workers=work.threads))


if __name__ == "__main__":
    main(batches)
