"""What every side is: a process that makes batches when it is told to, and answers in JSON, a line each.

    side.py prepare WORK     make the side's input from the pictures
    side.py serve WORK       {"event": "first", ...}, and then an answer to each line: `check BATCHES`, `run SECONDS`

It needs torch and nothing else, since it runs in each peer's own environment. What a library prints on stdout goes to
stderr, so that answers are alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TextIO

WARM_UP: Final = 12  # batches not counted: more than any side prepares ahead
FEW: Final = 8  # pictures looked at together, so that looking does not decide how much memory a side takes


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all sides are asked to do, and what this one is."""

    files: str  # folder of <label>/<number>.jpg, all of one size
    shards: str  # the same pictures as pipeline.shard writes them
    raw_shards: str  # and as pixels
    own: str  # folder for what this side makes for itself
    way: str  # which of its ways this side is
    output: str  # "uint8" or "float32"
    threads: int  # or worker processes
    batch_size: int
    crop: int  # pixels
    mean: tuple[float, float, float]  # RGB on 0..255, taken off float32 pictures
    std: tuple[float, float, float]  # which are divided by it


Batch = tuple[Any, Any]  # pictures (B, crop, crop, 3) or (B, 3, crop, crop), and labels (B,) or (B, 1): torch tensors
Batches = Iterator[Batch]


def main(batches: Callable[[Work], Batches], prepare: Callable[[Work], None] | None = None) -> None:
    """Do what the command line says."""
    verb, work = sys.argv[1], Work(**json.loads(sys.argv[2]))
    if verb == "serve":
        serve(batches, work)
    elif prepare:
        prepare(work)


def serve(batches: Callable[[Work], Batches], work: Work) -> None:
    """Make batches until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    endless = batches(work)
    first = next(endless)
    answer(answers, event="first", shape=list(first[0].shape), dtype=str(first[0].dtype))
    for line in sys.stdin:
        verb, value = line.split()
        if verb == "check":
            answer(answers, **statistics_of([first], endless, int(value), work))
        else:
            answer(answers, **window(endless, float(value)))
    answers.flush()
    os._exit(0)  # some libraries wait for their threads for ever


def answer(stream: TextIO, **fields: Any) -> None:
    """One line."""
    print(json.dumps(fields), file=stream, flush=True)


def window(batches: Batches, seconds: float) -> dict[str, float]:
    """Images in whole batches over a time, once what was prepared ahead is used up."""
    for _ in range(WARM_UP):
        next(batches)
    processor, start, images = processor_seconds(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += len(next(batches)[0])
    return {"images": images, "seconds": elapsed, "processor": processor_seconds() - processor}


def processor_seconds() -> float:
    """That all processes of this one's group have used, threads and workers."""
    ticks = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == os.getpgrp():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def statistics_of(begun: list[Batch], batches: Batches, count: int, work: Work) -> dict[str, Any]:
    """Of the first `count` batches: images, mean and standard deviation of RGB on 0..255, pictures of each label."""
    import torch

    images, total, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    pixels_each = work.crop**2
    labels: dict[int, int] = {}
    for i in range(count):
        pictures, found = begun.pop() if i == 0 else next(batches)
        images += len(pictures)
        for label in found.flatten().tolist():
            labels[label] = labels.get(label, 0) + 1
        for few in pictures.split(FEW):
            pixels = (few if few.shape[-1] == 3 else few.permute(0, 2, 3, 1)).float()
            if work.output == "float32":
                pixels = pixels * torch.tensor(work.std) + torch.tensor(work.mean)
            pixels = pixels.flatten(0, 2).double()
            total += pixels.sum(0) / pixels_each
            squares += pixels.square().sum(0) / pixels_each
    mean = total / images
    deviation = (squares / images - mean.square()).sqrt()
    return {"images": images, "mean": mean.tolist(), "std": deviation.tolist(), "labels": sorted(labels.items())}


def listed(files: str) -> list[tuple[str, int]]:
    """Every picture's path and label."""
    folders = sorted(os.scandir(files), key=lambda entry: entry.name)
    return [(f"{each.path}/{name}", int(each.name)) for each in folders for name in sorted(os.listdir(each.path))]


def permutations(count: int, seed: int = 0) -> Iterator[int]:
    """0 .. count - 1 in a new random order, epoch after epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
