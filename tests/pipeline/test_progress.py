import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline import progress as module
from pipeline.progress import Advance, progress, spinner


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell = _clocked(monkeypatch, capsys, [5.0, 10.0, 12.0])
    with progress(4000, "pictures") as advance:
        assert tell(advance, 1000) == ""
        assert tell(advance, 1000, "3 rejected") == "2,000 of 4,000 pictures, 200 a second, 10 s left, 3 rejected\n"
        assert tell(advance, 2000) == ""


def test_bytes_are_told_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell = _clocked(monkeypatch, capsys, [20.0])
    with progress(400, "pictures") as advance:
        line = tell(advance, 100, size=50_000_000)
    assert line == "100 of 400 pictures, 5 a second, 2.5 MB/s, 1 min 00 s left\n"


def test_what_an_earlier_run_did_says_nothing_of_the_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell = _clocked(monkeypatch, capsys, [10.0, 20.0, 40.0])
    with progress(40_000, "pictures") as advance:
        assert tell(advance, 20_000, size=10**9, before=True) == "20,000 of 40,000 pictures, 0 a second\n"
        assert tell(advance, 2000, size=10**6).endswith(", 100 a second, 50.0 kB/s, 3 min 00 s left\n")
        assert tell(advance, 2000, size=10**6).endswith(", 100 a second, 50.0 kB/s, 2 min 40 s left\n")


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Makes stderr a terminal within the block; what it has shown is in the list after it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen, device = pty.openpty()
    shown: list[str] = []
    with open(device, "w", encoding="utf-8") as stream, open(screen, "rb", buffering=0) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            yield shown
        # The kernel hands over what was written in pieces, and some of it a little later.
        end = "\0"
        stream.write(end)
        stream.flush()
        shown.append("".join(iter(lambda: reader.read(1).decode("latin-1"), end)))


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown, progress(4000, "pictures") as advance:
        advance(4000, "3 rejected")
    assert "4000/4000" in shown[0]
    assert "a second, 0 s left, 3 rejected" in shown[0]


def test_what_has_no_known_length_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown, spinner("listing things"):
        pass
    assert "listing things" in shown[0]


def test_a_log_that_wants_colours_gets_lines_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    tell = _clocked(monkeypatch, capsys, [10.0])
    with spinner("listing things"), progress(4000, "pictures") as advance:
        assert tell(advance, 2000) == "2,000 of 4,000 pictures, 200 a second, 10 s left\n"


def _clocked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: list[float]
) -> Callable[..., str]:
    """A caller of `advance` at these seconds after the start, that returns what is then told."""
    clock = iter([0.0, *seconds])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))

    def tell(advance: Advance, *args: Any, **kwargs: Any) -> str:
        capsys.readouterr()
        advance(*args, **kwargs)
        return capsys.readouterr().err

    return tell
