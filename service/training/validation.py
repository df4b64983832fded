"""The error on the validation set, measured between steps."""

import gc
from collections import deque
from collections.abc import Callable, Generator
from itertools import islice
from typing import Final

import torch
from torch import Tensor

from model.step import StepInputs, TrainingState, eval_step
from pipeline.load.batch_loader import Batch, BatchLoader
from service.training.rank_agreement import FLAGS, RankAgreement
from service.training.step_result import Copying

MEASURES: Final = 3  # summed loss, top-1 and top-5 errors, which come before the flags
LAG: Final = 2  # batches that may be under way on a GPU before the host reads what other ranks say

EvalStep = Callable[[TrainingState, Tensor, StepInputs], Tensor]


class Validator:
    """Measures the network in training; all ranks do it together."""

    def __init__(
        self, training: TrainingState, loader: BatchLoader, batch_size: int, agreement: RankAgreement, compiled: bool
    ):
        """batch_size: over all ranks; compiled: whether a GPU computes it compiled."""
        self._training, self._loader, self._batch_size, self._agreement = training, loader, batch_size, agreement
        self._device = training.mean.device
        on_gpu = self._device.type == "cuda"
        # On a CPU it stays eager: nothing to wait for, and the numbers that it always had.
        self._eval_step = compiled_eval_step() if compiled and on_gpu else eval_step
        self._rows = -(-batch_size // loader.world_size) if compiled and on_gpu else 0
        self._several, self._lag = loader.world_size > 1, LAG if on_gpu else 0
        self._samples = loader.dataset.splits["val"].samples if "val" in loader.dataset.splits else 0
        self._stream: Generator[Batch, None, None] | None = None  # which goes on where the last measurement ended

    def measure(self, beat: Callable[[], None]) -> tuple[float, float, float] | None:
        """(mean loss, top-1 error, top-5 error) over the split; None where the run is to be ended first.

        beat: called after each batch.
        """
        measured = None
        try:
            measured = self._measure(beat)
        finally:
            if measured is None:  # cut short, within the split
                self.close()
        return measured

    def close(self) -> None:
        """End what prepares batches; the next measurement starts it again."""
        stream, self._stream = self._stream, None
        if stream:
            stream.close()
            gc.collect()  # a DALI pipeline is part of reference cycles, and holds the device's memory

    def _measure(self, beat: Callable[[], None]) -> tuple[float, float, float] | None:
        totals = torch.zeros(MEASURES + FLAGS, dtype=torch.float64, device=self._device)
        under_way: deque[Copying] = deque()
        self._stream = self._stream or self._loader.validation(self._batch_size, repeated=True)
        for batch in islice(self._stream, -(-self._samples // self._batch_size)):
            inputs = padded(StepInputs(*batch), self._rows)
            totals += self._eval_step(self._training, self._agreement.local_flags(), inputs)
            beat()
            # Of one rank too: a GPU that is slower than its loader would else have all batches in its memory.
            under_way.append(Copying.start(totals))
            if len(under_way) > self._lag:
                flags = under_way.popleft().read()[MEASURES:]
                if self._several:
                    self._agreement.update(flags)
            if self._agreement.should_end:
                return None
        loss, top1, top5, *flags = (totals / self._samples).tolist()
        self._agreement.update(flags)
        return None if self._agreement.should_end else (loss, top1, top5)


def compiled_eval_step(backend: str = "inductor") -> EvalStep:
    """`eval_step` compiled, one graph for one size of batch."""
    return torch.compile(eval_step, backend=backend, fullgraph=True, dynamic=False)


def padded(inputs: StepInputs, rows: int) -> StepInputs:
    """The batch with at least so many rows, for one graph to serve every batch; those added are zeros, and weigh 0."""
    missing = rows - len(inputs.weights)
    if missing <= 0:
        return inputs
    return StepInputs(*(torch.cat([column, column.new_zeros(missing, *column.shape[1:])]) for column in inputs))
