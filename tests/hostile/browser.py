"""A result page that wants out of the browser, or other users of the machine who want in. Needs Chromium."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rig import Answer, Rig, Search, results
from rig.site import anchors

from hostile import attack
from sdlora.config.sources import Scrape, SeleniumSource
from sdlora.errors import SdloraError
from sdlora.stages.scrape import selenium

PAGE = "https://www.bing.com/images/search"
SOURCE = SeleniumSource(kind="selenium", query="cat", limit=5)
LIMITS = Scrape(deadline_s=5.0, timeout_s=2.0)


@contextmanager
def page(folder: Path, script: str) -> Iterator[Rig]:
    """A result page with three results and a script."""
    with Rig(folder / "rig") as rig:
        text = f"<html><body>{anchors(results(range(3)))}<script>{script}</script></body></html>"
        rig.add(PAGE, Answer(text.encode(), headers={"Content-Type": "text/html"}))
        yield rig


def found(rig: Rig) -> list[str]:
    """URLs of the results."""
    context = replace(rig.context(), limits=LIMITS)
    before = selenium.IDLE_ROUNDS, selenium.ROUND_S
    selenium.IDLE_ROUNDS, selenium.ROUND_S = 2, 0.7  # these pages bring nothing more
    try:
        return [str(one.url) for one in selenium.find(SOURCE, context)]
    finally:
        selenium.IDLE_ROUNDS, selenium.ROUND_S = before


WANTED = [result.url for result in results(range(3))]


def _children() -> set[int]:
    """Every process below this one."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    mine = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return mine - {os.getpid()}


def _listening() -> list[str]:
    """TCP ports on which a process below this one listens."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().split("\n")[1:-1]]
    by_inode = {row[9]: row[1] for row in rows if row[3] == "0A"}
    ports = []
    for child in _children():
        with suppress(OSError):
            for handle in Path(f"/proc/{child}/fd").iterdir():
                with suppress(OSError):
                    inode = str(handle.readlink()).removeprefix("socket:[").rstrip("]")
                    ports += [by_inode[inode]] if inode in by_inode else []
    return ports


@attack("browser", "a port through which another user could start programs")
def _port(folder: Path) -> str | None:
    with page(folder, "") as rig:
        stream = selenium.find(SOURCE, rig.context())
        next(stream)
        ports = _listening()
        stream.close()
    return f"a process of the browser listens on {ports}" if ports else None


@attack("browser", "a page that runs as root or without a sandbox")
def _root(folder: Path) -> str | None:
    with page(folder, "") as rig:
        stream = selenium.find(SOURCE, rig.context())
        next(stream)
        lines = []
        for child in _children():
            with suppress(OSError):
                name, status = Path(f"/proc/{child}/cmdline").read_bytes(), Path(f"/proc/{child}/status").read_text()
                user = next(line.split()[1] for line in status.split("\n") if line.startswith("Uid:"))
                if b"--type=renderer" in name and (user == "0" or b"--no-sandbox" in name):
                    lines.append(f"a renderer of uid {user}{', no sandbox' if b'--no-sandbox' in name else ''}")
        stream.close()
    return "; ".join(lines) or None


@attack("browser", "datagrams through WebRTC")
def _webrtc(folder: Path) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
        inside.bind(("127.0.0.1", 0))
        inside.settimeout(0.1)
        port = inside.getsockname()[1]
        script = f"""const p = new RTCPeerConnection({{iceServers: [{{urls: "stun:127.0.0.1:{port}"}}]}});
            p.createDataChannel("x"); p.createOffer().then(o => p.setLocalDescription(o));"""
        with page(folder, script) as rig:
            found(rig)
        with suppress(TimeoutError):
            return f"a datagram of {len(inside.recv(2000))} bytes arrived"
    return None


def _files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if "rig" not in path.parts}


@attack("browser", "a file that is saved without a word", in_suite=False)
def _download(folder: Path) -> str | None:
    home = folder / "home"
    home.mkdir()
    before_home, before_cwd = os.environ.get("HOME"), Path.cwd()
    real = Path(before_home or "/nonexistent") / "Downloads"
    before = _files(folder, real)
    os.environ["HOME"] = str(home)
    os.chdir(folder)
    try:
        script = """const a = document.createElement("a"); a.download = "owned.desktop";
            a.href = URL.createObjectURL(new Blob(["owned"])); document.body.append(a); a.click();
            setTimeout(() => location = "/images/owned.bin", 300);"""
        with page(folder, script) as rig:
            attachment = {"Content-Disposition": "attachment; filename=owned.sh", "Content-Type": "application/x-sh"}
            rig.add("https://www.bing.com/images/owned.bin", Answer(b"owned", headers=attachment))
            found(rig)
    finally:
        os.environ["HOME"] = before_home or ""
        os.chdir(before_cwd)
    new = {path.name for path in _files(folder, real) - before if path.name.startswith("owned")}
    return f"saved: {sorted(new)}" if new else None


STUCK = {
    "alert() once": "alert(1)",
    "alert() in a loop": "while (true) alert(1)",
    "alert() on a timer": "setInterval(() => alert(1), 1)",
    "a dialog when it is left": "onbeforeunload = e => { e.preventDefault(); return 'no' }; location = '/images/x'",
    "a loop without end": "setTimeout(() => { while (true) ; }, 500)",
    "a loop without end at once": "while (true) ;",
    "windows without end": "setInterval(() => window.open('/images/search'), 10)",
    "itself again and again": "setTimeout(() => location.reload(), 50)",
    "getAttribute gives objects": "Element.prototype.getAttribute = () => ({length: 1, toString: null})",
    "getAttribute gives numbers": "Element.prototype.getAttribute = () => 5",
    "getAttribute throws": "Element.prototype.getAttribute = () => { throw {toString: null} }",
    "querySelectorAll gives a Proxy": "document.querySelectorAll = () => new Proxy({length: 1e9}, {get: () => 1e9})",
    "Array is something else": "Array.from = () => 'x'; Array.prototype.map = () => null; JSON.stringify = () => 'x'",
    "elements named like functions": "document.body.innerHTML += '<form id=click><a class=btn_seemore></a></form>'",
}
HARMLESS = ("getAttribute", "Array", "querySelectorAll", "elements", "alert() once")
for _name, _script in STUCK.items():

    @attack("browser", f"a page with {_name}", in_suite=_name in ("alert() once", "getAttribute gives objects"))
    def _stuck(folder: Path, name: str = _name, script: str = _script) -> str | None:
        began = time.monotonic()
        urls: list[str] = []
        with page(folder, script) as rig:
            try:
                urls = found(rig)
            except SdloraError as error:
                if name.startswith(HARMLESS):
                    return f"the results were lost: {error}"
        took = time.monotonic() - began
        if took > 60:
            return f"it took {took:.0f} s"
        return f"the results were lost: {urls}" if name.startswith(HARMLESS) and urls != WANTED else None


@attack("browser", "results without end")
def _endless(folder: Path) -> str | None:
    script = """let n = 100; setInterval(() => { for (let i = 0; i < 50; i++, n++) document.body.insertAdjacentHTML(
        'beforeend', `<a class=iusc m='{"murl":"https://x.example/${n}"}'>x</a>`) }, 200)"""
    before: Any = getattr(selenium, "MAX_S", None)
    selenium.MAX_S = 3.0
    began = time.monotonic()
    try:
        with page(folder, script) as rig:
            for _ in selenium.find(SOURCE, replace(rig.context(), limits=LIMITS)):
                if time.monotonic() - began > 30:
                    return "it went on after 30 s with 3 s in all"
    finally:
        selenium.MAX_S = before
    return None


@attack("browser", "a profile that stays after kill -9")
def _profile(folder: Path) -> str | None:
    code = (
        "from pathlib import Path; from rig.server import connect; from sdlora.stages.scrape import selenium\n"
        "from sdlora.config.sources import SeleniumSource\n"
        f"context = connect(Path({str(folder / 'rig/rig.json')!r}))\n"
        "for found in selenium.find(SeleniumSource(kind='selenium', query='cat', limit=5), context):\n"
        "    print(found.rank, flush=True); input()"
    )
    place = Path(tempfile.gettempdir())
    before = set(place.glob("sdlora-browser-*"))
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1])]))
    with Rig(folder / "rig", {"cat": Search(page=results(range(5)))}):
        run = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )  # fmt: skip
        assert run.stdout is not None and run.stdout.readline() == b"0\n"
        made = set(place.glob("sdlora-browser-*")) - before
        assert made, "there is no profile to look for"
        run.send_signal(signal.SIGKILL)
        run.wait()
        limit = time.monotonic() + 20
        while time.monotonic() < limit and any(profile.exists() for profile in made):
            time.sleep(0.1)
    left = [sum(1 for _ in profile.rglob("*")) for profile in made if profile.exists()]
    return f"a profile of {left} files is left" if left else None
