"""What several files of tests share: a thread for each process, a browser, and a server for its page."""

import os
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

# The tests' arithmetic is small, and there are several processes at once: threads that wait for one another, busily, on
# cores that are others' turn make it five times as long. Set before torch is imported, which reads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test or a worker chooses more

from browser import chromium
from page_server import PageServer


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def server() -> PageServer:
    return PageServer()
