import pytest

from pipeline import progress as module
from pipeline.progress import progress


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress(4000, "pictures") as advance:
        advance(1000, "")
        assert capsys.readouterr().err == ""
        advance(1000, "3 rejected")
        assert capsys.readouterr().err == "2,000 of 4,000 pictures, 200 a second, 10 s left, 3 rejected\n"
        advance(2000, "")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress(4000, "pictures") as advance:
        advance(4000, "3 rejected")
    shown = capsys.readouterr().err
    assert "4000/4000" in shown
    assert "a second, 3 rejected" in shown
