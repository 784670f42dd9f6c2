"""Chromium as a process of its own, spoken to through a pipe that nobody else has.

A driver or a debugger on a port of this machine does what any program on it asks, as the user who scrapes. A pipe has
two ends. When the other end is closed, kill -9 included, the browser leaves, and the shell that started it deletes its
profile.
"""

import json
import os
import pwd
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selenium.common.exceptions import TimeoutException, WebDriverException

MAX_MESSAGE = 64 * 2**20  # bytes; a page that says more is cut off
SOCKET_ROOM = 50  # characters
# $1: the profile; then the browser's command line. Its pipe is 3 and 4, ours is this shell's input and output.
_RUN = 'profile=$1; shift; "$@" 3<&0 4>&1 </dev/null >/dev/null; rm -rf -- "$profile" 2>/dev/null'


class Chromium:
    """A running browser. Its methods raise Selenium's exceptions, as a driver's would."""

    def __init__(self, command: Sequence[str], profile: Path) -> None:
        """Start it.

        Args:
            command: The program and its arguments, `--remote-debugging-pipe` and the profile among them.
            profile: Its folder; deleted when the browser ends, whoever ends it.
        """
        self.profile = profile
        self._next = 0
        self._read = b""
        self._events: list[dict[str, Any]] = []
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _RUN, "sh", str(profile), *command], start_new_session=True, env=_environment(profile),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0, **_user(profile),
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._into, self._out_of = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._into, False)

    def call(self, method: str, timeout_s: float, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; dialogs that open meanwhile are dismissed.

        Raises:
            TimeoutException: If it does not come in time.
            WebDriverException: If the browser refuses, or is gone.
        """
        deadline = time.monotonic() + timeout_s
        number = self._send(method, deadline, session, params)
        while True:
            message = self._message(deadline)
            if message.get("id") == number:
                if "error" in message:
                    raise WebDriverException(str(message["error"].get("message", message["error"]))[:1000])
                result: dict[str, Any] = message.get("result") or {}
                return result

    def wait_for(self, event: str, timeout_s: float) -> None:
        """Wait until an event has come since `forget_events`.

        Raises:
            TimeoutException: If it does not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while all(known.get("method") != event for known in self._events):
            self._message(deadline)

    def forget_events(self) -> None:
        """What has happened so far is not waited for."""
        self._events.clear()

    def close(self) -> None:
        """End it: politely, then by closing the pipe, then by force."""
        with suppress(WebDriverException, OSError):
            self._send("Browser.close", time.monotonic() + 1, None, {})
        for end in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if end is not None:
                    end.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
        self._said.close()

    def last_words(self) -> str:
        """The last line it wrote on standard error, or how it ended."""
        self._said.seek(0)
        lines = [line for line in self._said.read()[-20_000:].decode("utf-8", "replace").split("\n") if line.strip()]
        return lines[-1].strip()[:500] if lines else "it said nothing"

    def _send(self, method: str, deadline: float, session: str | None, params: dict[str, Any]) -> int:
        self._next += 1
        message: dict[str, Any] = {"id": self._next, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        view = memoryview(json.dumps(message).encode() + b"\0")
        while view:
            if not select.select([], [self._into], [], max(deadline - time.monotonic(), 0))[1]:
                raise TimeoutException(f"{method}: the browser does not listen")
            try:
                view = view[os.write(self._into, view) :]
            except OSError as error:
                raise WebDriverException(f"the browser is gone: {self.last_words()}") from error
        return self._next

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next message; what is nobody's answer is noted and seen to."""
        while b"\0" not in self._read:
            if len(self._read) > MAX_MESSAGE:
                raise WebDriverException("the page's answer has no end")
            if not select.select([self._out_of], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutException("timeout: the page does not answer")
            more = os.read(self._out_of, 1 << 20)
            if not more:
                raise WebDriverException(f"the browser is gone: {self.last_words()}")
            self._read += more
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._see_to(message, deadline)
        return message

    def _see_to(self, message: dict[str, Any], deadline: float) -> None:
        if time.monotonic() > deadline:  # a page that never stops talking is no page that answers
            raise TimeoutException("timeout: the page does not answer")
        if message["method"] == "Page.javascriptDialogOpening":
            self._send("Page.handleJavaScriptDialog", deadline, message.get("sessionId"), {"accept": False})
        elif message["method"] in ("Inspector.targetCrashed", "Target.targetCrashed"):
            raise WebDriverException("the page crashed")
        self._events = [*self._events[-99:], {"method": message["method"]}]


def _environment(profile: Path) -> dict[str, str]:
    """What a browser needs: no tokens, no proxies, and a home that goes away with it."""
    kept = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "FONTCONFIG_PATH", "FONTCONFIG_FILE")
    own = {name: str(profile) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    if len(str(profile)) < SOCKET_ROOM:  # it puts a socket there, whose path may have about 100 characters
        own["TMPDIR"] = str(profile)
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **own}


def is_root() -> bool:
    """Whether this is root on a system that has somebody less to be."""
    return sys.platform.startswith("linux") and os.geteuid() == 0


def _user(profile: Path) -> dict[str, Any]:
    """Root starts it as nobody, with a sandbox that Chromium refuses root: who breaks out of it is nobody (Linux)."""
    if not is_root():
        return {}
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return {}
    os.chown(profile, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
