"""Three tiers: unit (no process is started, a second), workflow (the rest), gpu.

A test is `workflow` if it says so (`@pytest.mark.workflow`), lies in tests/workflow/ or takes a project in which
Snakemake runs. What computes for longer than about a second, such as a real training or a simulation, is `slow`. All
others are `unit`, and this guard holds them to it: one that starts a process fails, also if it catches the error. The
decoder of pictures, which is a process of its own by design, may start, and what `ctypes` asks where a library lies:
importing trio does.
"""

import _posixsubprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OTHERS = ("workflow", "slow", "gpu")  # than unit
PROJECTS = {"served", "built_once", "built", "fresh"}
DECODER = "sdlora.images.worker"
LIBRARIES = "/sbin/ldconfig"
STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"}
WITH_WORDS = {"subprocess.Popen", "os.posix_spawn"}  # whose second argument is argv; Python 3.13's Popen is both


class StartedProcess(AssertionError):
    """A unit test started a process."""


class _Guard:
    """Sees every start of a process; refuses while a unit test runs."""

    def __init__(self) -> None:
        self.watching = False
        self.seen: list[str] = []
        self._fork_exec = _posixsubprocess.fork_exec
        # millions of events are none of these; a bound method takes four times as long to be asked as a function
        sys.addaudithook(lambda event, words: event in STARTS and self._audit(event, words))
        _posixsubprocess.fork_exec = self._of_multiprocessing  # type: ignore[assignment]

    def _audit(self, event: str, words: tuple[Any, ...]) -> None:
        """Of the start of a process."""
        if self.watching and not (event in WITH_WORDS and {DECODER, LIBRARIES} & {*map(str, words[1])}):
            self._refuse(f"{event}{words[:2]}")

    def _of_multiprocessing(self, *words: Any) -> int:
        # multiprocessing's own way past subprocess, of which Python's audit is not told
        if self.watching and DECODER.encode() not in words[0]:
            self._refuse(f"fork_exec{words[:1]}")
        return self._fork_exec(*words)

    def _refuse(self, what: str) -> None:
        self.seen.append(what)
        raise StartedProcess(_sentence(what))


def _sentence(what: str) -> str:
    return f"a unit test started a process ({what[:300]}): mark it with @pytest.mark.workflow, or do without"


_guard = _Guard()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` chooses among them."""
    for item in items:
        if Path(__file__).parent / "workflow" in item.path.parents or PROJECTS & {*getattr(item, "fixturenames", ())}:
            item.add_marker("workflow")
        if not any(item.get_closest_marker(name) for name in OTHERS):
            item.add_marker("unit")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fixtures of every scope count, too."""
    _guard.watching = item.get_closest_marker("unit") is not None
    _guard.seen.clear()
    yield
    _guard.watching = False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Fail a test that caught the guard's error."""
    outcome: Any = yield
    report = outcome.get_result()
    if _guard.seen and report.passed:
        report.outcome, report.longrepr = "failed", _sentence(_guard.seen[0])
    _guard.seen.clear()
