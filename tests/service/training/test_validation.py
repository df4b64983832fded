"""Validation: one compiled graph serves every batch, and rows added to one count for nothing."""

from itertools import repeat
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from model.step import StepInputs, eval_step
from service.training.step_result import Copying
from service.training.validation import LAG, Validator, compiled_eval_step, padded
from steps import TOLD, Bench, counting, examples

SIZES = (8, 8, 3)


class Agreement:
    """All that validation asks of a rank's agreement; told: after which batch, from 1, another rank asks for an end."""

    def __init__(self, told: int = 0) -> None:
        self.updates: list[list[float]] = []
        self._told, self._said = told, 0
        self.should_end = False

    def local_flags(self) -> torch.Tensor:
        self._said += 1
        return torch.tensor([float(self._said == self._told), 0.0, 0.0])

    def update(self, flags: list[float]) -> None:
        self.updates.append(flags)
        self.should_end |= flags[0] > 0


def batches() -> list[StepInputs]:
    return [counting(examples(size, first=8 * i)) for i, size in enumerate(SIZES)]


def validator(bench: Bench, agreement: Agreement, world_size: int = 1) -> Validator:
    loader = SimpleNamespace(
        world_size=world_size,
        validation=lambda batch_size, repeated: (batch for _ in repeat(None) for batch in batches()),
        dataset=SimpleNamespace(splits={"val": SimpleNamespace(samples=sum(SIZES))}),
    )
    return Validator(bench.training, cast(Any, loader), 8, cast(Any, agreement), compiled=True)


def test_it_is_the_mean_over_all_pictures() -> None:
    bench, beats = Bench(), []
    measured = validator(bench, Agreement()).measure(lambda: beats.append(1))
    whole = StepInputs(*map(torch.cat, zip(*batches(), strict=True)))
    loss, top1, top5, *_ = (eval_step(bench.training, TOLD, whole) / sum(SIZES)).tolist()
    assert measured and measured[1:] == (top1, top5)
    assert measured[0] == pytest.approx(loss, rel=1e-6)  # float32 sums in another order
    assert len(beats) == len(SIZES)


def test_the_next_time_takes_what_was_prepared_meanwhile() -> None:
    """The loader is asked once, and again after an end."""
    bench, asked = Bench(), []
    validates = validator(bench, Agreement())
    stream = validates._loader.validation
    validates._loader.validation = lambda *args, **options: asked.append(1) or stream(*args, **options)
    first, second = (validates.measure(lambda: None) for _ in range(2))
    assert first == second and first is not None and len(asked) == 1
    validates.close()
    assert validates.measure(lambda: None) == first and len(asked) == 2


@pytest.mark.parametrize("told", [1, 2, 3])
def test_where_another_rank_is_told_to_end_all_end_after_the_same_batch(told: int) -> None:
    agreement, beats = Agreement(told), []
    assert validator(Bench(), agreement, world_size=2).measure(lambda: beats.append(1)) is None
    assert len(beats) == told == len(agreement.updates)


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_read_late_is_read_and_no_batch_is_further_ahead(world_size: int) -> None:
    """As on a GPU: results of a batch are read while the second after it is under way."""
    asked: list[int] = []
    read: list[int] = []
    agreement = Agreement(told=1)
    late = validator(Bench(), agreement, world_size=world_size)
    late._lag = LAG
    copying = Copying.read
    with mock.patch.object(Copying, "read", lambda self: read.append(len(asked)) or copying(self)):
        measured = late.measure(lambda: asked.append(1))
    assert len(asked) == len(SIZES) and read == [LAG + 1]  # the first batch's, after the third
    assert (measured is None) == agreement.should_end and (world_size == 1 or agreement.updates[0][0] == 1)


def test_rows_added_count_for_nothing() -> None:
    bench = Bench()
    batch = counting(examples(3))
    more = padded(batch, 8)
    assert [len(column) for column in more] == [8] * len(more) and padded(batch, 3) is batch is padded(batch, 0)
    for column, longer in zip(batch, more, strict=True):
        assert longer.dtype == column.dtype and torch.equal(longer[:3], column) and not longer[3:].any()
    expected, found = eval_step(bench.training, TOLD, batch), eval_step(bench.training, TOLD, more)
    assert torch.equal(found[1:], expected[1:])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)  # sums of another shape of batch


def test_one_graph_serves_every_batch_of_a_split() -> None:
    bench, counter = Bench(), CompileCounterWithBackend("aot_eager")
    compiled = compiled_eval_step(cast(Any, counter))
    for batch in batches():
        found = compiled(bench.training, TOLD, padded(batch, 8))
        expected = eval_step(bench.training, TOLD, batch)
        assert torch.equal(found[1:], expected[1:])
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    assert counter.frame_count == 1
