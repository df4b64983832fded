"""The loader: are its batches on the device what the CPU's are, do they stay so, and how fast do they come?

Tolerances, on pixels of 0..255 at the network's input, against the CPU's loader:
- FLOAT16 0.13: half a unit in the last place of a float16 below 256 is 0.0625, once for DALI, once for the shift.
- NVJPEG 2 on average: another inverse DCT alone makes 1.0 (libjpeg's fast one against its accurate one, over 200
  ImageNet pictures at quality 92), and a decoder in hardware may repeat chroma samples instead of interpolating them,
  which at a coloured edge makes tens. Another picture, or another crop, makes more than 20 on average.
- RESIZED 3 at most: the GPU and the CPU round to whole pixels between the two passes of a resize.
"""

import contextlib
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from model.step import StepInputs, normalise_pictures
from pipeline.load.batch_loader import Batch, BatchLoader, central_crop
from pipeline.load.config import DataConfig
from pipeline.load.probe import gpu_decoder_works
from pipeline.manifest import load_mean

from .context import Context, Failed, Figure, Found, seconds_each

FLOAT16, NVJPEG, RESIZED = 0.13, 2.0, 3.0


def loader_of(context: Context, shards: str, decoder: str, lends: bool = False, **options: Any) -> BatchLoader:
    """The device's loader of these shards."""
    config = DataConfig(shards=shards, decoder=decoder, tuned=False, **options)  # type: ignore[arg-type]
    return BatchLoader(config, seed=3, device=context.place, lends=lends)


def shards_of(context: Context, raw: bool) -> str:
    return context.raw if raw else context.squares


def probe(context: Context) -> Found:
    """The trial that the loader itself makes before it decodes on the GPU."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        works = gpu_decoder_works()
    if not works:
        raise Failed(said.getvalue().strip())
    return Found("decodes")


def hand_over(context: Context, decoder: str, raw: bool = False) -> Found:
    """Batches are on the device and stay as they are, also when the device is far behind the host."""
    count, busy = 12, 100_000_000  # cycles: some 50 ms of work that the copy of each batch must wait for

    def batches(delay: bool, lends: bool) -> Iterator[Tensor]:
        for batch in islice(loader_of(context, shards_of(context, raw), decoder, lends).train(32), count):
            yield batch.pictures.clone() if lends else batch.pictures
            if delay:
                torch.cuda._sleep(busy)

    expected = [pictures.cpu() for pictures in batches(False, False)]
    worst = 0.0
    for lends in (False, True):
        kept = list(batches(context.cuda, lends))
        if any(pictures.device.type != context.device for pictures in kept):
            raise Failed(f"pictures are on {kept[0].device}, expected {context.device}")
        worst = max(worst, *(difference(a.cpu(), b)[1] for a, b in zip(kept, expected, strict=True)))
    if worst > (0 if decoder == "cpu" else NVJPEG):
        raise Failed(f"a picture changed by {worst:.3f} on average while it was kept, expected 0")
    return Found(f"{count} batches of {tuple(expected[0].shape)} {expected[0].dtype}; change {worst:.3f}")


def difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The greatest difference of two batches of pictures, and that of the picture that differs most on average."""
    error = (a.float() - b.float()).abs()
    return error.max().item(), error.flatten(1).mean(1).max().item()


def network_input(loader: BatchLoader, count: int) -> tuple[Tensor, Batch]:
    """What the first layer sees of the positions up to `count`, on the host."""
    batch = next(loader.train(count))
    mean_picture = load_mean(loader.root, loader.dataset)
    mean = torch.from_numpy(central_crop(mean_picture, loader.config.crop)).to(batch.pictures.device)
    return normalise_pictures(StepInputs(*batch), mean, 1.0).cpu(), batch


def parity(context: Context, decoder: str, raw: bool = False) -> Found:
    """Network input of the same positions from the CPU's loader and from the device's, for every output."""
    shards, on_cpu = shards_of(context, raw), Context("cpu", context.folder, context.shards)
    expected, reference = network_input(loader_of(on_cpu, shards, "cpu", output="uint8"), 128)
    said = []
    for output in ("uint8", "float16"):
        found, batch = network_input(loader_of(context, shards, decoder, output=output), 128)
        if not torch.equal(batch.labels.cpu(), reference.labels):
            raise Failed(f"{output}: labels differ")
        said.append(f"{output} {check(found, expected, FLOAT16 if decoder == 'cpu' else None)}")
    return Found("; ".join(said))


def check(found: Tensor, expected: Tensor, most: float | None) -> str:
    """Differences in words; Failed above `most`, or without it above NVJPEG on average."""
    greatest, mean = difference(found, expected)
    words = f"differs by at most {greatest:.3f}, a picture on average by at most {mean:.4f}"
    if (greatest > most) if most is not None else (mean > NVJPEG):
        raise Failed(f"{words}; expected {f'at most {most}' if most is not None else f'{NVJPEG} on average'}")
    return words


def resized_parity(context: Context, decoder: str) -> Found:
    """The same for pictures of original size, which the graph resizes."""
    on_cpu = Context("cpu", context.folder, context.shards)
    expected, _ = network_input(loader_of(on_cpu, context.originals, "cpu", output="uint8"), 64)
    found, _ = network_input(loader_of(context, context.originals, decoder, output="uint8"), 64)
    return Found(check(found, expected, RESIZED if decoder == "cpu" else None))


def validation(context: Context, decoder: str) -> Found:
    """Every validation picture once, the last batch as short as it comes."""
    loader = loader_of(context, context.squares, decoder)
    if "val" not in loader.dataset.splits:
        return Found("no validation split")
    samples = loader.dataset.splits["val"].samples
    size = max(samples // 3, 2)
    positions = [position for batch in loader.validation(size) for position in batch.positions.tolist()]
    if positions != list(range(samples)):
        raise Failed(f"{len(positions)} positions, expected each of 0 .. {samples - 1} once")
    return Found(f"{samples} pictures in batches of {size}")


def speed(context: Context, decoder: str, raw: bool = False) -> Found:
    """Of the loader alone, whose pictures are lent, as the worker has them."""
    return Found(figures=[_rate(context, shards_of(context, raw), size, "", decoder) for size in context.batch_sizes])


def _rate(context: Context, shards: str, size: int, what: str, decoder: str, **options: Any) -> Figure:
    batches = loader_of(context, shards, decoder, lends=True, **options).train(size)
    rates = [size / seconds for seconds in seconds_each(context, lambda: next(batches))]
    batches.close()
    return Figure(f"{what}batch {size}", "images/s", rates)


def settings(context: Context) -> Found:
    """The GPU decoder's speed with other shares for its JPEG engines, and other numbers of threads."""
    shards, size = context.squares, context.batch_sizes[-1]
    shares = [
        _rate(context, shards, size, f"hw_decoder_load {share}, ", "gpu", hw_decoder_load=share)
        for share in (0, 0.5, 0.9, 1)
    ]
    threads = [_rate(context, shards, size, f"{count} threads, ", "gpu", threads=count) for count in (4, 8, 16)]
    return Found(figures=[*shares, *threads])
