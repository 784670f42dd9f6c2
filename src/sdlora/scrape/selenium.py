"""Image search in a real browser: scroll, press "more", read each result's attribute as JSON.

The browser is headless, has a profile of its own that is deleted afterwards, loads no pictures, and can reach the
engine's own hosts and nothing else: whatever a result page says, it cannot look into the local network. Pictures come
through the safe fetcher, never through the browser. Nothing is downloaded to make it run: Selenium Manager, which
would fetch a driver or a browser, is never asked.
"""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import SessionNotCreatedException, WebDriverException

from sdlora import choices
from sdlora.errors import DataError, MissingError
from sdlora.scrape.engines import Engine, licence_of
from sdlora.scrape.source import Candidate, ScrapeContext
from sdlora.source_section import SeleniumSource

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)  # fmt: skip
DRIVERS = ("chromedriver", "chromium.chromedriver", "/usr/lib/chromium/chromedriver")
INSTALL = "sudo apt-get install chromium chromium-driver (Debian), or brew install --cask chromium chromedriver (macOS)"
IDLE_ROUNDS = 4  # rounds in a row that may bring nothing before the page is taken to be at its end
ROUND_S = 2.5  # longest wait for a round's results
PAUSE_S = 0.5  # between rounds: nobody scrolls faster
MAX_ROUNDS = 400
MAX_ATTRIBUTE = 20_000  # characters; a longer one is no result
ARGUMENTS = (
    "--headless=new", "--window-size=1280,1000", "--lang=en-US", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio", "--no-pings",
    "--blink-settings=imagesEnabled=false", "--remote-debugging-pipe",
    "--no-proxy-server",  # a proxy would resolve names itself, past the rules on what may be reached
)  # fmt: skip

# What is on the page, from the n-th result on: [number of results, their attributes].
_READ = """
const found = document.querySelectorAll(arguments[0]);
const values = Array.from(found).slice(arguments[1], arguments[1] + 500).map(e => e.getAttribute(arguments[2]) || "");
return [found.length, values.map(v => v.length > arguments[3] ? "" : v)];
"""
# Decline cookies if asked, press "more" if it can be seen, else scroll to the end.
_GO_ON = """
const visible = e => e && e.offsetParent !== null;
const dismiss = document.querySelector(arguments[1]);
if (visible(dismiss)) dismiss.click();
const more = document.querySelector(arguments[0]);
if (visible(more)) { more.scrollIntoView(); more.click(); }
else { window.scrollBy(0, -200); window.scrollTo(0, document.body.scrollHeight); }
"""


def find(source: SeleniumSource, context: ScrapeContext) -> Iterator[Candidate]:
    """What the engine's result page shows, in its order, until several rounds bring nothing new.

    Raises:
        DataError: If the page cannot be opened.
        MissingError: If there is no browser or no driver for it.
    """
    engine: Engine = choices.pick(choices.ENGINES, source.engine)
    seen: set[str] = set()
    with _browser(engine, context) as browser:
        try:
            browser.get(engine.address(source))
        except WebDriverException as error:
            raise DataError(f"{source.engine}'s image search could not be opened: {_first_line(error)}") from None
        for text in _attributes(browser, engine):
            hit = engine.read(text)
            if hit is None or hit.url in seen:
                continue
            yield Candidate(
                engine="selenium", rank=len(seen), url=hit.url, query=source.query, page_url=hit.page_url,
                title=hit.title, licence=licence_of(source),
            )  # fmt: skip
            seen.add(hit.url)
        if not seen:
            print(
                f"selenium: {source.engine} shows no result for {source.query!r} (title: {browser.title!r})",
                file=sys.stderr,
            )


def _attributes(browser: Any, engine: Engine) -> Iterator[str]:
    """The attribute of every result on the page, as more and more of them appear."""
    taken = idle = 0
    try:
        for _ in range(MAX_ROUNDS):
            new = _wait_for_more(browser, engine, taken)
            idle = 0 if new else idle + 1
            if idle >= IDLE_ROUNDS:
                return
            yield from new
            taken += len(new)
            time.sleep(PAUSE_S)
            browser.execute_script(_GO_ON, engine.more, engine.dismiss)
    except WebDriverException as error:
        print(f"selenium: the browser stopped after {taken} results: {_first_line(error)}", file=sys.stderr)


def _wait_for_more(browser: Any, engine: Engine, taken: int) -> list[str]:
    """Attributes of the results after the first `taken`, as soon as there are any."""
    limit = time.monotonic() + ROUND_S
    while True:
        _, new = browser.execute_script(_READ, engine.results, taken, engine.attribute, MAX_ATTRIBUTE)
        if new or time.monotonic() >= limit:
            return list(new)
        time.sleep(0.1)


@contextmanager
def _browser(engine: Engine, context: ScrapeContext) -> Iterator[Any]:
    """A running browser that can reach the engine's hosts; gone afterwards, profile and all."""
    binary, driver = installed()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(prefix="sdlora-browser-", ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, *_reach(engine, context), f"--user-data-dir={profile}"):
            options.add_argument(argument)
        service = webdriver.ChromeService(executable_path=driver, popen_kw=_leashed())
        try:
            browser = webdriver.Chrome(options=options, service=service)
        except (SessionNotCreatedException, WebDriverException) as error:
            raise MissingError(
                f"{binary} could not be started with {driver}: {_first_line(error)}; browser and driver must be of "
                f"the same version: {INSTALL}"
            ) from None
        try:
            browser.set_page_load_timeout(context.limits.deadline_s)
            browser.set_script_timeout(context.limits.timeout_s)
            yield browser
        finally:
            with suppress(WebDriverException, OSError):
                browser.quit()


def _reach(engine: Engine, context: ScrapeContext) -> list[str]:
    """Arguments that say what the browser may reach; the last word is the injected one."""
    hosts = ", ".join(f"EXCLUDE {host}" for host in engine.hosts)
    found = [f"--host-resolver-rules=MAP * ~NOTFOUND, {hosts}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        found.append("--no-sandbox")  # Chromium refuses to run as root (in containers) with it
    return [*found, *context.browser_arguments]


def _leashed() -> dict[str, Any]:
    """How the driver is started so that it dies with this process, kill -9 included (Linux).

    Its end closes the browser's pipe (`--remote-debugging-pipe`), and the browser leaves as well.
    """
    if not sys.platform.startswith("linux"):
        return {}
    libc = ctypes.CDLL(None)  # looked up here: after the fork there is no time for it

    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return {"preexec_fn": die_with_parent}


def installed() -> tuple[str, str]:
    """Where the browser and its driver are.

    Raises:
        MissingError: If one of them is not installed; the message has the command.
    """
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = next((found for name in DRIVERS if (found := shutil.which(name))), None)
    if binary is None or driver is None:
        what = "no Chromium or Chrome" if binary is None else f"no chromedriver for {binary}"
        raise MissingError(f"{what} was found on the PATH; the selenium source needs both: {INSTALL}")
    return binary, driver


def _first_line(error: WebDriverException) -> str:
    return (error.msg or str(error) or type(error).__name__).strip().splitlines()[0]
