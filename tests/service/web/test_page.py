"""The status page in a real browser: what it shows, to whom, and that it trusts nothing it is told."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from browser import HERE, WHY_NOT, Page
from page_server import DROPS, NOW, PageServer, curve, pictures, rate_event, starting, training

pytestmark = pytest.mark.skipif(not HERE, reason=WHY_NOT)

ALERTS = [
    {"name": "TrainerStalled", "severity": "critical", "summary": "nothing was done for 700 s, limit 600 s"},
    {"name": "TrainerDataWaitHigh", "severity": "warning", "summary": "37% of the time is spent waiting for data"},
    {"name": "TrainerRestarts", "severity": "info", "summary": "the run was restarted"},
]
PROPOSAL = {"rate": 1e-5, "factor": 0.1, "reason": "the error has not improved by 0.001 for 3 epochs"}
CONTRAST = Path(__file__).with_name("contrast.js")
EVIL = "<img src=x onerror='window.fired=1'><script>window.fired=1</script>\"onload=\"window.fired=1"
LONG = "Donaudampfschifffahrtsgesellschaft" * 9


@pytest.fixture
def page(driver: Chrome, server: PageServer) -> Iterator[Page]:
    """The page; in the end nothing was refused by its policy, went wrong in it or left its origin."""
    with server.running():
        it = Page(driver, server.url)
        yield it
        complaints, foreign = it.complaints(), it.foreign_requests()
        it.leave()
    assert (complaints, foreign) == ([], [])


def opened(page: Page, width: int = 1280, scheme: str = "light", motion: str = "no-preference") -> None:
    """Open the page and wait until it has shown its first status and curve."""
    page.open(width, prefers_color_scheme=scheme, prefers_reduced_motion=motion)
    page.until(lambda: page.run("return state.status && (state.curve || !state.status.step)"))


def pairs(page: Page, selector: str) -> dict[str, str]:
    """A list of terms and what they say."""
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => [e.innerText, e.nextSibling.textContent])"
    return dict(page.run(script, f"{selector} dt"))


def test_the_status_is_shown_in_words_that_people_use(page: Page) -> None:
    opened(page)
    assert (page.text("#percent"), page.text("#phase"), page.text("#recipe")) == ("38.4%", "Training", "paper")
    assert page.text("#eta").startswith("16 h 14 min left, ends ")
    assert page.text("#position") == "Epoch 34.6 of 90, step 346,308 of 900,810"
    shown = {"Images/s": "1,213", "Data wait": "1.2%", "MFU": "41.2%", "Training loss": "1.396"}
    shown |= {"Gradient norm": "1.235", "Learning rate": "0.0001", "Top-1 error": "27.3%", "Top-5 error": "10.7%"}
    assert pairs(page, "#figures") == shown
    facts = {"Last saved": "4 min ago", "It took": "1.24 s", "Size": "490 MB", "Failed": "0 of 347"}
    assert pairs(page, "#checkpoint-facts") == facts
    assert page.texts("#kept-rows th") == ["346,000", "345,000"]
    run = pairs(page, "#run")
    assert (run["Folder"], run["Ranks"], run["Epoch"]) == ("/runs/paper", "2 (tower)", "1,281,167 pictures")
    newest = "Learning rate 0.001 → 0.0001 error stopped improving Epoch 31.0, step 310,279, alice,"
    assert page.text("#events li").startswith(newest)
    assert page.texts("#pictures li")[:2] == ["tench, Tinca tinca", "goldfish"]
    assert page.driver.title == "38% · Training · paper · AlexNet trainer"
    page.click("#history summary")
    assert page.texts("#history-rows tr:first-child > *") == ["34", "340,306", "1.229", "27.3%", "10.7%"]


def test_a_finished_run_shows_its_parent_and_its_error_on_ten_views(page: Page, server: PageServer) -> None:
    measured = {"epoch": 90, "step": 900810, "views": 10, "samples": 50000, "top1": 0.4066, "top5": 0.1821}
    reason = "from runs/145 at step 346,308 (SHA-256 0123456789ab), all kept"
    fork = {"kind": "fork", "step": 346308, "epoch": 34.6, "time": NOW, "author": "command line", "reason": reason}
    server.status = training(evaluation=measured, events=[fork])
    opened(page)
    assert pairs(page, "#figures")["Top-1, 10 views"] == "40.7%"
    assert "top-5 18.2%" in page.text("#figures")
    assert page.text("#events li").startswith(f"Started from another network {reason} Epoch 34.6")


def test_news_appear_without_a_reload(page: Page, server: PageServer) -> None:
    opened(page)
    page.until(lambda: page.text("#filters-note") == "Step 346,000")
    page.run("window.here = 1")
    drawn = page.attribute("#loss-chart .training .line", "d")
    later = {"progress": 0.5, "images_per_second": 9.876, "filters_step": 347000, "mfu": None, "phase": "validating"}
    server.status = training(**later, events=[])
    server.curve, server.pictures = curve(36.0), pictures(3)
    page.until_text("#percent", "50.0%")
    assert page.text("#phase") == "Validating"
    assert pairs(page, "#figures")["Images/s"] == "9.88"
    assert "MFU" not in pairs(page, "#figures")
    page.until(lambda: page.attribute("#loss-chart .training .line", "d") != drawn)
    page.until(lambda: len(page.texts("#pictures li")) == 3)
    page.until(lambda: "step=347000" in (page.attribute("#filters", "src") or ""))
    assert page.run("return window.here") == 1


@pytest.mark.parametrize(("towers", "names"), [(2, ["Tower 0", "Tower 1"]), (1, [])])
def test_filters_are_of_as_many_towers_as_there_are(
    page: Page, server: PageServer, towers: int, names: list[str]
) -> None:
    server.status["run"] = server.status["run"] | {"towers": towers}
    opened(page)
    page.until(lambda: page.text("#filters-note") == "Step 346,000")
    assert page.texts("#towers span") == names
    assert ("tower 1" in (page.attribute("#filters", "alt") or "")) == (towers == 2)


def test_what_is_not_known_yet_is_explained(page: Page, server: PageServer) -> None:
    server.status, server.curve, server.pictures = starting(), {}, {}  # which are asked for in vain
    opened(page)
    assert page.text("#phase") == "Starting"
    assert set(pairs(page, "#figures").values()) == {"–not known yet"}  # a dash to the eye, words to a screen reader
    assert "compiled" in page.text("#loss-empty")
    empty = ("#error-empty", "#pictures-empty", "#filters-empty", "#events-empty")
    assert all(page.text(selector) for selector in empty)
    assert not page.run("return document.querySelector('#bar').hasAttribute('value')")


def positions(page: Page, chart: str, axis: str) -> tuple[float, float]:
    """Pixels of zero and pixels a unit of an axis, from its ticks."""
    script = """return [...document.querySelectorAll(arguments[0])].map((e) =>
        [parseFloat(e.textContent), +e.getAttribute(arguments[1])])"""
    ticks = page.run(script, f"#{chart}-chart .{axis}-tick", axis)
    (first, at), (last, there) = ticks[0], ticks[-1]
    scale = (there - at) / (last - first)
    return at - first * scale, scale


@pytest.mark.parametrize("chart", ["loss", "error"])
@pytest.mark.parametrize("width", [360, 1280])
def test_learning_rate_events_are_marked_where_they_happened(page: Page, chart: str, width: int) -> None:
    opened(page, width)
    zero, scale = positions(page, chart, "x")
    marks = page.driver.find_elements("css selector", f"#{chart}-chart .mark.learning-rate line")
    found = sorted(float(mark.get_attribute("x1") or "nan") for mark in marks)
    assert found == pytest.approx([zero + scale * epoch for epoch, _, _ in DROPS], abs=0.5)
    assert page.texts(f"#{chart}-chart .mark text") == ["0.0001", "0.001"]
    assert len(page.texts(f"#{chart}-chart .mark:not(.learning-rate)")) == 2  # a pause and its end


def drawn(page: Page, selector: str) -> list[tuple[float, float]]:
    """The points of a line, in pixels."""
    pairs = [point.split(",") for point in re.split("[ML]", page.attribute(selector, "d") or "") if point]
    return [(float(x), float(y)) for x, y in pairs]


def test_curves_go_through_their_values(page: Page, server: PageServer) -> None:
    opened(page)
    (x_zero, x_scale), (y_zero, y_scale) = positions(page, "error", "x"), positions(page, "error", "y")
    assert y_scale < 0  # percent, upwards
    for series in ("top1", "top5"):
        points = drawn(page, f"#error-chart .{series} .line")
        rows = server.status["history"]
        assert len(points) == len(rows)
        for (x, y), row in zip(points, rows, strict=True):
            assert x == pytest.approx(x_zero + x_scale * row["epoch"], abs=0.5)
            assert y == pytest.approx(y_zero - 4 + y_scale * 100 * row[series], abs=0.5)  # a tick's text stands 4 lower


def test_a_noisy_loss_has_a_calm_line_through_its_middle(page: Page, server: PageServer) -> None:
    opened(page)
    raw, calm = (drawn(page, f"#loss-chart .training .line{style}") for style in (".raw", ":not(.raw)"))
    assert len(raw) == len(calm) == len(server.curve["step"])
    off = [there - here for (_, there), (_, here) in zip(calm, raw, strict=True)]
    assert sum(off) / len(off) == pytest.approx(0, abs=0.2)  # pixels
    rough, smooth = (sum(abs(b - a) for (_, a), (_, b) in pairwise(line[-100:])) for line in (raw, calm))
    assert smooth < rough / 4


def test_a_curve_is_read_by_keys(page: Page, server: PageServer) -> None:
    opened(page)
    reader = "#loss-chart .reader"

    def value() -> str:
        return page.attribute(reader, "aria-valuetext") or ""

    page.until(lambda: page.press(Keys.TAB) or page.focused() == "reader")
    assert page.text("#loss-chart .tip").startswith("Epoch 34.6, step 346,311")
    page.press(Keys.HOME)
    first = server.curve["loss"][0]
    assert value() == f"Epoch 0.0384, step 385; Training {first:.3f}"
    page.press(Keys.ARROW_RIGHT)
    assert value().startswith("Epoch 0.0769, ")
    page.press(Keys.ARROW_RIGHT, shift=True)
    assert value().startswith("Epoch 23.0, ")
    assert "Validation" in value()
    assert value().endswith("Learning rate 0.01 → 0.001, alice: error stopped improving")
    assert "alice: error stopped improving" in page.text("#loss-chart .tip")
    assert page.run("return document.querySelectorAll('#error-chart .cursor line').length") == 1
    page.press(Keys.ESCAPE)
    assert page.text("#loss-chart .tip") == ""


def test_a_curve_is_read_by_the_pointer(page: Page) -> None:
    opened(page)
    page.run("document.querySelector('#error-chart').scrollIntoView({block: 'center'})")
    reader = page.driver.find_element("css selector", "#error-chart .reader")
    zero, scale = positions(page, "error", "x")
    from_middle = round(zero + scale * 23 - reader.size["width"] / 2)
    ActionChains(page.driver, duration=0).move_to_element_with_offset(reader, from_middle, 0).perform()
    tip = page.text("#error-chart .tip")
    assert tip.startswith("Epoch 23.0, step 230,207 ● Top-1 47.9% ● Top-5 22.9%")
    assert "Learning rate 0.01 → 0.001" in tip


def test_what_others_wrote_is_text_and_nothing_else(page: Page, server: PageServer) -> None:
    events = [rate_event(100, 10.0, 0.01, 0.001, author=EVIL, reason=EVIL), {"kind": EVIL, "step": 1, "epoch": 11.0}]
    server.status = training(events=events, alerts=[{"name": EVIL, "severity": EVIL, "summary": EVIL}])
    server.status |= {"phase": EVIL, "proposal": PROPOSAL | {"reason": EVIL}, "filters_step": EVIL}
    server.status["run"] |= {"recipe": EVIL, "out": EVIL, "layout": EVIL, "versions": {EVIL: EVIL, "constructor": "1"}}
    server.pictures = pictures(2, (EVIL,))
    opened(page)
    page.until(lambda: page.texts("#pictures span") == [EVIL, EVIL])
    assert EVIL in page.texts("#events li")[1]
    assert all(EVIL in "".join(page.texts(where)) for where in ("#alerts", "#proposal-reason", "#run", "#recipe"))
    page.until(lambda: page.press(Keys.TAB) or page.focused() == "reader")
    page.press(Keys.HOME, Keys.PAGE_UP, Keys.ESCAPE)
    assert page.run("return window.fired") is None
    assert (
        page.run("return document.querySelectorAll('main img:not([alt^=Picture], #filters), main script').length") == 0
    )


@pytest.mark.parametrize("width", [320, 360, 820, 1100])
def test_nothing_is_wider_than_the_window(page: Page, server: PageServer, width: int) -> None:
    long = training(events=[rate_event(9, 10.0, 0.01, 0.001, reason=LONG, author=LONG)], phase=LONG)
    long |= {"alerts": [{"name": LONG, "severity": "info", "summary": LONG}], "proposal": PROPOSAL | {"reason": LONG}}
    long["run"] |= {"out": LONG, "recipe": LONG}
    for status in (training(), starting(), training(alerts=ALERTS, proposal=PROPOSAL), long):
        server.status = status
        server.pictures = pictures(16, (LONG, "ok"))
        opened(page, width)
        script = """return [...document.querySelectorAll('body *:not(.unseen, .unseen *, svg *)')].filter((e) =>
            e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + .5).map((e) => e.outerHTML)"""
        assert page.run(script) == []
        inside = "return [...document.querySelectorAll('.scroll, dl, ul')].filter((e) => e.scrollWidth > e.clientWidth)"
        assert page.run(inside) == []
        assert page.run("return document.documentElement.scrollWidth") <= width


def test_assistive_technology_gets_names_landmarks_and_headings_in_order(page: Page, server: PageServer) -> None:
    server.status = training(alerts=ALERTS, proposal=PROPOSAL)
    opened(page)
    page.click("#history summary")
    tree = page.accessible()
    roles = {"button", "textbox", "checkbox", "slider", "image", "img", "link", "progressbar", "region", "table"}
    assert [node for node in tree if node["role"] in roles and not node["name"]] == []
    count = {
        role: sum(node["role"] == role for node in tree) for role in ("main", "banner", "image", "slider", "table")
    }
    assert count == {"main": 1, "banner": 1, "image": 16 + 1 + 2, "slider": 2, "table": 2}
    described = {node["name"] for node in tree if node["role"] == "image"}
    assert "Picture labelled goldfish" in described
    assert any(name.startswith("Training loss went from 6.838 to 1.400 in 34.6 epochs;") for name in described)
    levels = page.run("return [...document.querySelectorAll('h1, h2, h3')].map((e) => +e.tagName[1])")
    assert levels[0] == 1
    assert set(levels[1:]) == {2}


def test_live_regions_speak_once(page: Page, server: PageServer) -> None:
    opened(page)
    page.run("""window.said = [];
        for (const id of ['said-now', 'said-politely']) {
            const region = document.getElementById(id);
            new MutationObserver(() => said.push([id, region.textContent])).observe(region, {childList: true});
        }""")
    server.status = training(alerts=ALERTS[:1])
    page.until(lambda: page.run("return said.length"))
    for seconds in range(701, 704):  # what an alert says may change at every poll
        server.status = training(alerts=[ALERTS[0] | {"summary": f"nothing was done for {seconds} s"}])
        page.until_text("#alerts", f"{seconds} s")
    assert page.run("return said") == [["said-now", "Critical alert: TrainerStalled"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out_from_their_ground(page: Page, server: PageServer, scheme: str) -> None:
    paused = training(phase="paused", paused=True, control=False, health={"status": "stalled"})
    for status in (training(alerts=ALERTS, proposal=PROPOSAL), starting(), paused):
        server.status = status
        opened(page, scheme=scheme)
        if page.text("#token-form"):
            page.type("#token", "wrong token")
        ratios: list[tuple[float, float, str]] = page.run(CONTRAST.read_text())
        assert len(ratios) > 50
        assert [each for each in ratios if each[0] < each[1]] == []
        ground = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (max(ground) < 64) == (scheme == "dark")


def test_nothing_moves_for_who_wants_no_motion(page: Page, server: PageServer) -> None:
    server.status = training(phase="compiling")
    for wish, moves in (("no-preference", True), ("reduce", False)):
        opened(page, motion=wish)
        assert bool(page.run("return document.getAnimations().length")) == moves
