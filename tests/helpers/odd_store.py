"""A store for tests that does what it is told to: odd:///folder is a folder of this host, read as a store is.

Each process has its own: what one is told, the others do not know.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

Answer = Callable[[str, int, int], bytes]
Rule = Callable[[Answer, str, int, int], bytes]


def true_answer(path: str, start: int, stop: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


class OddStore(AbstractFileSystem):
    """Reads files below the root folder by `rule`, and counts requests for shards."""

    protocol = "odd"
    rule: Rule | None = None
    requests: list[tuple[str, int, int]] = []  # noqa: RUF012  of all instances: (shard's name, start, stop)
    lock = threading.Lock()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": Path(path.removeprefix("odd://")).stat().st_size, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = path.removeprefix("odd://")
        if not path.endswith(".tar"):
            return Path(path).read_bytes()
        assert start is not None and end is not None
        with self.lock:
            self.requests.append((path.rpartition("/")[2], start, end))
        rule = type(self).rule
        return rule(true_answer, path, start, end) if rule else true_answer(path, start, end)


fsspec.register_implementation("odd", OddStore, clobber=True)


def odd_url(folder: Path) -> str:
    return f"odd://{folder}"


@contextmanager
def ruled_by(rule: Rule | None = None) -> Iterator[list[tuple[str, int, int]]]:
    """Answer as `rule` says, which has the true answer to work with; yields the requests for shards since then."""
    OddStore.requests.clear()
    OddStore.rule = staticmethod(rule) if rule else None  # type: ignore[assignment]
    try:
        yield OddStore.requests
    finally:
        OddStore.rule = None
