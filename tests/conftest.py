"""What several files of tests share: a browser, and a server for its page."""

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from browser import chromium
from page_server import PageServer


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def server() -> PageServer:
    return PageServer()
