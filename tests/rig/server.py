"""The rig itself: one TLS server for every host, one proxy, one log."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from rig import site
from rig.authority import Authority
from rig.pictures import picture
from rig.site import Search
from sdlora.stages.scrape.source import ScrapeContext

HOSTS = ("www.bing.com", "tse1.mm.bing.net", "gallery.example", *site.PICTURE_HOSTS)
#: Put in the place of the scrape stage's script in a test's own copy of the project: the only way to its rig.
SCRIPT = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from rig.server import connect

from sdlora.flow import command
from sdlora.stages.scrape.pin import scrape
from sdlora.stages.scrape.recipe import ScrapeRecipe

context = connect(Path("rig/rig.json"))
command.run(ScrapeRecipe, lambda recipe, again: scrape(recipe, bool(again), context), again=int)
"""


@dataclass(frozen=True)
class Request:
    """One request that arrived."""

    host: str
    path: str
    query: dict[str, str]
    agent: str

    @property
    def url(self) -> str:
        return f"https://{self.host}{self.path}"


@dataclass(frozen=True)
class Answer:
    """What a host says. For anything stranger, register a function that writes to the handler itself."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Responder = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.rig` knows what to say."""

    protocol_version = "HTTP/1.1"
    server: "Server"
    timeout = 60

    def setup(self) -> None:
        # the handshake happens here, in the connection's own thread: a client that stalls must not stop the others
        self.request = self.server.rig.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        self.server.rig.answer(self)

    do_HEAD = do_GET

    def say(self, answer: Answer) -> None:
        """Send a whole answer."""
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    @property
    def host(self) -> str:
        return self.headers.get("Host", "").rsplit(":", 1)[0].lower()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the rig keeps its own log."""


class Server(ThreadingHTTPServer):
    """Threads, and quiet about clients that hang up."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, rig: "Rig") -> None:
        self.rig = rig
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Rig:
    """The search, the hosts and how to reach them; use as a context manager.

    Args:
        folder: For certificates and the description that other processes read.
        searches: What the search knows, by query; any other query finds nothing.
        delay_s: Added to every answer, as on a real network.
        hosts: Further host names.
    """

    def __init__(
        self, folder: Path, searches: dict[str, Search] | None = None, delay_s: float = 0.0, hosts: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.delay_s = folder, delay_s
        self.searches = dict(searches or {})
        self.hosts = (*HOSTS, *hosts)
        self.authority = Authority(folder, self.hosts)
        self.ca_file = self.authority.ca_file
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.authority.leaf_file)
        self.log: list[Request] = []
        self.refused: list[str] = []  # hosts that the proxy was asked for and does not know
        self._special: dict[tuple[str, str], Answer | Responder] = {}
        self._server = Server(self)
        self.port = int(self._server.server_address[1])
        self._proxy = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.proxy = f"http://127.0.0.1:{self._proxy.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        threading.Thread(target=self._serve_proxy, daemon=True).start()
        description = {"port": self.port, "hosts": self.hosts, "ca_file": str(self.ca_file.resolve()),
                       "browser_arguments": self.browser_arguments}  # fmt: skip
        (self.folder / "rig.json").write_text(json.dumps(description), encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._proxy.close()

    def add(self, url: str, answer: Answer | Responder) -> str:
        """Say this for `https://host/path` (any query string); returns the url."""
        parts = urlsplit(url)
        assert parts.hostname in self.hosts, f"{parts.hostname} is not a host of this rig"
        self._special[parts.hostname, parts.path] = answer
        return url

    def requests(self, host: str = "", path: str = "") -> list[Request]:
        """What arrived, by host and beginning of the path."""
        return [r for r in list(self.log) if r.host.endswith(host) and r.path.startswith(path)]

    def context(self, **options: Any) -> ScrapeContext:
        """The explicit injection: these hosts, this port, this authority, and loopback allowed."""
        return connect(self.folder / "rig.json", **options)

    @property
    def environment(self) -> dict[str, str]:
        """What an unmodified program needs to reach the rig, and nothing but the rig."""
        return {"HTTPS_PROXY": self.proxy, "HTTP_PROXY": self.proxy, "SSL_CERT_FILE": str(self.ca_file.resolve())}

    @property
    def browser_arguments(self) -> tuple[str, ...]:
        """Chromium's way here: each known host to the rig, every other name to nowhere."""
        rules = [f"MAP {host}:443 127.0.0.1:{self.port}" for host in self.hosts]
        return (
            f"--host-resolver-rules={', '.join([*rules, 'MAP * ~NOTFOUND'])}",
            f"--ignore-certificate-errors-spki-list={self.authority.spki}",
        )

    def answer(self, handler: Handler) -> None:
        parts = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        host = handler.host
        self.log.append(Request(host, parts.path, query, handler.headers.get("User-Agent", "")))
        if self.delay_s:
            time.sleep(self.delay_s)
        special = self._special.get((host, parts.path))
        if callable(special):
            special(handler)
        else:
            handler.say(special or self._usual(host, parts.path, query))

    def _usual(self, host: str, path: str, query: dict[str, str]) -> Answer:
        if host == "www.bing.com" and path.startswith("/images/"):
            return self._search(path, query)
        number = path.rsplit("/", 1)[-1].removesuffix(".jpg")
        if host in site.PICTURE_HOSTS and path.startswith("/picture/") and number.isdecimal():
            return Answer(picture(int(number)), headers={"Content-Type": "image/jpeg"})
        if host == "tse1.mm.bing.net":
            return Answer(_DOT, headers={"Content-Type": "image/gif"})
        return Answer(b"not here", 404)

    def _search(self, path: str, query: dict[str, str]) -> Answer:
        search = self.searches.get(query.get("q", ""), Search())
        qft = query.get("qft", "")
        if path == "/images/search":
            text = site.page_html(query.get("q", ""), search, qft)
        else:
            found = site.passing(search.page if "SFX" in query else search.endpoint, qft)
            first, count = int(query.get("first", "0")), int(query.get("count", site.PAGE))
            if "SFX" not in query:
                first = max(first - 1, 0)  # the endpoint counts from 1, and takes 0 for it
            text = site.anchors(found[first : first + min(count, site.PAGE)], search.compact)
        return Answer(text.encode(), headers={"Content-Type": "text/html; charset=utf-8"})

    def _serve_proxy(self) -> None:
        while True:
            try:
                client, _ = self._proxy.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with client:
            asked = b""
            while b"\r\n\r\n" not in asked:
                more = client.recv(4096)
                if not more:
                    return
                asked += more
            method, target = asked.split(b" ")[:2]
            host, _, port = target.decode("latin-1").rpartition(":")
            if method != b"CONNECT" or host not in self.hosts or port != "443":
                self.refused.append(target.decode("latin-1"))
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def connect(description: Path, **options: Any) -> ScrapeContext:
    """The context that reaches a rig of this or another process."""
    rig = json.loads(description.read_text("utf-8"))

    def resolve(host: str, port: int) -> list[tuple[str, int]]:
        if host not in rig["hosts"] or port != 443:
            raise socket.gaierror(f"{host}:{port} is not in the rig")
        return [("127.0.0.1", rig["port"])]

    return ScrapeContext(
        **{
            "allow": lambda address: address == ip_address("127.0.0.1"),
            "resolve": resolve,
            "ca_file": Path(rig["ca_file"]),
            "browser_arguments": tuple(rig["browser_arguments"]),
            **options,
        }
    )


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            sink.sendall(block)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


_DOT = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
