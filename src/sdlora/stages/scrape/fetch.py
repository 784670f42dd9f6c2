"""The one safe fetcher: every picture that a search names comes through here.

What it refuses: anything but http and https, hosts with an address that is not public (checked again at every
redirect, and the connection goes to the checked address), more redirects, bytes or seconds than the limits allow, and
pictures whose owner opted out by X-Robots-Tag. It never looks at the environment's proxies, sends no cookies and no
credentials, and asks for an unpacked body. A connection is used once: search results rarely share a host.
"""

import hashlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urljoin
from uuid import uuid4

from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Url, parse_url

from sdlora import __version__
from sdlora.errors import DataError
from sdlora.stages.scrape.connect import FetchError, Leash, connection_to
from sdlora.stages.scrape.gate import Gate
from sdlora.stages.scrape.source import ScrapeContext

AGENT = "sdlora"
HEADERS = {
    "User-Agent": f"{AGENT}/{__version__} (collects pictures for training; honours X-Robots-Tag)",
    "Accept": "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.8",
}
WHOLE = {"Accept-Encoding": "identity", "Connection": "close"}  # sent always
REDIRECTS = {301, 302, 303, 307, 308}
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "none"}  # none is noindex and nofollow
MAX_REDIRECTS = 5
MAX_URL = 8192
CHUNK = 64 * 1024
LONGEST_S = 1e9  # that a server may ask to wait: 30 years are as good as any more
FIRST_WAIT_S = 0.5  # before the second attempt; doubled each time, with jitter


@dataclass(frozen=True)
class Fetched:
    """A file that has arrived whole. `part` is the caller's to keep or to drop."""

    part: Path
    sha256: str
    size_bytes: int
    final_url: str


class _Time:
    """What is left of a picture's time; waiting for one's turn at a host does not count, a host's pauses do."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def left(self) -> float:
        return self.deadline - time.monotonic()


@cache
def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Whom connections trust; None: whom the system trusts, whose certificates take 6 ms to read."""
    return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)


class Fetcher:
    """Fetches pictures into a folder; may be used by many threads."""

    def __init__(self, context: ScrapeContext, folder: Path, headers: Mapping[str, str] = HEADERS) -> None:
        self._context, self._folder = context, folder
        self._headers = {**headers, **WHOLE}
        self._limits = context.limits
        self._gate = Gate(context.limits)
        self._tls = _trusting(context.ca_file)
        self._open: set[HTTPConnection] = set()
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # a server's odd headers are nobody's news
        self._lock = threading.Lock()

    def fetch(self, url: str) -> Fetched:
        """Fetch one picture, trying again where that may help.

        Raises:
            FetchError: With the reason why there is no picture.
        """
        clock = _Time(self._limits.deadline_s)
        for attempt in range(self._limits.retries + 1):
            try:
                return self._follow(url, clock)
            except FetchError as error:
                if not error.transient or attempt == self._limits.retries:
                    raise
                self._wait(url, error, attempt, clock)
        raise AssertionError("unreachable")

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called: what fails then fails for that reason."""
        return self._gate.closed.is_set()

    def stop(self) -> None:
        """End every connection; fetches under way fail."""
        self._gate.closed.set()
        with self._lock:
            for connection in self._open:
                connection.leash.cut()  # type: ignore[attr-defined]

    def _wait(self, url: str, error: FetchError, attempt: int, clock: _Time) -> None:
        jitter = 0.5 + int.from_bytes(hashlib.sha256(f"{attempt} {url}".encode()).digest()[:4], "big") / 2**32
        seconds = FIRST_WAIT_S * 2**attempt * jitter
        if error.retry_after_s is not None:
            seconds = max(error.retry_after_s, 0.0)
            self._gate.pause(error.host or "", seconds)
        if seconds >= clock.left():
            asked = f"; it asks to wait {seconds:.0f} s" if error.retry_after_s is not None else ""
            raise FetchError(error.kind, f"{error}{asked}; no time is left for another attempt", transient=True)
        self._gate.closed.wait(seconds)

    def _follow(self, url: str, clock: _Time) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            found = self._request(url, clock)
            if isinstance(found, Fetched):
                return found
            url = found
        raise FetchError("redirects", f"more than {MAX_REDIRECTS} redirects, the last to {url[:200]}")

    def _request(self, url: str, clock: _Time) -> Fetched | str:
        """One request: a file, or where to look instead."""
        place = checked_url(url)
        host = str(place.host)
        with self._gate.passing(host, clock.left()) as waited_s:
            clock.deadline += waited_s
            if self._gate.closed.is_set():
                raise FetchError("connection", "stopped", transient=True)
            try:
                with self._connected(place, clock) as (response, leash):
                    self._check_opt_out(response)
                    if response.status in REDIRECTS and response.headers.get("Location"):
                        return urljoin(place.url, response.headers["Location"])
                    check_status(response)
                    found = self._receive(response, place.url, clock, leash)
                    self._gate.gave(host)
                    return found
            except FetchError as error:
                error.host = host
                raise
            except ssl.SSLCertVerificationError as error:
                raise FetchError("connection", f"TLS: {error.verify_message}") from None
            except (HTTPError, HTTPException, OSError, ValueError) as error:
                raise self._lost(error, clock) from None

    @contextmanager
    def _connected(self, place: Url, clock: _Time) -> Iterator[tuple[BaseHTTPResponse, Leash]]:
        """A response whose connection is cut when the time is up, and closed in the end."""
        connection = connection_to(place, self._context, self._tls, clock.deadline)
        leash = connection.leash  # type: ignore[attr-defined]
        alarm = threading.Timer(max(clock.left(), 0), leash.cut)
        alarm.daemon = True
        alarm.start()
        with self._lock:
            self._open.add(connection)
        if self.is_stopped:  # between the gate and here
            leash.cut()
        try:
            connection.request(
                "GET", place.request_uri, headers=self._headers, preload_content=False, decode_content=False
            )
            response = connection.getresponse()
            yield response, leash
        finally:
            alarm.cancel()
            with self._lock:
                self._open.discard(connection)
            connection.close()
            leash.drop()

    def _lost(self, error: Exception, clock: _Time) -> FetchError:
        if clock.left() <= 0:
            return FetchError("time", f"not here after {self._limits.deadline_s:g} s")
        if isinstance(error, TimeoutError) or "timed out" in str(error):
            return FetchError("time", f"nothing came for {self._limits.timeout_s:g} s", transient=True)
        return FetchError("connection", f"the connection was lost: {error}", transient=True)

    def _check_opt_out(self, response: BaseHTTPResponse) -> None:
        said = opt_outs(response.headers.getlist("X-Robots-Tag"))
        if said and self._limits.honour_opt_out:
            raise FetchError("opt-out", f"X-Robots-Tag: {', '.join(said)}")

    def _receive(self, response: BaseHTTPResponse, url: str, clock: _Time, leash: Leash) -> Fetched:
        """Stream the body into a file, at most as many bytes as allowed."""
        cap = int(self._limits.max_mib * 2**20)
        too_large = FetchError("size", f"more than {self._limits.max_mib:g} MiB")
        length = response.headers.get("Content-Length", "").strip()
        if length.isdecimal() and (len(length) > 15 or int(length) > cap):
            raise too_large
        part = self._folder / f"{uuid4().hex}.part"
        digest, size = hashlib.sha256(), 0
        file = PartFile(part)
        try:
            with closing(file) as handle:
                while chunk := response.read1(CHUNK):
                    size += len(chunk)
                    if size > cap:
                        raise too_large
                    digest.update(chunk)
                    handle.write(chunk)
                if leash.cut_off:  # looks like the end of a body that names no length
                    raise self._lost(OSError("it was cut"), clock)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return Fetched(part, digest.hexdigest(), size, url)


class PartFile:
    """A file being written; what the disk says against it is not taken for the network's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._on_disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = path.open("wb")

    def write(self, chunk: bytes) -> None:
        """Append."""
        with self._on_disk():
            self._handle.write(chunk)

    def close(self) -> None:
        """Bring everything to the disk."""
        with self._on_disk(), self._handle:
            self._handle.flush()
            os.fsync(self._handle.fileno())

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._path.parent} cannot be written: {error.strerror}") from None


def checked_url(url: str) -> Url:
    """A URL with its odd characters encoded.

    Raises:
        FetchError: If it is not an http or https URL with a host.
    """
    if len(url) > MAX_URL:
        raise FetchError("url", f"a URL of {len(url)} characters; at most {MAX_URL} are followed")
    try:
        place = parse_url(url.strip())
    except (LocationParseError, UnicodeError, ValueError):
        raise FetchError("url", f"not a URL: {url[:200]!r}") from None
    if place.scheme not in ("http", "https"):
        scheme = url.split(":", 1)[0][:20]
        raise FetchError("url", f"only http and https are fetched, not {scheme!r}")
    if not place.host:
        raise FetchError("url", f"a URL without a host: {url[:200]!r}")
    return Url(place.scheme, None, place.host, place.port, place.path or "/", place.query)


def check_status(response: BaseHTTPResponse) -> None:
    """Raise unless the status is 200.

    Raises:
        FetchError: Transient for the statuses that ask to try again.
    """
    status = response.status
    if status == HTTPStatus.OK:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() not in ("identity", ""):
            raise FetchError("status", f"packed as {encoding[:20]} although identity was asked for")
        return
    after = retry_after_s(response.headers.get("Retry-After")) if status in TRANSIENT else None
    raise FetchError("status", f"HTTP status {status}", transient=status in TRANSIENT, retry_after_s=after)


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:15]), LONGEST_S)
    with suppress(ValueError, TypeError, OverflowError):  # a date may be in the year 9999999
        moment = parsedate_to_datetime(text)
        return min(max((moment - datetime.now(UTC)).total_seconds(), 0.0), LONGEST_S)
    return None


def opt_outs(headers: list[str]) -> list[str]:
    """The opt-out words of X-Robots-Tag headers that speak to everybody or to this program.

    A header may name the robot it speaks to: `googlebot: noindex, nofollow`.
    """
    found = []
    for header in headers:
        robot = None
        for rule in header.lower().split(","):
            name, colon, rest = rule.partition(":")
            if colon and name.strip() not in ("max-snippet", "max-image-preview", "max-video-preview"):
                robot, rule = name.strip(), rest
            if rule.strip() in OPT_OUT and robot in (None, "*", AGENT):
                found.append(rule.strip())
    return found
