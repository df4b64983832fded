"""The status page's controls in a real browser: what they ask for, what they say, and what becomes of a token."""

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from browser import HERE, WHY_NOT, Page
from page_server import TOKEN, PageServer, rate_event, training

pytestmark = pytest.mark.skipif(not HERE, reason=WHY_NOT)

BUTTONS = ("checkpoint", "pause", "stop", "set-rate", "divide")
PROPOSAL = {"rate": 1e-5, "factor": 0.1, "reason": "the error has not improved by 0.001 for 3 epochs"}


@pytest.fixture
def page(driver: Chrome, server: PageServer) -> Iterator[Page]:
    """The page with a status shown, of a tab in which nothing was remembered."""
    with server.running():
        it = Page(driver, server.url)
        it.open()
        it.run("sessionStorage.clear()")
        it.open()
        it.until_text("#control-title", "Control")
        yield it
        foreign = it.foreign_requests()
        it.leave()
    assert foreign == []


def ready(page: Page, token: str = TOKEN) -> None:
    """Enter a token."""
    page.until_text("#token-form", "Token")
    page.type("#token", token)


def disabled(page: Page) -> list[str]:
    """The buttons that do nothing now."""
    return [each for each in BUTTONS if page.attribute(f"#{each}", "aria-disabled") == "true"]


def test_every_button_asks_for_its_act_with_token_and_reason(page: Page, server: PageServer) -> None:
    ready(page)
    acts: list[tuple[str, str, dict[str, Any]]] = [
        ("#checkpoint", "checkpoint", {}),
        ("#pause", "pause", {}),
        ("#divide", "learning-rate", {"factor": 0.1}),
        ("#set-rate", "learning-rate", {"rate": 0.00025}),
    ]
    for number, (button, action, body) in enumerate(acts):
        page.type("#reason", f"reason {number}")
        if button == "#set-rate":
            page.type("#rate", "2.5e-4")
            assert page.text("#rate-hint") == "2.5 times the present rate."
        page.click(button)
        page.until_text("#answer", "at step 346,309: step-00346309.")
        assert server.asked[-1] == (action, f"Bearer {TOKEN}", {**body, "reason": f"reason {number}"})
        page.until(lambda: page.run("return document.querySelector('#reason').value") == "")
    server.status = training(paused=True, phase="paused")
    page.until_text("#pause", "Resume")
    page.click("#pause")
    page.until_text("#answer", "Resumed at step")
    assert server.asked[-1] == ("resume", f"Bearer {TOKEN}", {})
    assert page.complaints() == []


def test_enter_sets_the_rate_and_nothing_else(page: Page, server: PageServer) -> None:
    ready(page)
    page.type("#reason", "no act" + Keys.ENTER)
    page.type("#token", Keys.ENTER)
    for wrong in ("-1", "0", "abc", "Infinity"):
        page.type("#rate", wrong + Keys.ENTER)
        assert "set-rate" in disabled(page)
        page.type("#rate", Keys.BACKSPACE * len(wrong))
    assert server.asked == []
    page.type("#rate", "0,5" + Keys.ENTER)
    page.until(lambda: server.asked)
    assert server.asked == [("learning-rate", f"Bearer {TOKEN}", {"rate": 0.5, "reason": "no act"})]


def test_stopping_asks_first_and_gives_the_focus_back(page: Page, server: PageServer) -> None:
    ready(page)
    page.click("#stop")
    assert page.focused() == "confirm-no"
    within = "const e = document.activeElement; return e === document.body || e.closest('dialog') !== null"
    for _ in range(5):
        page.press(Keys.TAB)
        assert page.run(within)
    page.press(Keys.ESCAPE)
    page.until(lambda: page.focused() == "stop")
    page.press(Keys.ENTER)
    page.until(lambda: page.focused() == "confirm-no")
    page.press(Keys.ENTER)
    page.until(lambda: page.focused() == "stop")
    assert server.asked == []
    page.press(Keys.ENTER)
    page.until(lambda: page.focused() == "confirm-no")
    page.click("#confirm-yes")
    page.until_text("#answer", "Stopped at step 346,309: step-00346309.")
    assert server.asked == [("stop", f"Bearer {TOKEN}", {})]


@pytest.mark.parametrize(
    ("code", "body", "words", "style"),
    [
        (202, {"pending": True}, "not done within a minute", "answer"),
        (
            409,
            {"error": "the run is not paused, expected a pause; nothing to resume"},
            "The run is not paused",
            "failed",
        ),
        (503, {"error": "the checkpoint failed (No space left on device)"}, "No space left on device", "failed"),
        (500, {}, "The worker answered 500.", "failed"),
    ],
)
def test_answers_are_said(
    page: Page, server: PageServer, code: int, body: dict[str, Any], words: str, style: str
) -> None:
    server.answers["checkpoint"] = code, body
    ready(page)
    page.type("#reason", "why")
    page.click("#checkpoint")
    page.until_text("#answer", words)
    assert style in (page.attribute("#answer", "class") or "")
    assert words in page.texts("#said-now" if style == "failed" else "#said-politely")[0]
    kept = page.run("return document.querySelector('#reason').value")
    assert kept == ("why" if style == "failed" else "")  # to try again with
    assert disabled(page) == ["set-rate"]


def test_a_wrong_token_is_refused_and_not_kept(page: Page, server: PageServer) -> None:
    ready(page, "wrong")
    page.click("#remember")
    page.click("#divide")
    page.until_text("#answer", "The token is not one of the worker's")
    assert page.attribute("#token", "aria-invalid") == "true"
    assert page.run("return sessionStorage.length") == 0
    page.type("#token", " ")
    page.press(Keys.BACKSPACE)
    page.type("#token", "é")  # which no header can carry
    assert disabled(page) == list(BUTTONS)
    assert "no token can have" in page.text("#control-hint")
    assert len(server.asked) == 1


def test_an_act_under_way_is_shown_and_blocks_others(page: Page, server: PageServer) -> None:
    ready(page)
    server.hold.clear()
    page.click("#pause")
    page.until_text("#answer", "Pausing…")
    assert page.attribute("#pause", "aria-busy") == "true"
    assert disabled(page) == list(BUTTONS)
    assert page.text("#control-hint") == "Waiting for the worker’s answer."
    page.click("#checkpoint")
    server.hold.set()
    page.until_text("#answer", "Paused at step")
    assert page.attribute("#pause", "aria-busy") is None
    assert [action for action, *_ in server.asked] == ["pause"]


def test_what_does_not_work_says_why(page: Page, server: PageServer) -> None:
    page.until_text("#control-hint", "Enter the token to use the buttons.")
    assert disabled(page) == list(BUTTONS)
    buttons = {node["name"]: node["description"] for node in page.accessible() if node["role"] == "button"}
    assert all("Enter the token" in buttons[name] for name in ("Save checkpoint", "Pause", "Stop…", "Set"))
    page.click("#pause")
    assert page.focused() == "token"
    page.type("#token", TOKEN)
    assert disabled(page) == ["set-rate"]
    assert page.attribute("#set-rate", "title") == "Enter a new rate to set it."
    server.status = training(phase="ended")
    page.until_text("#control-hint", "The run is over.")
    assert disabled(page) == list(BUTTONS)


def test_tab_reaches_everything_in_the_order_of_the_page_and_shows_where_it_is(page: Page, server: PageServer) -> None:
    server.status = training(proposal=PROPOSAL)
    page.until_text("#proposal", "Time to lower")
    script = """return [...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')]
        .filter((e) => e.checkVisibility()).map((e) => e.id || e.className || e.tagName)"""
    expected = page.run(script)
    assert {"skip", "accept", "reader", "token", "events-scroll", *BUTTONS} <= set(expected)
    page.run("document.activeElement.blur()")
    reached = []
    for _ in expected:
        page.press(Keys.TAB)
        reached.append(page.focused())
        outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached[-1]
    assert reached == expected


def test_the_proposal_takes_one_click(page: Page, server: PageServer) -> None:
    server.status = training(proposal=PROPOSAL, alerts=[{"name": "TrainerPlateau", "severity": "info", "summary": "…"}])
    ready(page)
    page.until_text("#proposal", "The error has not improved by 0.001 for 3 epochs.")
    assert page.text("#alerts") == ""  # it says the same
    assert page.text("#accept") == "Divide the rate by ten"
    event = rate_event(346309, 34.6, 1e-4, 1e-5)
    server.answers["learning-rate"] = 200, {"event": event, "checkpoint": None}
    page.click("#accept")
    page.until_text("#proposal-answer", "Learning rate 0.0001 → 1e-5 at step 346,309.")
    assert server.asked == [("learning-rate", f"Bearer {TOKEN}", {"factor": 0.1, "reason": PROPOSAL["reason"]})]
    server.status = training(learning_rate=1e-5)
    page.until(lambda: page.text("#proposal") == "")
    assert "Learning rate 0.0001 → 1e-5" in page.text("#proposal-answer")


def test_where_control_is_off_the_page_says_how_to_turn_it_on(page: Page, server: PageServer) -> None:
    server.status = training(control=False, proposal=PROPOSAL)
    page.until_text("#control-off", "--token-file FILE")
    assert page.text("#control") == ""
    assert page.attribute("#accept", "aria-disabled") == "true"
    assert "Control is off here." in page.text("#proposal")
    server.status = training(control=False, rank=1)
    page.until_text("#control-off", "Rank 0’s page has the controls")
    assert "--token-file" not in page.text("#control-off")


def test_a_token_is_kept_in_this_tab_if_asked_and_nowhere_else(page: Page) -> None:
    def kept() -> str:
        return page.run("return Object.values(sessionStorage).join()")

    ready(page)
    assert kept() == ""
    page.click("#remember")
    assert kept() == TOKEN
    page.open()
    page.until(lambda: page.text("#phase") == "Training" and "set-rate" in disabled(page))
    page.until(lambda: disabled(page) == ["set-rate"])
    page.click("#remember")
    assert kept() == ""
    page.open()
    page.until(lambda: disabled(page) == list(BUTTONS))
    assert page.run("return localStorage.length") == 0
    assert page.run("return document.cookie") == ""


def test_one_poll_that_fails_is_no_lost_connection_but_two_are(page: Page, server: PageServer) -> None:
    page.until_text("#phase", "Training")
    page.run("""window.shown = [];
        const lost = document.querySelector('#lost');
        new MutationObserver(() => shown.push(lost.textContent)).observe(lost, {attributeFilter: ['hidden']});""")
    for faults, progress in ((1, 0.5), (2, 0.6)):
        server.faults, server.status = faults, training(progress=progress)
        page.until_text("#percent", f"{progress:.1%}")
        shown = page.run("return shown.filter((text) => text.includes('answers HTTP 503'))")
        assert bool(shown) == (faults == 2)


def test_a_lost_connection_is_said_and_found_again(driver: Chrome) -> None:
    server = PageServer()
    with server.running():
        page = Page(driver, server.url)
        page.open()
        ready(page)
    page.until_text("#lost", "Connection lost since ")
    page.until_text("#lost", "Next try in 4 s.")
    page.until_text("#lost", "Next try in 8 s.")  # ever more patient
    assert page.text("#phase") == "No connection"
    assert page.text("#control-hint") == "No connection to the worker."
    assert page.texts("#said-now")[0].startswith("Connection lost since ")
    server.status = training(progress=0.75)
    with server.running():
        page.until_text("#percent", "75.0%")
        assert page.text("#lost") == ""
        assert page.text("#phase") == "Training"
        assert page.texts("#said-politely") == ["Connected again."]
        assert disabled(page) == ["set-rate"]
        server.status = training(phase="ended")
        page.until_text("#phase", "Ended")
    page.until_text("#lost", "The run has ended, and its worker is gone.")
    assert page.text("#phase") == "Ended"
    with server.running():
        server.status = training(progress=0.8)
        page.click("#retry")
        page.until_text("#percent", "80.0%")
        page.leave()
