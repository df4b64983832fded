"""Whatever a crash may leave of what was written, a start finds what was promised: a part of all states, by seed.

All of them: make faults.
"""

import pytest

from crash_states import Call, State, Tree, states, undisturbed
from crashes import WRITERS, explore
from failing_calls import COMPILER, WHY_NOT

needs_compiler = pytest.mark.skipif(not COMPILER, reason=WHY_NOT)


@needs_compiler
@pytest.mark.parametrize(("writer", "most"), [("checkpoints and log", 150), ("sharding", 80)])
def test_a_start_finds_all_that_was_promised(writer: str, most: int) -> None:
    found = explore(writer, most=most)
    assert not found.faults, found.faults[:3]
    assert found.tried == min(most, found.states) and found.states > 100 and found.calls > 50


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("writer", WRITERS)
def test_a_start_that_crashes_too_loses_nothing(writer: str) -> None:
    found = explore(writer, most=0, crashes=2, seed=1)
    assert not found.faults, found.faults[:3]
    assert found.tried == found.second > 20 and found.crashes == 2


@needs_compiler
@pytest.mark.parametrize(
    ("writer", "broken"), [(writer, broken) for writer in WRITERS for broken in WRITERS[writer].broken]
)
def test_a_broken_writer_is_caught(writer: str, broken: str) -> None:
    """The test of the test: each leaves out one thing."""
    assert explore(writer, broken, enough=1).faults


def found_of(tree: Tree, *calls: Call) -> list[dict[str, bytes | None]]:
    return [dict(state.tree.content()) for state in states(tree, calls)]


def test_what_is_not_synced_may_be_lost_torn_or_zeros_each_by_itself() -> None:
    data = bytes(range(1, 251)) * 40  # 10,000 bytes: three blocks, cut after the first
    tree = Tree({0: {"f": 1}}, {1: bytearray(b"old")})
    left = {found["f"] for found in found_of(tree, Call("write", 1, data=data))}
    assert left == {b"old", data, data[:4096], bytes(len(data))}
    calls = [Call("write", 1, data=data), Call("sync", 1), Call("mark", 0, mark="saved")]
    assert [dict(state.tree.content()) for state in states(tree, calls) if state.promises] == [{"f": data}]


def test_names_may_be_lost_until_their_folder_is_synced_whatever_became_of_the_bytes() -> None:
    new = Call("name", 0, added="f.tmp", into=0, entry=1)
    bytes_ = (Call("write", 1, data=b"new"), Call("sync", 1))
    rename = Call("name", 0, removed="f.tmp", added="f", into=0, entry=1)
    left = found_of(Tree(), new, *bytes_, rename)
    assert {tuple(found) for found in left} == {(), ("f.tmp",), ("f",)}
    assert all(found["f"] == b"new" for found in left if "f" in found)
    done: list[State] = list(states(Tree(), [new, *bytes_, rename, Call("sync", 0), Call("mark", 0, mark="saved")]))
    assert [dict(state.tree.content()) for state in done if state.promises] == [{"f": b"new"}]
    assert dict(undisturbed(Tree(), [new, *bytes_, rename]).content()) == {"f": b"new"}


def test_a_folder_that_is_lost_takes_all_that_is_in_it() -> None:
    calls = (
        Call("name", 0, added="a", into=0, entry=1, is_folder=True),
        Call("name", 1, added="f", into=1, entry=2),
        Call("write", 2, data=b"x"),
        Call("sync", 2),
        Call("sync", 1),
        Call("mark", 0, mark="saved"),
    )
    promised = [dict(state.tree.content()) for state in states(Tree(), calls) if state.promises]
    assert promised == [{"a": None, "a/f": b"x"}, {}]
