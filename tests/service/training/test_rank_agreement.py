"""What ranks say to each other beside a step, and what they do then."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from service.run.events import Act
from service.training.control_queue import ControlQueue
from service.training.graceful_stop import GracefulStop
from service.training.rank_agreement import RankAgreement
from service.training.ranks import Ranks

CPU = torch.device("cpu")


class Rank:
    """A rank of two, with its own signal, queue and clock."""

    def __init__(self, rank: int = 0, world_size: int = 2) -> None:
        self.stop, self.queue, self.due = GracefulStop(), ControlQueue(), False
        place = replace(Ranks(), rank=rank, world_size=world_size)
        self.agreement = RankAgreement(place, self.stop, self.queue, lambda: self.due, CPU)


def step(*ranks: Rank) -> None:
    """What a step does with flags: every rank gets the sums."""
    sums: Tensor = torch.stack([each.agreement.local_flags() for each in ranks]).sum(0)
    for each in ranks:
        each.agreement.update(sums.tolist())


def decisions(each: Rank) -> tuple[bool, bool, bool]:
    return each.agreement.should_end, each.agreement.should_act, each.agreement.should_save


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("acting", [False, True])
@pytest.mark.parametrize("due", [False, True])
def test_what_one_rank_is_told_both_do_after_the_same_step(stopping: bool, acting: bool, due: bool) -> None:
    leader, other = Rank(0), Rank(1)
    if stopping:
        other.stop.signal = cast(Any, 15)
    if acting:
        leader.queue.submit(cast(Act, None))
    leader.due = due
    assert decisions(leader) == decisions(other) == (False, False, False)  # not before all know
    step(leader, other)
    assert decisions(leader) == decisions(other) == (stopping, acting, due)


def test_only_rank_0s_clock_counts_and_a_save_is_over_once_it_is_begun() -> None:
    leader, other = Rank(0), Rank(1)
    other.due = True
    step(leader, other)
    assert not leader.agreement.should_save and not other.agreement.should_save
    leader.due = True
    step(leader, other)
    step(leader, other)  # read before the save, as the results that are under way are
    leader.due = False
    for each in (leader, other):
        assert each.agreement.should_save
        each.agreement.saved()
    step(leader, other)
    assert not leader.agreement.should_save and not other.agreement.should_save


def test_alone_it_need_not_wait_for_a_step() -> None:
    alone = Rank(world_size=1)
    alone.due = True
    assert decisions(alone) == (False, False, True)
    alone.due = False
    step(alone)
    assert decisions(alone) == (False, False, False)
