"""A run that is disturbed while it runs comes to the same numbers, or says what it lost: some rounds, by seed.

All of them: make faults.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from crashes import place
from disturbances import DISTURBANCES
from failing_calls import COMPILER, WHY_NOT
from rounds import Grounds, played, prepared

pytestmark = pytest.mark.skipif(not COMPILER, reason=WHY_NOT)

DEFAULT = ("shard truncated",)


@pytest.fixture(scope="module")
def small_grounds() -> Iterator[Grounds]:
    """For runs of one process."""
    with place() as folder:
        yield prepared(folder, ("one process",))


@pytest.fixture(scope="module")
def grounds() -> Iterator[Grounds]:
    with place() as folder:
        yield prepared(folder)


@pytest.mark.parametrize("kind", DEFAULT)
def test_nothing_is_lost(small_grounds: Grounds, kind: str) -> None:
    assert not (found := played(small_grounds, kind, 0, seed=1)).fault, found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kind"), list(enumerate(sorted(set(DISTURBANCES) - set(DEFAULT)), start=1))[::2])
def test_nothing_is_lost_of_other_kinds(grounds: Grounds, number: int, kind: str) -> None:
    assert not (found := played(grounds, kind, number, seed=2)).fault, found


@pytest.mark.slow
def test_other_numbers_are_found(grounds: Grounds) -> None:
    """The test of the test: where the undisturbed run had one other loss."""
    plain = grounds.expected["one process"]
    other = replace(plain, losses={**plain.losses, 20: plain.losses[20] + 1e-7})
    found = played(replace(grounds, expected={"one process": other}), "frozen", 99, seed=3)
    assert found.fault == "losses differ from step 20"
