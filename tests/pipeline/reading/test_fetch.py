"""A store that fails: what is asked again, for how long, and what is said of it."""

import socket
from collections.abc import Callable

import pytest

from pipeline.command import InputError
from pipeline.reading import fetch
from pipeline.reading.fetch import patiently


class NoCredentialsError(Exception):
    """As botocore names it."""


class ResponseError(Exception):
    """As aiohttp says what a server answered."""

    def __init__(self, status: int):
        super().__init__(f"status {status}")
        self.status = status


def caused_by(cause: Exception) -> OSError:
    """As pipeline.folder raises what is no OSError."""
    try:
        raise OSError(None, str(cause) or type(cause).__name__) from cause
    except OSError as error:
        return error


def failing(error: Exception, times: int) -> Callable[[], int]:
    """What fails so often, then returns how often it was asked."""
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        if len(asked) <= times:
            raise error
        return len(asked)

    return ask


REFUSALS = {
    "forbidden": PermissionError(13, "Forbidden"),
    "HTTP 403": caused_by(ResponseError(403)),
    "no credentials": caused_by(NoCredentialsError()),
    "no such host": caused_by(caused_by(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))),
}


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store has failed or answered yet."""
    monkeypatch.setattr(fetch, "_noticed", set())
    monkeypatch.setattr(fetch, "_answered", set())


@pytest.mark.parametrize("name", REFUSALS)
def test_what_patience_does_not_mend_ends_soon(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(fetch, "REFUSAL_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"a/b cannot be read \(.*; \d+ tries\).*credentials"):
        patiently(failing(REFUSALS[name], 10**9), "odd://a", "b")
    assert patiently(failing(REFUSALS[name], 1), "odd://a", "b") == 2
    monkeypatch.setattr(fetch, "REFUSAL_SECONDS", 0.0)
    assert patiently(failing(REFUSALS[name], 2), "odd://a", "b") == 3  # it has answered before


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "503 Slow Down"),
        caused_by(ResponseError(500)),
        caused_by(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
    ],
    ids=["503", "HTTP 500", "name servers"],
)
def test_a_failure_that_may_pass_is_waited_for(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(fetch, "REFUSAL_SECONDS", 0.0)
    assert patiently(failing(error, 2), "odd://a", "b") == 3


def test_the_first_failure_of_a_store_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    for store in ("odd://a", "odd://b"):
        for name in ("one", "two"):
            patiently(failing(OSError(5, "Slow Down"), 1), store, name)
    assert capsys.readouterr().err.splitlines() == [
        f"notice: {store} fails (Slow Down); it is asked again, for up to 120 seconds"
        for store in ("odd://a", "odd://b")
    ]
