"""SPDL: its pipeline of threads, and its own decoding by FFmpeg, which crops and mirrors in FFmpeg's filters.

The crop comes before the conversion to RGB, so it begins at even rows and columns.
"""

# pyright: reportMissingImports=false

import random
from collections.abc import Iterator
from typing import Any

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from serving import Batches, Work, listed, main, permutations

AHEAD = 3  # batches


def batches(work: Work) -> Batches:
    """Endless batches."""
    files = listed(work.files)
    draw = random.Random(1)
    mean, std = torch.tensor(work.mean), torch.tensor(work.std)

    def source() -> Iterator[tuple[str, int]]:
        return (files[index] for index in permutations(len(files)))

    def decoded(item: tuple[str, int]) -> tuple[Any, int]:
        path, label = item
        packets = spdl.io.demux_image(path)
        y, x = (int(draw.random() * (256 - work.crop + 1)) for _ in range(2))
        mirror = ",hflip" if draw.random() < 0.5 else ""
        crop = f"crop={work.crop}:{work.crop}:{x}:{y}{mirror},format=pix_fmts=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=crop), label

    def stacked(items: list[tuple[Any, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = spdl.io.to_torch(spdl.io.convert_frames([frames for frames, _ in items]))
        if work.output == "float32":
            pictures = ((pictures - mean) / std).permute(0, 3, 1, 2)
        return pictures, torch.tensor([label for _, label in items])

    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .pipe(decoded, concurrency=work.threads)
        .aggregate(work.batch_size)
        .pipe(stacked)
        .add_sink(AHEAD)
        .build(num_threads=work.threads)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


if __name__ == "__main__":
    main(batches)
