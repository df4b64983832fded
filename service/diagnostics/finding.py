"""The result of one check of service.doctor: its status, what was found, what follows, and what to do."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Status = Literal["ok", "warning", "failed"]


class Finding(NamedTuple):
    """failed: training as asked for would fail. Plain ASCII, so that any terminal and any pipe can take it."""

    status: Status
    check: str  # its short name
    found: str
    follows: str = ""
    remedy: str = ""  # the flag or the command to use
    flags: tuple[str, ...] = ()  # with these training works in spite of it; NAME=VALUE goes into the environment


def worst(findings: Iterable[Finding]) -> Status:
    """The status of all of them together."""
    there = {finding.status for finding in findings}
    return "failed" if "failed" in there else "warning" if "warning" in there else "ok"


def blocking_checks(findings: Iterable[Finding]) -> list[str]:
    """The failed checks that no flag gets around."""
    return [finding.check for finding in findings if finding.status == "failed" and not finding.flags]


def with_flags(command: list[str], findings: Iterable[Finding]) -> list[str]:
    """A command with the flags that the findings want, each once; environment variables come first."""
    wanted = list(dict.fromkeys(flag for finding in findings for flag in finding.flags))
    before = [each for each in wanted if not each.startswith("-")]
    after = [word for each in wanted if each.startswith("-") for word in each.split(" ", 1)]
    return [*before, *command, *after]


def size(count: float) -> str:
    """Bytes for people: 512 MB, 7.8 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
