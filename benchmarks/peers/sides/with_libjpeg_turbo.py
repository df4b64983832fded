"""The bound: libjpeg-turbo alone, by simplejpeg in threads, on files held in memory: no crop, mirror or shuffle.

Ways: `exact` has the settings of ours, `fast` the fast DCT and plain upsampling.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from serving import Batches, Work, listed, main

AHEAD = 2  # batches


def batches(work: Work) -> Batches:
    """Endless batches of whole pictures."""
    files = [(Path(path).read_bytes(), label) for path, label in listed(work.files)]
    fast = work.way == "fast"
    shape = simplejpeg.decode_jpeg(files[0][0]).shape
    buffers = [np.zeros((work.batch_size, *shape), np.uint8) for _ in range(AHEAD + 2)]

    def decode(step: int, part: int) -> None:
        for row in range(part, work.batch_size, work.threads):
            jpeg = files[(step * work.batch_size + row) % len(files)][0]
            simplejpeg.decode_jpeg(
                jpeg, "RGB", fastdct=fast, fastupsample=fast, buffer=buffers[step % len(buffers)][row]
            )

    waiting: deque[list[Future[None]]] = deque()
    with ThreadPoolExecutor(work.threads) as pool:
        for step in count():
            waiting.append([pool.submit(decode, step, part) for part in range(work.threads)])
            if step < AHEAD:
                continue
            for future in waiting.popleft():
                future.result()
            done = step - AHEAD
            rows = range(done * work.batch_size, (done + 1) * work.batch_size)
            labels = torch.tensor([files[row % len(files)][1] for row in rows])
            yield torch.from_numpy(buffers[done % len(buffers)]), labels


if __name__ == "__main__":
    main(batches)
