"""Image search in a real browser: scroll, press "more", read each result's attribute as JSON.

The browser is headless, has a profile of its own that is deleted afterwards, loads no pictures, saves no files, and can
reach the engine's own hosts and nothing else: whatever a result page says, it cannot look into the local network.
Pictures come through the safe fetcher, never through the browser. Selenium speaks to it through a pipe (`driver`), not
through chromedriver, whose port any user of the machine could speak to. Nothing is downloaded to make it run: Selenium
Manager, which would fetch a driver or a browser, is never asked.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.remote.remote_connection import RemoteConnection

from sdlora import choices
from sdlora.config.sources import SeleniumSource
from sdlora.errors import DataError, MissingError, printable
from sdlora.stages.scrape.devtools import Chromium, is_root
from sdlora.stages.scrape.driver import PipeExecutor
from sdlora.stages.scrape.engines import Engine, licence_of
from sdlora.stages.scrape.source import Candidate, ScrapeContext

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)  # fmt: skip
INSTALL = "sudo apt-get install chromium (Debian), or brew install --cask chromium (macOS)"
IDLE_ROUNDS = 4  # rounds in a row that may bring nothing before the page is taken to be at its end
ROUND_S = 2.5  # longest wait for a round's results
PAUSE_S = 0.5  # between rounds: nobody scrolls faster
MAX_ROUNDS = 400
MAX_S = 900.0  # of the browser's own time for one search, whatever its page does
PROFILE = "sdlora-browser-"
MAX_ATTRIBUTE = 20_000  # characters; a longer one is no result
ARGUMENTS = (
    "--headless=new", "--window-size=1280,1000", "--lang=en-US", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio", "--no-pings",
    "--blink-settings=imagesEnabled=false", "--remote-debugging-pipe",
    "--no-proxy-server",  # a proxy would resolve names itself, past the rules on what may be reached
    # neither do the rules see WebRTC, which sends datagrams to any address
    "--webrtc-ip-handling-policy=disable_non_proxied_udp", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
)  # fmt: skip

# What is on the page, from the n-th result on: [number of results, their attributes].
_READ = """
const found = document.querySelectorAll(arguments[0]);
const values = Array.from(found).slice(arguments[1], arguments[1] + 500).map(e => e.getAttribute(arguments[2]) || "");
return [found.length, values.map(v => typeof v !== "string" || v.length > arguments[3] ? "" : v)];
"""
# Decline cookies if asked, press "more" if it can be seen, else scroll to the end.
_GO_ON = """
const visible = e => e && e.offsetParent !== null;
const dismiss = document.querySelector(arguments[1]);
if (visible(dismiss)) HTMLElement.prototype.click.call(dismiss);
const more = document.querySelector(arguments[0]);
if (visible(more)) { more.scrollIntoView(); HTMLElement.prototype.click.call(more); }
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
    left_s = MAX_S
    try:
        for _ in range(MAX_ROUNDS):
            began = time.monotonic()
            new = _wait_for_more(browser, engine, taken)
            idle = 0 if new else idle + 1
            left_s -= time.monotonic() - began
            if idle >= IDLE_ROUNDS:
                return
            yield from new
            taken += len(new)
            began = time.monotonic()
            time.sleep(PAUSE_S)
            browser.execute_script(_GO_ON, engine.more, engine.dismiss)
            left_s -= time.monotonic() - began
            if left_s <= 0:
                print(f"selenium: {taken} results after {MAX_S:g} s; that is all the time there is", file=sys.stderr)
                return
    except WebDriverException as error:
        print(f"selenium: the browser stopped after {taken} results: {_first_line(error)}", file=sys.stderr)


def _wait_for_more(browser: Any, engine: Engine, taken: int) -> list[str]:
    """Attributes of the results after the first `taken`, as soon as there are any."""
    limit = time.monotonic() + ROUND_S
    while True:
        found = browser.execute_script(_READ, engine.results, taken, engine.attribute, MAX_ATTRIBUTE)
        new = found[1] if isinstance(found, list) and len(found) == 2 and isinstance(found[1], list) else []
        if new or time.monotonic() >= limit:
            return [text if isinstance(text, str) else "" for text in new]
        time.sleep(0.1)


@contextmanager
def _browser(engine: Engine, context: ScrapeContext) -> Iterator[Any]:
    """A running browser that can reach the engine's hosts; gone afterwards, profile and all."""
    binary = installed()
    _sweep()
    options = [*ARGUMENTS, *_reach(engine, context)]
    try:
        chromium, browser = _start(binary, options, context)
    except MissingError as error:
        if not is_root():
            raise
        print(f"selenium: trying again, as nobody and without Chromium's sandbox: {error}", file=sys.stderr)
        chromium, browser = _start(binary, [*options, "--no-sandbox"], context)
    try:
        yield browser
    finally:
        _end(chromium)


def _start(binary: str, options: list[str], context: ScrapeContext) -> tuple[Chromium, Any]:
    profile = Path(tempfile.mkdtemp(prefix=f"{PROFILE}{os.getpid()}-"))
    chromium = Chromium([binary, *options, f"--user-data-dir={profile}"], profile)
    executor = PipeExecutor(chromium, context.limits.deadline_s, context.limits.timeout_s)
    try:
        return chromium, webdriver.Remote(cast(RemoteConnection, executor), options=webdriver.ChromeOptions())
    except (WebDriverException, OSError) as error:
        said = _first_line(error) if isinstance(error, WebDriverException) else str(error)
        _end(chromium)
        raise MissingError(f"{binary} could not be started: {said}; is it whole? {INSTALL}") from None


def _end(chromium: Chromium) -> None:
    chromium.close()
    shutil.rmtree(chromium.profile, ignore_errors=True)


def _sweep() -> None:
    """Delete profiles whose program is gone, and whose browser could not do it: after a power cut, say."""
    for profile in Path(tempfile.gettempdir()).glob(f"{PROFILE}*-*"):
        owner = profile.name.removeprefix(PROFILE).split("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists() and Path("/proc/self").exists():
            shutil.rmtree(profile, ignore_errors=True)


def _reach(engine: Engine, context: ScrapeContext) -> list[str]:
    """Arguments that say what the browser may reach; the last word is the injected one."""
    hosts = ", ".join(f"EXCLUDE {host}" for host in engine.hosts)
    return [f"--host-resolver-rules=MAP * ~NOTFOUND, {hosts}", *context.browser_arguments]


def installed() -> str:
    """Where the browser is.

    Raises:
        MissingError: If it is not installed; the message has the command.
    """
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if binary is None:
        raise MissingError(f"no Chromium or Chrome was found on the PATH; the selenium source needs it: {INSTALL}")
    return binary


def _first_line(error: WebDriverException) -> str:
    return printable((error.msg or str(error) or type(error).__name__).strip().split("\n")[0])
