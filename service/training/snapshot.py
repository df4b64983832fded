"""What training has made of a network after a step, for a checkpoint: copied off a GPU beside the steps that follow."""

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from model.network import Network
from model.optim import MomentumSGD
from service.run.checkpoint import Tensors, state_tensors

ALIGNMENT: Final = 64  # bytes, of each tensor in a buffer: a cache line, and enough for any type


class Snapshots:
    """Snapshots of a network in training, one at a time.

    On a GPU the loop pays for a clone there, which goes to the host on a stream of its own. On a CPU the copy is the
    snapshot. The host's memory is kept for the next one: pinned memory costs time to get, and what is taken and given
    back between steps, which do the same, leaves gaps that fit nobody.
    """

    def __init__(self, model: Network, optimizer: MomentumSGD):
        self._model, self._optimizer = model, optimizer
        self._clone: tuple[Tensor, torch.cuda.Event] | None = None  # on the device, until it is fetched
        self._host: Tensor | None = None  # what `pack` makes; pinned, if there is a GPU

    def take(self) -> Callable[[], Tensors]:
        """Snapshot what the steps so far have made; the function that is returned has it on the host.

        That may be called once, in any thread; what it returns holds until the next snapshot is taken.
        """
        tensors = state_tensors(self._model, self._optimizer)
        if not on_gpu(tensors):
            return self._copied(tensors)
        assert self._clone is None, "the last snapshot was not fetched"
        try:
            clone = pack(tensors)
        except torch.OutOfMemoryError:  # on a device that has no room for a clone the loop waits for the host's copy
            return self._copied(tensors)
        cloned = torch.cuda.Event()
        cloned.record()
        self._clone = clone, cloned
        return self._fetch

    def _copied(self, tensors: Tensors) -> Callable[[], Tensors]:
        if self._host is None:
            self._host = host_memory(packed_bytes(tensors), pinned=on_gpu(tensors))
        copies = copied_into(self._host, tensors)
        return lambda: copies

    def _fetch(self) -> Tensors:
        """The clone on the host; the device's memory is free when this returns."""
        assert self._clone, "no snapshot was taken"
        (clone, cloned), self._clone = self._clone, None
        stream = torch.cuda.Stream(clone.device)
        with torch.cuda.stream(stream):  # which also makes the GPU this thread's
            if self._host is None:
                self._host = host_memory(clone.nbytes, pinned=True)
            stream.wait_event(cloned)
            self._host.copy_(clone, non_blocking=True)
        # Also what keeps the clone's memory from being given to the steps' stream while it is still read.
        stream.synchronize()
        return views_of(self._host, state_tensors(self._model, self._optimizer))


def on_gpu(tensors: Tensors) -> bool:
    """Whether tensors, which are all in one place, lie on a GPU."""
    return next(_each(tensors)).is_cuda


def host_memory(size: int, *, pinned: bool) -> Tensor:
    """(size,) uint8; pinned: which a GPU can write by itself, but any where none can be pinned."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)


def packed_bytes(tensors: Tensors) -> int:
    """How large the buffer is that holds them all."""
    return sum(map(_padded_bytes, _each(tensors)))


def pack(tensors: Tensors) -> Tensor:
    """A copy of all tensors, on their device, in one buffer of bytes, (n,) uint8: for one copy to the host."""
    first = next(_each(tensors))
    buffer = torch.empty(packed_bytes(tensors), dtype=torch.uint8, device=first.device)
    copied_into(buffer, tensors)
    return buffer


def copied_into(buffer: Tensor, tensors: Tensors) -> Tensors:
    """Copies of all tensors, in a buffer of `packed_bytes`."""
    views = views_of(buffer, tensors)
    for view, tensor in zip(_each(views), _each(tensors), strict=True):
        view.copy_(tensor)
    return views


def views_of(buffer: Tensor, tensors: Tensors) -> Tensors:
    """Views into a buffer such as `pack` fills: contiguous, with the names, shapes and types of `tensors`."""
    start, views = 0, {}
    for file, named in tensors.items():
        views[file] = {}
        for name, tensor in named.items():
            views[file][name] = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            start += _padded_bytes(tensor)
    return views


def _padded_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _each(tensors: Tensors) -> Iterator[Tensor]:
    return (tensor for named in tensors.values() for tensor in named.values())
