"""The faults that a verification reports: one line each, and at most MAX_FAULTS of one file."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from pipeline.command import printable

MAX_FAULTS: Final = 20  # reported of one file; a tar that lost a block may have thousands


class Fault(NamedTuple):
    """What is wrong with one file of a data set; `expected` and `found` are empty where `what` says all."""

    file: str
    what: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        """The fault on one line, whatever bytes names and files hold."""
        expected = f", expected {self.expected}" if self.expected else ""
        found = f", found {self.found}" if self.found else ""
        return printable(f"{self.file}: {self.what}{expected}{found}")


class Faults:
    """The faults of one file, in the order they were found; of many, the first are kept and all are counted."""

    def __init__(self, file: str):
        self.file, self.count = file, 0
        self._first: list[Fault] = []

    def report(self, what: str, expected: object = "", found: object = "") -> None:
        """Add one."""
        self.add(Fault(self.file, what, str(expected), str(found)))

    def require(self, what: str, expected: object, found: object) -> None:
        """Add one unless both are equal."""
        if expected != found:
            self.report(what, expected, found)

    def add(self, fault: Fault) -> None:
        """Add one that may be of another file."""
        self.count += 1
        if len(self._first) < MAX_FAULTS:
            self._first.append(fault)

    def listed(self) -> tuple[Fault, ...]:
        """The first MAX_FAULTS, and how many more there are."""
        more = self.count - len(self._first)
        return (*self._first, *([Fault(self.file, f"{more:,} more faults")] if more else []))


def first_faults(file: str, faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """The first MAX_FAULTS of `faults`, and how many more there are, reported as a fault of `file`."""
    kept = Faults(file)
    for fault in faults:
        kept.add(fault)
    return kept.listed()
