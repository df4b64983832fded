"""Samples in this process's memory that have come and were not kept on disk."""

from collections import OrderedDict


class Passing:
    """Bytes of samples for a while: the oldest go once there are more than `bound` bytes."""

    def __init__(self, bound: int):
        self._bound, self._bytes = bound, 0
        self._samples: OrderedDict[int, bytes] = OrderedDict()

    def __contains__(self, sample: int) -> bool:
        return sample in self._samples

    def put(self, sample: int, data: bytes) -> None:
        self.take(sample)
        self._samples[sample] = data
        self._bytes += len(data)
        while self._bytes > self._bound and len(self._samples) > 1:
            self._bytes -= len(self._samples.popitem(last=False)[1])

    def find(self, sample: int) -> bytes | None:
        return self._samples.get(sample)

    def take(self, sample: int) -> bytes | None:
        data = self._samples.pop(sample, None)
        self._bytes -= len(data or b"")
        return data
