"""A page in the real Chromium, used as people do: by mouse and by keyboard, at a width of choice."""

import base64
import http.server
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from helpers import wait_for

from sdlora.stages.scrape.devtools import Chromium, is_root
from sdlora.stages.scrape.selenium import installed

SECONDS = 60.0
KEYS = {
    "Enter": (13, "\r"), "Escape": (27, ""), "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""),
    "ArrowDown": (40, ""), "1": (49, "1"), "2": (50, "2"), "Tab": (9, ""), " ": (32, " "),
}  # fmt: skip


class Page:
    """One tab. Scripts run as the page's own do."""

    def __init__(self, browser: Chromium) -> None:
        self._browser = browser
        self._downloads = browser.profile / "downloads"
        self._kept = tempfile.TemporaryDirectory(prefix="downloads-")  # goes with the page
        self._downloads.mkdir()
        self._downloads.chmod(0o777)  # the browser may be another user
        browser.call("Browser.setDownloadBehavior", SECONDS, behavior="allow", downloadPath=str(self._downloads))
        target = browser.call("Target.createTarget", SECONDS, url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", SECONDS, targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Performance.enable", timeDomain="threadTicks")
        self.scheme("light")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, SECONDS, self._session, **params)

    def open(self, url: str, width: int, height: int = 900) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._browser.forget_events()
        self._call("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired", SECONDS)

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

    def place(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """A point of an element, which is scrolled to; the shares are of its width and height."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
                       " return [box.x, box.y, box.width, box.height]; })()")  # fmt: skip
        return box[0] + across * box[2], box[1] + down * box[3]

    def mouse(self, kind: str, place: tuple[float, float], **more: Any) -> None:
        """Move, press or release."""
        self._call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=place[0], y=place[1], **more)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        place = self.place(selector)
        for kind in ("Pressed", "Released"):
            self.mouse(kind, place, button="left", clickCount=1)

    def hover(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Move the mouse over a point of an element."""
        self.mouse("Moved", self.place(selector, across, down))

    def drag(self, selector: str, start: float, end: float) -> None:
        """Hold the mouse down over an element and move it across; the shares are of its width."""
        places = [self.place(selector, start), self.place(selector, end)]
        self.mouse("Pressed", places[0], button="left", buttons=1, clickCount=1)
        self.mouse("Moved", places[1], button="left", buttons=1)
        self.mouse("Released", places[1], button="left", clickCount=1)

    def choose(self, selector: str, text: str) -> None:
        """Open a list with the mouse and choose an entry by its first letters, as people do."""
        self.click(selector)
        self.type_keys(text)
        self.press("Enter")

    def type_keys(self, text: str) -> None:
        """Press a key a letter: what no field takes in."""
        for letter in text:
            about = {"key": letter, "windowsVirtualKeyCode": ord(letter.upper()), "text": letter}
            self._call("Input.dispatchKeyEvent", type="keyDown", **about)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def downloaded(self) -> Path:
        """The one file that the page has given, once it is whole; it is taken away."""
        wait_for(lambda: [path.suffix for path in self._downloads.iterdir()] not in ([], [".crdownload"]), SECONDS)
        (path,) = self._downloads.iterdir()
        return path.replace(Path(tempfile.mkdtemp(dir=self._kept.name)) / path.name)

    def press(self, *keys: str) -> None:
        for key in keys:
            code, text = KEYS[key]
            about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
            self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about)
            self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def hold(self, key: str, seconds: float) -> None:
        """Press a key, and let go after a while."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key][0]}
        self._call("Input.dispatchKeyEvent", type="rawKeyDown", **about)
        time.sleep(seconds)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        self._call("Input.insertText", text=text)

    def scheme(self, name: str) -> None:
        """What the reader's system is set to: `light` or `dark`, and no smooth scrolling, under which clicks miss."""
        chosen = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
        features = [{"name": key, "value": value} for key, value in chosen.items()]
        self._call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """The whole page, from top to bottom."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

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
    profile = Path(tempfile.mkdtemp(prefix="page-"))
    options = ["--headless", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars",
               "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}"]  # fmt: skip
    browser = Chromium([installed(), *options, *(["--no-sandbox"] if is_root() else [])], profile)
    try:
        yield Page(browser), f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        browser.close()
        server.shutdown()
        server.server_close()
        shutil.rmtree(profile, ignore_errors=True)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing to say."""


def text(page: Page, selector: str) -> str:
    """What the first element of a selector shows."""
    return str(page.run(f"document.querySelector({selector!r}).innerText"))


def count(page: Page, selector: str) -> int:
    """How many elements a selector has."""
    return int(page.run(f"document.querySelectorAll({selector!r}).length"))
