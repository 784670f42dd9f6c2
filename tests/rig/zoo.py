"""A web server that does whatever a hostile or broken one does, byte by byte, on 127.0.0.2.

All of 127.0.0.0/8 is loopback. The zoo lives at 127.0.0.2 and tests allow that one address, so that 127.0.0.1 stays
what it is in production: refused.
"""

import ipaddress
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from sdlora.stages.scrape.source import Candidate, ScrapeContext, is_public

ADDRESS = "127.0.0.2"
LIMITS = {
    "timeout_s": 0.5, "deadline_s": 4.0, "max_mib": 2.0, "host_rate_per_s": 10_000.0, "host_concurrency": 16,
    "retries": 2,
}  # fmt: skip
Behaviour = Callable[["Visit"], None]


class Visit:
    """One request: what was asked for, and the socket to answer on."""

    def __init__(self, zoo: "Zoo", connection: socket.socket, target: str, headers: Mapping[str, str]) -> None:
        self.zoo, self.connection, self.target, self.headers = zoo, connection, target, headers
        self.path = target.split("?")[0]

    def send(self, content: bytes) -> None:
        """Raw bytes."""
        self.connection.sendall(content)

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """A whole answer; `Retry_After="1"` becomes `Retry-After: 1`."""
        self.head(status, Content_Length=str(len(body)), **headers)
        self.send(body)

    def head(self, status: int = 200, **headers: str) -> None:
        """The status line and the headers alone."""
        lines = [f"HTTP/1.1 {status} x", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))


class Zoo:
    """Use as a context manager; `log` holds (time, path) of every request, `open_now` how many are being answered."""

    def __init__(self, address: str = ADDRESS, delay_s: float = 0.0) -> None:
        self.address, self.delay_s = address, delay_s
        self.log: list[tuple[float, str]] = []
        self.hosts: list[str] = []
        self.open_now = self.most_open = 0
        self._lock = threading.Lock()
        self._behaviours: dict[str, Behaviour] = {}
        self._listener = socket.create_server((address, 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def add(self, path: str, behaviour: Behaviour | bytes, host: str = "zoo.example", **headers: str) -> str:
        """Behave so at a path, or send these bytes as a picture; returns the URL."""
        if isinstance(behaviour, bytes):
            content = behaviour
            self._behaviours[path] = lambda visit: visit.answer(content, **headers)
        else:
            self._behaviours[path] = behaviour
        return f"http://{host}{path}"

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for _, path in list(self.log)]

    def context(self, **options: Any) -> ScrapeContext:
        """The explicit injection: names below .example are the zoo, and its one address is allowed."""
        return context_of(self.port, **options)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = b""
            while b"\r\n\r\n" not in asked:
                more = connection.recv(65536)
                if not more:
                    return
                asked += more
            first, *lines = asked.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            visit = Visit(self, connection, first.split(" ")[1], headers)
            with self._lock:
                self.log.append((time.monotonic(), visit.path))
                self.hosts.append(headers.get("host", ""))
                self.open_now += 1
                self.most_open = max(self.most_open, self.open_now)
            try:
                time.sleep(self.delay_s)
                self._behaviours.get(visit.path, lambda v: v.answer(b"nothing here", 404))(visit)
            finally:
                with self._lock:
                    self.open_now -= 1


def context_of(port: int, **options: Any) -> ScrapeContext:
    """The context that reaches a zoo of this or another process."""

    def resolve(host: str, asked: int) -> list[tuple[str, int]]:
        if host.endswith(".example"):
            return [(ADDRESS, port)]
        # numbers in any spelling, as the system reads them; never a real name
        found = socket.getaddrinfo(host, asked, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [(str(entry[4][0]), int(entry[4][1])) for entry in found]

    return ScrapeContext(**{"allow": is_zoo_or_public, "resolve": resolve, **options})


def is_zoo_or_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Production's rule with one exception."""
    return str(address) == ADDRESS or is_public(address)


# -- behaviours ------------------------------------------------------------------------------------------------------


def endless(visit: Visit) -> None:
    """A picture that never ends, in chunks of unknown number."""
    visit.head(Content_Type="image/jpeg", Connection="close")
    while True:
        visit.send(b"\xff\xd8\xff" + bytes(65536))


def endless_chunked(visit: Visit) -> None:
    """The same with chunked encoding."""
    visit.head(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    while True:
        visit.send(b"10000\r\n" + bytes(65536) + b"\r\n")


def drip(visit: Visit) -> None:
    """One byte now and then: each read succeeds in time."""
    visit.head(Content_Type="image/png", Content_Length="100000")
    while True:
        visit.send(b"\x89")
        time.sleep(0.05)


def drip_headers(visit: Visit) -> None:
    """The headers themselves never end."""
    visit.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        visit.send(b"X")
        time.sleep(0.05)


def silent(visit: Visit) -> None:
    """Accepts, and says nothing."""
    time.sleep(60)


def cut_short(content: bytes) -> Behaviour:
    """Promises more bytes than it sends."""

    def behave(visit: Visit) -> None:
        visit.head(Content_Length=str(len(content) + 1000))
        visit.send(content)

    return behave


def redirect(to: str, status: int = 301) -> Behaviour:
    """Somewhere else."""
    return lambda visit: visit.answer(status=status, Location=to)


def after_failures(count: int, content: bytes, status: int = 500, **headers: str) -> Behaviour:
    """Fails so many times, then is good."""
    left = [count]

    def behave(visit: Visit) -> None:
        if left[0]:
            left[0] -= 1
            visit.answer(b"later", status, **headers)
        else:
            visit.answer(content)

    return behave


# -- files -----------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int, packed: bytes) -> bytes:
    """A PNG that says it is so large, whatever its data are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def bomb(side_px: int) -> bytes:
    """A whole, valid, black RGB PNG of a few hundred KB."""
    row = bytes(1 + 3 * side_px)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    return png_of(side_px, side_px, packed)


# -- a source --------------------------------------------------------------------------------------------------------

RESULTS: dict[str, list[str]] = {}  # what a search for a query finds


def find(source: Any, context: ScrapeContext) -> Iterator[Candidate]:
    """An entry for choices.SOURCES: a search whose results a test has written down."""
    for rank, url in enumerate(RESULTS[source.query]):
        page = f"http://{urlsplit(url).hostname or 'zoo.example'}/page"
        yield Candidate(source.kind, rank, url=url, query=source.query, page_url=page)
