"""Politeness: so many requests at once in all, so many to one host, and so many a second.

A host may ask for pauses, and gets them; but who keeps asking is given up, or one host would take a minute a picture.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sdlora.config.sources import Scrape
from sdlora.stages.scrape.connect import FetchError


class _Host:
    def __init__(self, limits: Scrape) -> None:
        self.slots = threading.BoundedSemaphore(limits.host_concurrency)
        self.lock = threading.Lock()
        self.next_s = 0.0  # monotonic time of the next request
        self.paused_until_s = 0.0  # monotonic
        self.paused_s = 0.0  # asked for since it last gave something


class Gate:
    """Every request passes it; a request that waits for its host takes no place from other hosts."""

    def __init__(self, limits: Scrape) -> None:
        self._limits = limits
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self.closed = threading.Event()

    @contextmanager
    def passing(self, host: str, left_s: float) -> Iterator[float]:
        """Wait for a place; yields the seconds waited for others' sake, in which the host asked for no pause.

        Args:
            host: Whose place.
            left_s: What the picture has left; a pause may not take longer.

        Raises:
            FetchError: If the host asked for a longer pause, or for too many.
        """
        known = self._host(host)
        began, before_s = time.monotonic(), self._check_pause(known, left_s)
        with known.slots:
            self._wait_for_turn(known, left_s)
            with self._slots:
                now = time.monotonic()
                paused_s = min(max(before_s, known.paused_until_s - began, 0.0), now - began)
                yield now - began - paused_s

    def pause(self, host: str, seconds: float) -> None:
        """No request to the host for so long; for twice as long each time, once it has had a picture's whole time."""
        known = self._host(host)
        with known.lock:
            if known.paused_s > self._limits.deadline_s:
                seconds = max(seconds, known.paused_s)
            until = time.monotonic() + seconds
            known.paused_s += max(until - max(known.paused_until_s, time.monotonic()), 0.0)
            known.paused_until_s = max(known.paused_until_s, until)

    def gave(self, host: str) -> None:
        """The host has given a picture: its pauses were worth the wait."""
        self._host(host).paused_s = 0.0

    def _check_pause(self, host: _Host, left_s: float) -> float:
        """Seconds that the host wants to be left alone from now."""
        wait_s = host.paused_until_s - time.monotonic()
        if wait_s >= left_s:
            raise FetchError("time", f"its host asks to wait {wait_s:.0f} s, which is too long")
        if wait_s > 0 and host.paused_s > self._limits.deadline_s:
            raise FetchError("time", f"its host has asked for {host.paused_s:.0f} s of pauses and given nothing")
        return max(wait_s, 0.0)

    def _host(self, name: str) -> _Host:
        with self._lock:
            return self._hosts.setdefault(name, _Host(self._limits))

    def _wait_for_turn(self, host: _Host, left_s: float) -> None:
        while not self.closed.is_set():
            self._check_pause(host, left_s)
            with host.lock:
                wait_s = max(host.next_s, host.paused_until_s) - time.monotonic()
                if wait_s <= 0:
                    host.next_s = time.monotonic() + 1 / self._limits.host_rate_per_s
                    return
            self.closed.wait(wait_s)
