"""Politeness: so many requests at once in all, so many to one host, and so many a second."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sdlora.source_section import Scrape


class _Host:
    def __init__(self, limits: Scrape) -> None:
        self.slots = threading.BoundedSemaphore(limits.host_concurrency)
        self.lock = threading.Lock()
        self.next_s = 0.0  # monotonic time of the next request


class Gate:
    """Every request passes it; a request that waits for its host takes no place from other hosts."""

    def __init__(self, limits: Scrape) -> None:
        self._limits = limits
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self.closed = threading.Event()

    @contextmanager
    def passing(self, host: str) -> Iterator[float]:
        """Wait for a place; yields the seconds waited."""
        began = time.monotonic()
        with self._host(host).slots:
            self._wait_for_turn(self._host(host))
            with self._slots:
                yield time.monotonic() - began

    def pause(self, host: str, seconds: float) -> None:
        """No request to the host for so long."""
        known = self._host(host)
        with known.lock:
            known.next_s = max(known.next_s, time.monotonic() + seconds)

    def _host(self, name: str) -> _Host:
        with self._lock:
            return self._hosts.setdefault(name, _Host(self._limits))

    def _wait_for_turn(self, host: _Host) -> None:
        while not self.closed.is_set():
            with host.lock:
                wait_s = host.next_s - time.monotonic()
                if wait_s <= 0:
                    host.next_s = time.monotonic() + 1 / self._limits.host_rate_per_s
                    return
            self.closed.wait(wait_s)
