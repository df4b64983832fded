"""The status page of a real training run: watched, steered and stopped from a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from browser import HERE, WHY_NOT, Page, chromium
from page_server import TOKEN
from processes import command, start, wait_until
from service.run.checkpoint import newest_checkpoint

pytestmark = pytest.mark.skipif(not HERE, reason=WHY_NOT)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path / "profile") as browser:
        yield browser


@pytest.mark.slow
def test_a_run_is_watched_steered_and_stopped_from_its_page(driver: Chrome, shards: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"alice:{TOKEN}\n")
    out = tmp_path / "run"
    options = ("--epochs", "100000", "--checkpoint-seconds", "0", "--token-file", str(tokens))
    process = start(command(shards, out, *options))
    try:
        assert process.stdout
        line = next(line for line in process.stdout if "serving " in line)
        page = Page(driver, line.split("serving ")[1].split("/,")[0])
        page.open()
        page.until_text("#phase", "Training")
        first = page.text("#position")
        page.until(lambda: page.text("#position") != first)
        page.until(lambda: page.texts("#pictures span"))
        assert set(page.texts("#pictures span")) <= {"a", "b", "c"}
        page.until(lambda: page.texts("#loss-chart .x-tick"))

        page.type("#token", TOKEN)
        page.type("#reason", "<b>before</b> lowering")
        page.click("#checkpoint")
        page.until_text("#answer", "Checkpoint saved at step ")
        page.until_text("#filters-note", "Step ")
        page.until_text("#kept-rows", "B")  # a size in bytes
        page.click("#divide")
        page.until_text("#answer", "Learning rate 0.01 → 0.001 at step ")
        page.until_text("#events", "<b>before</b> lowering")
        page.until(lambda: page.texts("#loss-chart .mark text") == ["0.001"])
        page.click("#pause")
        page.until_text("#answer", "Paused at step ")
        page.until_text("#paused", "By alice since ")
        page.click("#pause")
        page.until_text("#phase", "Training")
        page.click("#stop")
        page.click("#confirm-yes")
        page.until_text("#answer", "Stopped at step ")
        page.until_text("#lost", "The run has ended")
        assert wait_until(lambda: process.poll() is not None, process)
        found = newest_checkpoint(out, print)
        assert found and f": {found.path.name}." in page.text("#answer")
        assert page.run("return violations") == []
        assert page.foreign_requests() == []
        page.leave()
    finally:
        process.kill()
        output = process.communicate()[0]
    assert process.returncode == 0, output
