"""torch's threads under a quota."""

import os

import pytest

from service.run.threads import COMPILING, COMPUTING, keep_within_quota


@pytest.mark.parametrize(
    ("quota", "threads", "environment", "computing", "compiling"),
    [
        (None, 8, {}, [], None),  # nothing is changed, and so nothing rounds otherwise
        (8.0, 8, {}, [], None),
        (2.0, 8, {}, [2], "2"),
        (1.5, 8, {}, [2], "2"),
        (0.2, 8, {}, [1], "1"),
        (6.0, 4, {}, [4], "6"),  # two hardware threads a core
        (2.0, 8, {"OMP_NUM_THREADS": "8"}, [], "2"),
        (2.0, 8, {"MKL_NUM_THREADS": "8", COMPILING: "5"}, [], "5"),
    ],
)
def test_torch_takes_no_more_threads_than_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    threads: int,
    environment: dict[str, str],
    computing: list[int],
    compiling: str | None,
) -> None:
    for name in (*COMPUTING, COMPILING):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    set_to: list[int] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("pipeline.host.cpus.cpu_quota", lambda: quota)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    keep_within_quota()
    assert set_to == computing and os.environ.get(COMPILING) == compiling
