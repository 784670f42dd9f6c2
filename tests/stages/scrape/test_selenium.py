"""The browser source on real Chromium, against a result page on loopback."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import psutil
import pytest
from helpers import ROOT, wait_for
from rig import Answer, Rig, Search, results
from rig.site import anchors
from selenium.webdriver.common.selenium_manager import SeleniumManager

from sdlora import choices
from sdlora.config.sources import Search as AnySearch
from sdlora.config.sources import SeleniumSource
from sdlora.errors import DataError, MissingError
from sdlora.stages.scrape import selenium
from sdlora.stages.scrape.engines import Hit, read_json
from sdlora.stages.scrape.source import Candidate

PAGE = "https://www.bing.com/images/search"
FILTERS = frozenset({"license-L2_L3_L4_L5_L6_L7", "imagesize-large"})


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    shown = tuple(replace(r, filters=FILTERS) for r in results(range(70)))
    with Rig(tmp_path / "rig", {"cat": Search(page=shown)}) as found:
        yield found


def source(query: str = "cat", **options: object) -> SeleniumSource:
    return SeleniumSource.model_validate({"kind": "selenium", "query": query, "limit": 5, **options})


def found(rig: Rig, **options: object) -> list[Candidate]:
    return list(selenium.find(source(**options), rig.context()))


def browsers() -> list[int]:
    """Processes of browsers that this test's process, its children or somebody dead started, on this machine."""
    found = {int(f.name): _command_line(f) for f in Path("/proc").iterdir() if f.name.isdigit()}
    started = {number: re.search(rb"sdlora-browser-(\d+)-", line) for number, line in found.items()}
    return [number for number, match in started.items() if match and not _is_of_another_test(int(match.group(1)))]


def _is_of_another_test(owner: int) -> bool:
    """Whether a process lives and is neither this one nor a descendant: tests of browsers may run beside this one."""
    try:
        process = psutil.Process(owner)
        return os.getpid() not in (owner, *(parent.pid for parent in process.parents()))
    except psutil.NoSuchProcess:
        return False


def _command_line(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.workflow
def test_every_result_is_found_by_scrolling_and_pressing_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise AssertionError("Selenium Manager would download a driver")

    monkeypatch.setattr(SeleniumManager, "binary_paths", ask)
    candidates = found(rig, licence="share", size="large")
    assert [c.url for c in candidates] == [r.url for r in results(range(70))]
    assert [c.rank for c in candidates] == list(range(70))
    assert {c.licence for c in candidates} == {"share, says the search"}
    assert candidates[0].title == "Picture “0” <of> many & more"
    assert candidates[0].page_url == 'https://gallery.example/0?a=1&b="two"'
    assert [r.query["first"] for r in rig.requests("www.bing.com", "/images/async")] == ["12", "24", "36", "48", "60"]
    page = rig.requests("www.bing.com", "/images/search")[0]
    assert page.query["qft"] == "+filterui:license-L2_L3_L4_L5_L6_L7+filterui:imagesize-large"
    assert page.query["adlt"] == "strict"
    assert not rig.requests("", "/picture/"), "pictures are for the fetcher"
    assert not browsers()


@pytest.mark.workflow
def test_it_scrolls_no_further_than_needed_and_leaves(rig: Rig) -> None:
    stream = selenium.find(source(), rig.context())
    assert [next(stream).rank for _ in range(5)] == [0, 1, 2, 3, 4]
    assert browsers()
    stream.close()
    assert not rig.requests("www.bing.com", "/images/async")
    wait_for(lambda: not browsers(), 20)


@pytest.mark.workflow
def test_a_hostile_page_reaches_nothing_and_its_nonsense_is_left_out(rig: Rig) -> None:
    """A result page cannot make the browser look into the local network, and only results are results."""
    visits: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visits.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Inside) as inside:
        Thread(target=inside.serve_forever, daemon=True).start()
        nonsense = ["", "{", "null", "[]", '{"murl": 5}', '{"murl": "' + "x" * selenium.MAX_ATTRIBUTE + '"}']
        markup = "".join(f"<a class=iusc m='{text}'></a>" for text in nonsense)
        probe = f"http://127.0.0.1:{inside.server_port}/secret"
        page = f"""{markup}<a class=iusc></a>{anchors(results([3, 3, 4]))}<script>
        for (const url of ["{probe}", "https://gallery.example/"]) fetch(url, {{mode: "no-cors"}}).catch(() => 0);
        setTimeout(() => location = "{probe}", 2000)</script>"""
        rig.add(PAGE, Answer(page.encode(), headers={"Content-Type": "text/html"}))
        # production's own rule, but for the one host that the page stands on
        own = [a.replace(f"MAP gallery.example:443 127.0.0.1:{rig.port}, ", "") for a in rig.browser_arguments]
        candidates = list(selenium.find(source(), replace(rig.context(), browser_arguments=tuple(own))))
        inside.shutdown()
    assert [c.url for c in candidates] == [r.url for r in results([3, 4])]
    assert not visits
    assert not rig.requests("gallery.example")


@pytest.mark.workflow
def test_kill_9_leaves_no_browser_behind(rig: Rig) -> None:
    code = (
        "from pathlib import Path; from rig.server import connect; from sdlora.stages.scrape import selenium\n"
        "from sdlora.config.sources import SeleniumSource\n"
        f"context = connect(Path({str(rig.folder / 'rig.json')!r}))\n"
        "for found in selenium.find(SeleniumSource(kind='selenium', query='cat', limit=5), context):\n"
        "    print(found.rank, flush=True); input()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))}
    run = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"0\n"
    assert browsers()
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_for(lambda: not browsers(), 20)


@pytest.mark.workflow
def test_a_page_that_cannot_be_opened_is_told(rig: Rig) -> None:
    nowhere = replace(rig.context(), browser_arguments=("--host-resolver-rules=MAP * ~NOTFOUND",))
    with pytest.raises(DataError, match=r"bing's image search could not be opened: .*ERR_NAME_NOT_RESOLVED"):
        next(selenium.find(source(), nowhere))
    assert not browsers()


def test_without_a_browser_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"no Chromium or Chrome was found.*apt-get install chromium"):
        selenium.installed()
    (tmp_path / "google-chrome").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "google-chrome").chmod(0o755)
    assert selenium.installed() == str(tmp_path / "google-chrome"), "and no driver is needed"


@pytest.mark.workflow
def test_a_browser_that_does_not_start_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # where nobody may look as well: root starts the browser as nobody
        broken = Path(folder) / "chromium"
        broken.write_text("#!/bin/sh\necho cannot open display >&2\nexit 1\n")
        for place in (Path(folder), broken):
            place.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(MissingError, match=r"/chromium could not be started: .*cannot open display"):
            next(selenium.find(source(), rig.context()))
    assert not browsers()


class Other:
    """An engine as somebody would add it: another page, another attribute, no button."""

    hosts: ClassVar[tuple[str, ...]] = ("gallery.example",)
    results: ClassVar[str] = "li.hit"
    attribute: ClassVar[str] = "data-hit"
    more: ClassVar[str] = "button.none"
    dismiss: ClassVar[str] = "button#no-cookies"

    @staticmethod
    def address(search: AnySearch) -> str:
        return f"https://gallery.example/find?for={search.query}"

    @staticmethod
    def read(attribute: str) -> Hit | None:
        return Hit(read_json(attribute)["big"])


@pytest.mark.workflow
def test_another_engine_is_one_entry(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean bing"):
        source(engine="bling")
    monkeypatch.setitem(choices.ENGINES, "other", f"{__name__}:Other")
    page = """<button id=no-cookies onclick="document.body.insertAdjacentHTML('beforeend',
        '<li class=hit data-hit=&quot;{&amp;quot;big&amp;quot;:&amp;quot;https://x.example/2&amp;quot;}&quot;>two</li>');
        this.remove()">decline</button><li class=hit data-hit='{"big": "https://x.example/1"}'>one</li>"""
    rig.add("https://gallery.example/find", Answer(page.encode(), headers={"Content-Type": "text/html"}))
    assert [c.url for c in found(rig, engine="other")] == ["https://x.example/1", "https://x.example/2"]
    assert rig.requests("gallery.example", "/find")[0].query == {"for": "cat"}
