"""Progress of long work: one line with step, it/s and time to go, on standard error."""

import sys
import time


class Progress:
    """Prints at most one line a second, and always the last one."""

    def __init__(self, name: str, total: int, start: int = 0) -> None:
        self._name, self._total, self._start = name, total, start
        self._began = self._said = time.monotonic()
        self._done = start

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.update(self._done + count)

    def update(self, done: int, note: str = "") -> None:
        """Say where the work is; `done` counts from the very beginning."""
        self._done = done
        now = time.monotonic()
        if now - self._said < 1.0 and done != self._total:
            return
        self._said = now
        rate = (done - self._start) / max(now - self._began, 1e-9)
        left = (self._total - done) / rate if rate > 0 else float("inf")
        print(
            f"{self._name}: {done}/{self._total} {note} {rate:.2f} it/s, {left:.0f} s to go",
            file=sys.stderr,
            flush=True,
        )
