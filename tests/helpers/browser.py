"""A real headless Chromium for tests: nothing downloaded, an empty profile, and a record of what it asked and said."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

Value = TypeVar("Value")

HERE = shutil.which("chromium") is not None and shutil.which("chromedriver") is not None
WHY_NOT = "needs chromium and chromedriver"
PATIENCE = 20.0  # seconds; only a failing test waits so long
FLAGS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
MORE_FLAGS = "disable-component-update disable-sync hide-scrollbars"
FASTER = 10  # the page's own clock and timers, so that a test sees many polls in little time
BEFORE_THE_PAGE = f"""
  const [now, later, start] = [Date.now, setTimeout, Date.now()];
  Date.now = () => start + {FASTER} * (now() - start);
  window.setTimeout = (action, wait, ...rest) => later(action, wait / {FASTER}, ...rest);
  window.violations = [];
  window.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A Chromium with its profile in an empty folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in f"{FLAGS} {MORE_FLAGS} user-data-dir={profile}".split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": BEFORE_THE_PAGE})
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a browser, as a test looks at it and works it."""

    def __init__(self, driver: webdriver.Chrome, url: str):
        self.driver, self.url = driver, url
        self.leave()

    def open(self, width: int = 1280, **features: str) -> None:
        """Load the page anew in a window so wide, with media features such as prefers_color_scheme="dark"."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get(self.url)

    def leave(self) -> None:
        """Go where nothing is asked for, and forget what was."""
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """An element's text as a reader sees it; empty while it is hidden."""
        script = "const e = document.querySelector(arguments[0]); return e.checkVisibility() ? e.innerText : ''"
        return " ".join(self.run(script, selector).split())

    def texts(self, selector: str) -> list[str]:
        """The text of all elements that match."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def attribute(self, selector: str, name: str) -> str | None:
        """An element's attribute."""
        return self.run("return document.querySelector(arguments[0]).getAttribute(arguments[1])", selector, name)

    def until(self, condition: Callable[[], Value]) -> Value:
        """The condition's first true value."""
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.02).until(lambda _: condition())

    def until_text(self, selector: str, part: str) -> None:
        """Wait until an element shows `part`; fails with what it shows instead."""
        try:
            self.until(lambda: part in self.text(selector))
        except Exception as error:
            raise AssertionError(f"{selector} shows {self.text(selector)!r}, expected {part!r}") from error

    def click(self, selector: str) -> None:
        """Click as a user does: once the element is there to be clicked, where it is, if nothing covers it."""
        element = self.driver.find_element("css selector", selector)
        self.until(lambda: element.is_displayed() and element.is_enabled())
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def type(self, selector: str, words: str) -> None:
        """Type into a field."""
        self.driver.find_element("css selector", selector).send_keys(words)

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys wherever the focus is."""
        chain = ActionChains(self.driver, duration=0)
        chain = chain.key_down(Keys.SHIFT).send_keys(*keys).key_up(Keys.SHIFT) if shift else chain.send_keys(*keys)
        chain.perform()

    def focused(self) -> str:
        """The id, or else the class or tag, of what has the focus."""
        return self.run("const e = document.activeElement; return e.id || e.className || e.tagName")

    def accessible(self) -> list[dict[str, str]]:
        """Role, name and description of everything that assistive technology sees."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        fields = ("role", "name", "description", "value")
        return [{f: n.get(f, {}).get("value", "") for f in fields} for n in nodes if not n["ignored"]]

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since it was last asked, and refusals by the content security policy."""
        console = [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
        return console + self.run("return window.violations ?? []")

    def foreign_requests(self) -> list[str]:
        """Addresses outside the page's origin that were asked for since it was last asked."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith((f"{self.url}/", "data:image/"))]
