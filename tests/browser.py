"""A page in the real Chromium, used through Selenium as people do: by mouse and by keyboard, at a width of choice."""

import base64
import http.server
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from sdlora.stages.scrape.devtools import is_root
from sdlora.stages.scrape.selenium import installed

SECONDS = 60.0
KEYS = {
    "Enter": Keys.ENTER, "Escape": Keys.ESCAPE, "Tab": Keys.TAB, "ArrowLeft": Keys.ARROW_LEFT,
    "ArrowUp": Keys.ARROW_UP, "ArrowRight": Keys.ARROW_RIGHT, "ArrowDown": Keys.ARROW_DOWN,
}  # fmt: skip
DRIVER = shutil.which("chromedriver")
needs_driver = pytest.mark.skipif(DRIVER is None, reason="there is no chromedriver: `make servers` as root")


class Page:
    """One tab. Scripts run as the page's own do."""

    def __init__(self, driver: Chrome, downloads: Path) -> None:
        self._driver, self._downloads = driver, downloads
        self._kept = tempfile.TemporaryDirectory(prefix="downloads-")  # goes with the page
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self._call("Performance.enable", timeDomain="threadTicks")
        self.scheme("light")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._driver.execute_cdp_cmd(method, params)
        return found

    def open(self, url: str, width: int, height: int = 900) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._driver.get(url)

    def run(self, expression: str) -> Any:
        """The value of an expression; an exception in the page is one here."""
        done = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> None:
        limit = time.monotonic() + 20
        while not self.run(expression):
            assert time.monotonic() < limit, f"waited in vain for {expression}"
            time.sleep(0.05)

    def show(self, selector: str) -> WebElement:
        """The first element of a selector, scrolled to the window's middle."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def _hands(self) -> ActionChains:
        return ActionChains(self._driver, duration=0)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        self._hands().click(self.show(selector)).perform()

    def hover(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Move the mouse over a point of an element; the shares are of its width and height."""
        self._hands().move_to_element_with_offset(*self._at(selector, across, down)).perform()

    def drag(self, selector: str, start: float, end: float) -> None:
        """Hold the mouse down over an element and move it across; the shares are of its width."""
        hands = self._hands().move_to_element_with_offset(*self._at(selector, start, 0.5)).click_and_hold()
        hands.move_to_element_with_offset(*self._at(selector, end, 0.5)).release().perform()

    def _at(self, selector: str, across: float, down: float) -> tuple[WebElement, int, int]:
        """An element and a point in it, from its middle."""
        element = self.show(selector)
        width, height = self.run(f"(({{ width, height }}) => [width, height])"
                                 f"(document.querySelector({selector!r}).getBoundingClientRect())")  # fmt: skip
        return element, round((across - 0.5) * width), round((down - 0.5) * height)

    def choose(self, selector: str, text: str) -> None:
        """Open a list with the mouse and choose an entry by its first letters, as people do."""
        self.click(selector)
        self._hands().send_keys(text, Keys.ENTER).perform()

    def press(self, *keys: str) -> None:
        self._hands().send_keys(*[KEYS.get(key, key) for key in keys]).perform()

    def hold(self, key: str, seconds: float) -> None:
        """Press a key, and let go after a while."""
        self._hands().key_down(KEYS[key]).pause(seconds).key_up(KEYS[key]).perform()

    def type(self, text: str) -> None:
        self._hands().send_keys(text).perform()

    def _whole(self) -> bool:
        """While Chromium writes there is a file of its own, and an empty one may lie under the name to come."""
        with suppress(FileNotFoundError, ValueError):  # renamed in between; none or two
            (path,) = self._downloads.iterdir()
            return not path.name.startswith(".") and path.suffix != ".crdownload" and path.stat().st_size > 0
        return False

    def downloaded(self) -> Path:
        """The one file that the page has given, once it is whole; it is taken away."""
        wait_for(self._whole, SECONDS)
        (path,) = self._downloads.iterdir()
        return path.replace(Path(tempfile.mkdtemp(dir=self._kept.name)) / path.name)

    def scheme(self, name: str) -> None:
        """What the reader's system is set to: `light` or `dark`, and no smooth scrolling, under which clicks miss."""
        chosen = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
        features = [{"name": key, "value": value} for key, value in chosen.items()]
        self._call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """The whole page, from top to bottom."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def cpu_seconds(self) -> float:
        """What the page's main thread has computed: its scripts, styles, layout and paint, whatever else runs here."""
        found = {one["name"]: one["value"] for one in self._call("Performance.getMetrics")["metrics"]}
        return float(found["TaskDuration"])

    def asked(self) -> list[str]:
        """Every address that the page has asked for."""
        names: list[str] = self.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
        return [name for name in names if not name.startswith("data:")]


@contextmanager
def page_of(folder: Path) -> Iterator[tuple[Page, str]]:
    """A browser that can reach a folder on 127.0.0.1, and nothing else; the page, and the folder's address."""
    handler = partial(_Silent, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ChromeOptions()
    options.binary_location = installed()
    for argument in ("--headless=new", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                     "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                     *(["--no-sandbox"] if is_root() else [])):  # fmt: skip
        options.add_argument(argument)
    driver = Chrome(options, ChromeService(DRIVER))
    try:
        with tempfile.TemporaryDirectory(prefix="page-") as downloads:
            yield Page(driver, Path(downloads)), f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        driver.quit()
        server.shutdown()
        server.server_close()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing to say."""


def text(page: Page, selector: str) -> str:
    """What the first element of a selector shows."""
    return str(page.run(f"document.querySelector({selector!r}).innerText"))


def count(page: Page, selector: str) -> int:
    """How many elements a selector has."""
    return int(page.run(f"document.querySelectorAll({selector!r}).length"))


def visible(selector: str) -> str:
    """The expression for how many elements of a selector can be seen."""
    return f"[...document.querySelectorAll('{selector}')].filter((one) => one.checkVisibility()).length"
