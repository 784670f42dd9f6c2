"""Connections that only reach addresses that were checked, and that end when their time is up.

A name is resolved once, every address it has is judged, and the socket is opened to one of those very addresses:
a name that resolves differently a moment later changes nothing. TLS still verifies the name.
"""

import io
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url

from sdlora.errors import DataError, printable
from sdlora.stages.scrape.source import ScrapeContext

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ADDRESSES = 4  # tried one after the other
MAX_REASON = 1000  # characters; servers are quoted in it
HEADERS_BYTES = 256 * 1024  # beside the body: status, headers, chunk sizes


class FetchError(DataError):
    """A picture that could not be fetched.

    Args:
        kind: One word for summaries: url, address, redirects, status, opt-out, size, time, connection.
        reason: The whole reason.
        transient: Whether trying again later may help.
        retry_after_s: How long the server asks to wait.

    Attributes:
        host: Who said so, if a server did: after a redirect it is not the URL's host.
    """

    def __init__(self, kind: str, reason: str, transient: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(printable(reason[:MAX_REASON]))
        self.kind, self.transient, self.retry_after_s = kind, transient, retry_after_s
        self.host: str | None = None


def checked_addresses(host: str, port: int, context: ScrapeContext) -> list[tuple[str, int]]:
    """The addresses of a host, if all of them may be connected to.

    Raises:
        FetchError: If the name has no address, or one that is not allowed.
    """
    try:
        found = context.resolve(host, port)
    except (OSError, UnicodeError) as error:
        again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise FetchError("address", f"{host} has no address ({error})", transient=again) from None
    for address, _ in found:
        if not context.allow(ipaddress.ip_address(address)):
            raise FetchError("address", f"{host} is {address}, which is not a public address")
    if not found:
        raise FetchError("address", f"{host} has no address")
    return found[:MAX_ADDRESSES]


class Leash:
    """Ends a connection from another thread when the deadline has come.

    A timeout of a socket starts anew with every byte; this does not. It holds a duplicate of the socket, because TLS
    takes the socket over and `shutdown` works on the connection behind both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.cut_off = False

    def hold(self, connected: socket.socket) -> None:
        """Take hold of a socket that has just been connected."""
        with self._lock:
            self._socket = connected.dup()
        if self.cut_off:
            self.cut()

    def cut(self) -> None:
        """End the connection: whoever reads from it wakes up."""
        with self._lock:
            self.cut_off = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Let go."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class _Metered(io.RawIOBase):
    """Reads from a socket, up to so many bytes of any kind.

    The cap on the body does not see chunk extensions, trailers and interim answers, and the readers of those have none.
    """

    def __init__(self, source: socket.SocketIO, most: int) -> None:
        self._source, self._left = source, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        got = self._source.readinto(buffer)
        self._left -= got or 0
        if self._left < 0:
            raise FetchError("size", "more bytes came than a file of the size allowed needs")
        return got

    def close(self) -> None:
        self._source.close()
        super().close()


class _MeteredSocket:
    """A socket whose files are metered; all else is the socket's."""

    def __init__(self, connected: socket.socket, most: int) -> None:
        self._connected, self._most = connected, most

    def makefile(self, mode: str = "r", *args: Any, **options: Any) -> io.BufferedReader:
        """What an answer is read from."""
        return io.BufferedReader(_Metered(self._connected.makefile("rb", buffering=0), self._most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)


class _Checked(HTTPConnection):
    context: ScrapeContext
    leash: Leash
    deadline: float

    def connect(self) -> None:
        super().connect()
        most = int(self.context.limits.max_mib * 2**20) + HEADERS_BYTES
        self.sock = cast(socket.socket, _MeteredSocket(cast(socket.socket, self.sock), most))

    def _new_conn(self) -> socket.socket:
        timeout_s = self.context.limits.timeout_s
        lost: OSError | None = None
        for address in checked_addresses(self.host, self.port or self.default_port, self.context):
            left = self.deadline - time.monotonic()
            if left <= 0:
                break
            try:
                connected = socket.create_connection(address, min(timeout_s, left))
            except OSError as error:
                lost = error
                continue
            connected.settimeout(timeout_s)
            self.leash.hold(connected)
            return connected
        raise FetchError("connection", f"no connection to {self.host}: {lost or 'out of time'}", transient=True)


class _CheckedTls(_Checked, HTTPSConnection):
    """TLS over a checked connection; certificate and name are verified by urllib3."""


def connection_to(url: Url, context: ScrapeContext, tls: ssl.SSLContext, deadline: float) -> HTTPConnection:
    """An unopened connection for a URL.

    Args:
        url: An http or https URL.
        context: Who may be reached, and how names are resolved.
        tls: Verifies https.
        deadline: `time.monotonic()` at which the connection must be over; the caller cuts its leash then.
    """
    host, timeout_s = cast(str, url.host).strip("[]"), context.limits.timeout_s
    connection: _Checked
    if url.scheme == "https":
        connection = _CheckedTls(host, url.port or 443, ssl_context=tls, timeout=timeout_s)
    else:
        connection = _Checked(host, url.port or 80, timeout=timeout_s)
    connection.context, connection.leash, connection.deadline = context, Leash(), deadline
    return connection
