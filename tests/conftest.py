"""What several files of tests share: a thread for each process, shards, a browser, and a server for its page."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

# The tests' arithmetic is small, and there are several processes at once: threads that wait for one another, busily, on
# cores that are others' turn make it five times as long. Set before torch is imported, which reads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test or a worker chooses more

from browser import chromium
from page_server import PageServer
from processes import small_shards

# Files of few tests that take long each: they start processes of several ranks, or wait for real programs. Beside them
# there is always something left to do, as long as they are not the last.
LONGEST = ("test_ranks.py", "test_train.py", "test_parallel.py", "test_prometheus.py", "test_launch.py", "test_api.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What small runs train on; nobody writes to it."""
    return small_shards(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def server() -> PageServer:
    return PageServer()
