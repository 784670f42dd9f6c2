"""The guard of the unit tier sees every way to start a process, also one whose error is caught."""

import ctypes.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import tiers

WAYS: dict[str, Callable[[], object]] = {
    "subprocess": lambda: subprocess.run([sys.executable, "-V"], check=False),
    "posix_spawn": lambda: os.posix_spawn(sys.executable, [sys.executable, "-V"], {}),
    "fork": os.fork,
    "system": lambda: os.system("true"),
    "multiprocessing": multiprocessing.get_context("spawn").Process(target=print).start,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_refused_and_remembered(way: str) -> None:
    with pytest.raises(tiers.StartedProcess, match="mark it with"):
        WAYS[way]()
    assert len(tiers._guard.seen) == 1
    tiers._guard.seen.clear()  # or this test fails, as the sentence says


def _spawn(words: list[str]) -> None:
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    os.waitpid(os.posix_spawn(words[0], words, os.environ, file_actions=[nothing]), 0)


@pytest.mark.parametrize(
    "start", [lambda words: subprocess.run(words, input=b"", check=False, capture_output=True), _spawn]
)
def test_the_decoder_may_start(start: Callable[[list[str]], object]) -> None:
    """Python 3.13's subprocess starts by posix_spawn."""
    start([sys.executable, "-P", "-m", tiers.DECODER, "256"])
    assert tiers._guard.seen == []


def test_a_library_may_be_looked_for() -> None:
    """Whichever test is the first to import huggingface_hub, and with it trio, would fail."""
    ctypes.util.find_library("pthread")
    assert tiers._guard.seen == []
