"""A run that dies again and again before it saves is ended, and no other."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.command import InputError
from processes import command, run
from service.run.starts import STARTS_FILE, count_start, forget_starts, starts_from

PROGRAM = Path(__file__).parent.parent / "faults/faulty_worker.py"


def test_starts_from_one_checkpoint_are_counted_until_there_is_another(tmp_path: Path) -> None:
    for _ in range(3):
        count_start(tmp_path, 7, 3)
    with pytest.raises(InputError, match="was started 3 times from its checkpoint of step 7"):
        count_start(tmp_path, 7, 3)
    count_start(tmp_path, 7, 4)  # one more, as the error's remedy says
    count_start(tmp_path, 9, 1)
    assert (starts_from(tmp_path, 9), starts_from(tmp_path, 7)) == (1, 0)
    forget_starts(tmp_path)
    assert starts_from(tmp_path, 9) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 7}', b'{"step": 7, "starts": "x"}', b"null", b"\xff"])
def test_a_count_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STARTS_FILE).write_bytes(content)
    count_start(tmp_path, 7, 1)
    assert starts_from(tmp_path, 7) == 1


def test_a_count_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    count_start(tmp_path / "gone", 7, 1)
    assert not (tmp_path / "gone").exists()


@pytest.mark.slow
def test_a_run_that_dies_in_the_same_step_each_time_is_refused(shards: Path, tmp_path: Path) -> None:
    """By NaN in its third step, before any checkpoint; the count ends with it: a call that avoids it goes on."""
    words = command(shards, tmp_path, "--most-restarts", "2", "--max-steps", "6", "--checkpoint-every", "5")
    faulty = [sys.executable, str(PROGRAM), *words[3:]]
    poison = {"POISON": "3", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    assert [run(faulty, **poison)[0] for _ in range(2)] == [1, 1]
    status, output = run(faulty, **poison)
    assert status == 2 and "was started 2 times from its beginning and came to no new one" in output.splitlines()[-1]
    status, output = run([*faulty, "--most-restarts", "3", "--on-fault", "skip"], **poison)
    assert status == 0 and not (tmp_path / STARTS_FILE).exists(), output
