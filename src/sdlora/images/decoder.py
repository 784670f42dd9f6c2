"""Decoding in processes that can be killed: the only way by which a picture's bytes become pixels.

A process is kept for many pictures, so a picture costs a message, not a start. One that computes too long, takes too
much memory or breaks is that picture's error; the next picture gets a new process. Few decode at once, and of large
pictures one: decoded, they are large.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.errors import DataError, printable
from sdlora.images import worker

SECONDS = 30.0  # of computing for one picture; 64 megapixels of the slowest kind take less
MEMORY_MIB = 1536  # of one process; 64 megapixels of the largest kind take about 1000
LARGE = 8_000_000  # pixels
PATIENCE = 10.0  # the clock may run so many times longer than the computing: a machine has other work, too
MAX_LINE = 65_536
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "PYTHONHOME")


@dataclass(frozen=True)
class Decoded:
    """A picture that could be decoded whole; `picture` is RGB or RGBA and upright, or a thumbnail in RGB."""

    format: str
    size: tuple[int, int]  # width, height of the upright picture, px
    picture: Image.Image


def decode(
    content: bytes,
    name: str,
    max_pixels: int,
    formats: Sequence[str],
    thumbnail: int = 0,
    seconds: float = SECONDS,
    remedy: str = "scale it down",
) -> Decoded:
    """Decode a picture whole; of an animation, the first frame.

    Args:
        content: The file's bytes; the format is told by content, never by name.
        name: What to call it in an error.
        max_pixels: Most pixels, checked before anything is decoded.
        formats: The only formats that are tried.
        thumbnail: Side of the thumbnail that is enough, px; 0 = the whole picture.
        seconds: Most computing time.
        remedy: What to do about a picture of more pixels, for its error.

    Raises:
        DataError: If it is no picture of `formats`, is damaged, or exceeds a limit.
    """
    request = {"bytes": len(content), "max_pixels": max_pixels, "formats": list(formats), "thumbnail": thumbnail,
               "seconds": seconds, "large": LARGE}  # fmt: skip
    try:
        facts, pixels = _the_pool().ask(request, content)
    except _Lost as lost:
        raise DataError(f"{name}: not a readable picture: {_why(lost.status, seconds)}") from None
    if "problem" in facts:
        raise DataError(f"{name}: {_problem(facts, content, request, remedy)}")
    size = (int(facts["width"]), int(facts["height"]))
    picture = Image.frombytes(str(facts["mode"]), tuple(facts["size"]), pixels)
    picture.format = str(facts["format"])
    return Decoded(picture.format, size, picture)


def _problem(facts: dict[str, Any], content: bytes, request: dict[str, Any], remedy: str) -> str:
    kind = facts["problem"]
    if kind == "pixels":
        return f"{facts['width']} x {facts['height']} px is more than {request['max_pixels']} pixels; {remedy}"
    reasons = {
        "unknown": f"none of {', '.join(request['formats'])}" if content else "no bytes",
        "scans": f"a JPEG of {facts.get('count')} scans, at most {facts.get('most')} are decoded",
        "memory": f"decoding it needs more than {MEMORY_MIB} MiB",
    }
    return f"not a readable picture: {reasons.get(kind) or printable(str(facts.get('error'))[:500])}"


def _why(status: int | None, seconds: float) -> str:
    if status in (-signal.SIGPROF, None):
        return f"it was not decoded after {seconds:g} s"
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"its decoder broke ({name})"


class _Lost(Exception):
    """A process that is no more; its exit status, or None if it had to be killed for its slowness."""

    def __init__(self, status: int | None) -> None:
        super().__init__(status)
        self.status = status


class _Worker:
    """One decoding process and the pipes to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.main.__module__, str(MEMORY_MIB)],
            env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._into, self._out_of = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._into, False)
        self._read = b""

    def ask(self, request: dict[str, Any], content: bytes, turn: threading.Lock) -> tuple[dict[str, Any], bytes]:
        """One picture; `turn` is held while a large one is decoded.

        Raises:
            _Lost: If the process ended or had to be killed.
        """
        wait_s = PATIENCE * request["seconds"]
        try:
            self._send(json.dumps(request).encode() + b"\n" + content, time.monotonic() + wait_s)
            facts = self._line(time.monotonic() + wait_s)
            if facts.get("large"):
                with turn:
                    self._send(b"\n", time.monotonic() + wait_s)
                    return self._answer(self._line(time.monotonic() + wait_s), request, wait_s)
            return self._answer(facts, request, wait_s)
        except TimeoutError:
            self._process.kill()
            self._process.wait()
            raise _Lost(None) from None
        except (OSError, EOFError, ValueError):  # it ended, or it no longer speaks as it should
            self._process.kill()
            raise _Lost(self._process.wait()) from None

    def _answer(self, facts: dict[str, Any], request: dict[str, Any], wait_s: float) -> tuple[dict[str, Any], bytes]:
        size = int(facts["bytes"])
        if not 0 <= size <= 4 * request["max_pixels"] + 4 * request["thumbnail"] ** 2:
            raise ValueError(f"an answer of {size} bytes")
        return facts, self._exactly(size, time.monotonic() + wait_s)

    def _send(self, content: bytes, deadline: float) -> None:
        view = memoryview(content)
        while view:
            if not select.select([], [self._into], [], max(deadline - time.monotonic(), 0))[1]:
                raise TimeoutError
            with suppress(BlockingIOError):
                view = view[os.write(self._into, view[:65_536]) :]

    def _more(self, deadline: float) -> bytes:
        if not select.select([self._out_of], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError
        found = os.read(self._out_of, 1 << 20)
        if not found:
            raise EOFError
        return found

    def _line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._read:
            if len(self._read) > MAX_LINE:
                raise ValueError("an answer without end")
            self._read += self._more(deadline)
        line, _, self._read = self._read.partition(b"\n")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def _exactly(self, size: int, deadline: float) -> bytes:
        pieces, have = [self._read], len(self._read)
        while have < size:
            pieces.append(self._more(deadline))
            have += len(pieces[-1])
        whole = b"".join(pieces)
        self._read = whole[size:]
        return whole[:size]

    def let_go(self) -> None:
        """Close the pipes: the process ends after what it is at."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def end(self) -> None:
        """Kill it."""
        self.let_go()
        self._process.kill()
        self._process.wait()


class _Pool:
    """Processes that wait for work; as many as are needed, few at most."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(min(os.cpu_count() or 1, 4))
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def ask(self, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
        """Give a picture to a process."""
        with self._places:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                worker = _Worker()
                with self._lock:
                    self._all.add(worker)
            try:
                answer = worker.ask(request, content, self._turn)
            except BaseException:
                worker.end()
                with self._lock:
                    self._all.discard(worker)
                raise
            with self._lock:
                self._idle.append(worker)
            return answer

    def end(self) -> None:
        """End all processes."""
        with self._lock:
            for one in self._all:
                one.end()

    def let_go(self) -> None:
        """Forget them, after a fork: they are the parent's."""
        for one in self._all:
            one.let_go()


_pool: _Pool | None = None
_pool_lock = threading.Lock()


def _the_pool() -> _Pool:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = _Pool()
            atexit.register(_pool.end)
        return _pool


def _after_fork() -> None:
    global _pool, _pool_lock
    if _pool is not None:
        atexit.unregister(_pool.end)
        _pool.let_go()
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _environment() -> dict[str, str]:
    """What the process needs and no more: no tokens, one thread, memory that goes back when it is freed."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    package = str(Path(worker.__file__).parents[2])
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([package, known] if known else [package])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": str(2**20)}  # fmt: skip
