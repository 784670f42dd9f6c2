"""A host that wastes time, memory and disk, looks inside, or speaks to the terminal; all on 127.0.0.2."""

import ipaddress
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rig import pictures, zoo
from rig.zoo import Zoo

from hostile import attack
from hostile.hub import picture
from sdlora import choices, records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, Scrape
from sdlora.stages.scrape import bing
from sdlora.stages.scrape.engines.bing import Bing
from sdlora.stages.scrape.fetch import Fetcher, FetchError
from sdlora.stages.scrape.gather import gather
from sdlora.stages.scrape.source import is_public

QUICK = {"timeout_s": 0.5, "deadline_s": 2.0, "max_mib": 1.0, "host_rate_per_s": 1000.0, "retries": 2, "min_side_px": 8}


def gathered(folder: Path, server: Zoo, *urls: str, **limits: Any) -> dict[str, tuple[str, str]]:
    """Each URL's kind and reason after a run; a good picture at the end must have come, too."""
    last = server.add("/last.png", picture("blue"), host="last.example")
    before = choices.SOURCES["bing"]
    choices.SOURCES["bing"], zoo.RESULTS["x"] = "rig.zoo:find", [*urls, last]
    try:
        source = BingSource(kind="bing", query="x", limit=900)
        gather(Dataset(sources=(source,), trigger="x", scrape=Scrape(**{**QUICK, **limits})), folder, server.context())
    finally:
        choices.SOURCES["bing"] = before
    assert last in {row["url"] for row in records.read_jsonl(folder / "manifest.jsonl")}
    return {row["url"]: (row["kind"], row["reason"]) for row in records.read_jsonl(folder / "rejected.jsonl")}


def answering(name: str, **headers: str) -> Callable[[Path], str | None]:
    """A picture whose headers are odd: it is kept or rejected, and the run goes on."""

    def behave(visit: zoo.Visit) -> None:
        said = {"Content_Length": str(len(picture())), **headers}
        visit.head(int(said.pop("status", "429")), **said)
        visit.send(picture())

    def attempt(folder: Path) -> str | None:
        with Zoo() as server:
            url = server.add("/a.png", behave)
            began = time.monotonic()
            gathered(folder, server, url)
            took = time.monotonic() - began
            return f"it took {took:.1f} s" if took > 8 else None

    return attempt


HEADERS: dict[str, dict[str, str]] = {
    "Retry-After in the year 9999999": {"Retry_After": "Mon, 01 Jan 9999999 00:00:00 GMT"},
    "Retry-After in the year 99999999999": {"Retry_After": "Mon, 01 Jan 99999999999 00:00:00 GMT"},
    "Retry-After of a superscript": {"Retry_After": "\xb2"},
    "Retry-After of 5,000 digits": {"Retry_After": "9" * 5000},
    "Retry-After below zero": {"Retry_After": "-5"},
    "Retry-After of zero": {"Retry_After": "0"},
    "Content-Length of 5,000 digits": {"status": "200", "Content_Length": "9" * 5000},
    "Location of nonsense": {"status": "302", "Location": "http://[::1"},
    "Location of bytes that are no UTF-8": {"status": "302", "Location": "http://a.example/\xff\xfe"},
}
for _name, _headers in HEADERS.items():
    attack("network", _name)(answering(_name, **_headers))


@attack("network", "a host that asks for a minute, picture by picture")
def _pauses(folder: Path) -> str | None:
    with Zoo() as server:
        slow = lambda visit: visit.answer(b"", 429, Retry_After="1")  # noqa: E731
        urls = [server.add(f"/{number}", slow, host="slow.example") for number in range(60)]
        began = time.monotonic()
        gathered(folder, server, *urls, host_concurrency=2, concurrency=4)
        took = time.monotonic() - began
        return f"60 pictures of one host took {took:.0f} s" if took > 12 else None


@attack("network", "an hour's pause counts, and is the pausing host's alone")
def _wrong_host(folder: Path) -> str | None:
    with Zoo() as server:
        server.add("/busy", lambda visit: visit.answer(b"", 429, Retry_After="3600"), host="busy.example")
        urls = [server.add(f"/{n}", zoo.redirect("http://busy.example/busy"), host="fair.example") for n in range(5)]
        good = server.add("/good.png", picture("green"), host="fair.example")
        rejected = gathered(folder, server, *urls, good)
        if good in rejected:
            return f"the redirecting host was paused: {rejected[good]}"
        visits = server.paths.count("/busy")
        return f"the busy host was asked {visits} times" if visits > 5 else None


def unforeseen(error: Exception) -> Callable[[Path], str | None]:
    """Something breaks that nobody thought of."""

    def attempt(folder: Path) -> str | None:
        def breaks(host: str, port: int) -> list[tuple[str, int]]:
            if host == "odd.example":
                raise error
            return before(host, port)

        with Zoo() as server:
            context = server.context()
            before = context.resolve
            server.context = lambda **options: replace(context, resolve=breaks)  # type: ignore[method-assign]
            url = server.add("/a.png", picture(), host="odd.example")
            kind, reason = gathered(folder, server, url)[url]
            return None if type(error).__name__ in reason or kind == "address" else f"{kind}: {reason}"

    return attempt


for _error in (AttributeError("x"), RecursionError("x"), OverflowError("x"), KeyError("x")):
    attack("network", f"an unforeseen {type(_error).__name__}")(unforeseen(_error))


# -- bytes -----------------------------------------------------------------------------------------------------------
def _long_extension(visit: zoo.Visit) -> None:
    visit.head(Transfer_Encoding="chunked")
    visit.send(b"1;")
    while True:
        visit.send(b"x" * 65536)


def _many_extensions(visit: zoo.Visit) -> None:
    visit.head(Transfer_Encoding="chunked")
    while True:
        visit.send((b"1;" + b"x" * 60_000 + b"\r\nA\r\n") * 4)


def _trailers(visit: zoo.Visit) -> None:
    visit.head(Transfer_Encoding="chunked")
    visit.send(b"1\r\nA\r\n0\r\n")
    while True:
        visit.send(b"X-A: " + b"x" * 60_000 + b"\r\n")


def _interim(visit: zoo.Visit) -> None:
    while True:
        visit.send(b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 60_000 + b"\r\n\r\n")


for _behaviour in (_long_extension, _many_extensions, _trailers, _interim):

    @attack("network", f"endless{_behaviour.__name__.replace('_', ' ')}")
    def _endless(folder: Path, behaviour: zoo.Behaviour = _behaviour) -> str | None:
        sent = [0]

        def counted(visit: zoo.Visit) -> None:
            send = visit.send

            def count(content: bytes) -> None:
                send(content)
                sent[0] += len(content)

            visit.send = count  # type: ignore[method-assign]
            behaviour(visit)

        with Zoo() as server:
            limits = Scrape(max_mib=1.0, timeout_s=5.0, deadline_s=10.0, retries=0)
            fetcher = Fetcher(replace(server.context(), limits=limits), folder)
            try:
                fetcher.fetch(server.add("/a", counted))
            except FetchError as error:
                if sent[0] > 12 * 2**20:  # what lies in the system's buffers is sent as well
                    return f"{sent[0] / 2**20:.0f} MiB were taken with max_mib: 1 ({error})"
                return None
            return "it was taken for a picture"


@attack("network", "rejected pictures that fill the disk")
def _fill(folder: Path) -> str | None:
    """200 pictures that are all rejected as small: raw/ may not hold them meanwhile."""
    most = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], sum(1 for _ in (folder / "raw").glob("*")) if (folder / "raw").exists() else 0)
            time.sleep(0.01)

    with Zoo() as server:
        urls = [server.add(f"/{n}.png", pictures.picture(n, 32)) for n in range(200)]
        big = server.add("/big.png", pictures.picture(1, 256))
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            last = server.add("/last.png", picture("blue"), host="last.example")
            before = choices.SOURCES["bing"]
            choices.SOURCES["bing"], zoo.RESULTS["x"] = "rig.zoo:find", [*urls, last, big]
            try:
                source = BingSource(kind="bing", query="x", limit=900)
                limits = Scrape(**{**QUICK, "min_side_px": 128, "concurrency": 8})
                gather(Dataset(sources=(source,), trigger="x", scrape=limits), folder, server.context())
            finally:
                choices.SOURCES["bing"] = before
        finally:
            done.set()
            watcher.join()
    return f"raw/ held {most[0]} files for a set of 1" if most[0] > 60 else None


# -- addresses -------------------------------------------------------------------------------------------------------
NOT_PUBLIC = (
    "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b:1::a00:1", "fec0::1", "fec0:0:0:ffff::1",
    "192.0.0.192", "192.0.0.9", "192.0.0.10", "168.63.129.16", "192.88.99.1", "2001::1", "2001:0:7f00:1::1",
    "2001:2::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "4000::1", "5f00::1",
    "100::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "ff0e::1", "::", "::1", "0.0.0.0", "100.100.100.200",
    "169.254.169.254", "240.0.0.1", "255.255.255.255", "::ffff:168.63.129.16", "::ffff:192.0.0.192",
    "64:ff9b::a9fe:a9fe", "64:ff9b::a83f:8110",
)  # fmt: skip
for _address in NOT_PUBLIC:

    @attack("network", f"the address {_address}")
    def _reach(folder: Path, address: str = _address) -> str | None:
        return "it counts as public" if is_public(ipaddress.ip_address(address)) else None


# -- what reaches the terminal ---------------------------------------------------------------------------------------
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b2K\u202e"


def _steering(text: str) -> str | None:
    left = sorted({hex(ord(letter)) for letter in text if letter not in "\n\t" and not letter.isprintable()})
    return f"{left} in {text[:80]!r}" if left else None


REASONS: dict[str, dict[str, str]] = {
    "X-Robots-Tag": {"X_Robots_Tag": "noai\x1b[2J"},
    "Content-Encoding": {"Content_Encoding": "\x1b[2Jgzip\x9b"},
    "Location": {"Location": "ftp\x1b[2J://\x9bx"},
}
for _name, _headers in REASONS.items():

    @attack("network", f"a terminal's escapes in {_name}")
    def _reason(folder: Path, headers: dict[str, str] = _headers) -> str | None:
        with Zoo() as server:
            status = 302 if "Location" in headers else 200
            url = server.add("/a.png", lambda visit: visit.answer(picture(), status, **headers))
            rejected = gathered(folder, server, url)
            return _steering(rejected[url][1]) if url in rejected else None


@attack("network", "a terminal's escapes in a search result")
def _result(folder: Path) -> str | None:
    text = json.dumps({"murl": "http://a.example/x" + ESCAPES, "purl": ESCAPES, "t": "a" + ESCAPES})
    hit = Bing.read(text)
    return None if hit is None else _steering(f"{hit.url} {hit.page_url} {hit.title}")


@attack("network", "a search result nested 5,000 deep")
def _deep(folder: Path) -> str | None:
    deep = '{"murl": ' + "[" * 5000 + "]" * 5000 + "}"
    page = (
        f"<a class='iusc' m='{deep}'></a>"
        + '<a class="iusc" m="{&quot;murl&quot;:&quot;http://a.example/1&quot;}"></a>'
    )
    return None if [hit.url for hit in bing.hits_of(page)] == ["http://a.example/1"] else "the good result was lost"
