"""DALI's own reader of our tars, with the draws in its graph.

Ways: `whole` decodes pictures and crops, mirrors and normalises in one operator, as its examples do; `crop` decodes the
crop alone. Its tensors are handed over as they are, without the copy that its PyTorch plugin makes.
"""

from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType

from serving import Batches, Work, main

BUFFER = 1024  # samples to draw from, its default
AHEAD = 2  # batches


def batches(work: Work) -> Batches:
    """Endless batches."""
    tars = [str(path) for path in sorted(Path(work.shards, "train").glob("*.tar"))]
    graph = Pipeline(
        batch_size=work.batch_size, num_threads=work.threads, device_id=None, prefetch_queue_depth=AHEAD, seed=1
    )
    with graph:
        read: Any = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar.removesuffix(".tar") + ".idx" for tar in tars],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=BUFFER,
        )
        jpegs, labels = read
        graph.set_outputs(pictures_of(jpegs, work), fn.pad(labels))
    graph.build()
    while True:
        ran: Any = graph.run()
        pictures, labels = ran
        yield torch.from_dlpack(pictures.as_tensor()), labels_of(labels.as_array())


def pictures_of(jpegs: Any, work: Work) -> Any:
    """The part of the graph after reading."""
    crop, y, x = (work.crop, work.crop), fn.random.uniform(range=(0.0, 1.0)), fn.random.uniform(range=(0.0, 1.0))
    mirror = fn.random.coin_flip()
    if work.output == "uint8":
        last: dict[str, Any] = {"dtype": DALIDataType.UINT8, "output_layout": "HWC", "mean": [0.0] * 3}
    else:
        mean, std = list(work.mean), list(work.std)
        last = {"dtype": DALIDataType.FLOAT, "output_layout": "CHW", "mean": mean, "std": std}
    if work.way == "whole":
        pictures: Any = fn.decoders.image(jpegs)
        return fn.crop_mirror_normalize(pictures, crop=crop, crop_pos_y=y, crop_pos_x=x, mirror=mirror, **last)
    pictures = fn.decoders.image_crop(jpegs, crop=crop, crop_pos_y=y, crop_pos_x=x)
    if work.output == "uint8":
        return fn.flip(pictures, horizontal=mirror)
    return fn.crop_mirror_normalize(pictures, mirror=mirror, **last)


def labels_of(digits: Any) -> torch.Tensor:
    """Class indexes from their ASCII digits, filled up with zero bytes."""
    return torch.tensor([int(bytes(row).rstrip(b"\0")) for row in digits])


if __name__ == "__main__":
    main(batches)
