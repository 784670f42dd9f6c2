"""The one safe fetcher against a server that breaks every rule."""

import hashlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from rig import zoo
from rig.server import Rig
from rig.site import PICTURE_HOSTS
from rig.zoo import Zoo

from sdlora.config.sources import Scrape
from sdlora.errors import DataError
from sdlora.stages.scrape import fetch as fetching
from sdlora.stages.scrape.fetch import Fetched, Fetcher, FetchError, PartFile, checked_url, opt_outs, retry_after_s
from sdlora.stages.scrape.source import ScrapeContext, is_public

CONTENT = b"\x89PNG" + bytes(range(256)) * 1000
QUICK = {"timeout_s": 0.5, "deadline_s": 3.0, "host_rate_per_s": 10_000.0}


@pytest.fixture
def server() -> Iterator[Zoo]:
    with Zoo() as running:
        yield running


@pytest.fixture
def fetch(server: Zoo, tmp_path: Path) -> Callable[..., Fetched]:
    def run(url: str, context: ScrapeContext | None = None, **limits: Any) -> Fetched:
        chosen = replace(context or server.context(), limits=Scrape(**{**QUICK, **limits}))
        return Fetcher(chosen, tmp_path / "raw").fetch(url)

    return run


def refused(run: Callable[[], object]) -> FetchError:
    with pytest.raises(FetchError) as caught:
        run()
    return caught.value


def test_a_picture_arrives_whole_under_no_name_of_the_server(server: Zoo, fetch: Any, tmp_path: Path) -> None:
    url = server.add("/a.png", CONTENT, Content_Disposition='attachment; filename="../../evil.png"')
    fetched = fetch(f"{url}?size=1#part")
    assert fetched.part.read_bytes() == CONTENT
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert fetched.part.parent == tmp_path / "raw"
    assert fetched.part.suffix == ".part"
    assert fetched.final_url == f"{url}?size=1"
    assert server.hosts == ["zoo.example"]


def test_chunked_bodies_and_bodies_without_length(server: Zoo, fetch: Any) -> None:
    def chunked(visit: zoo.Visit) -> None:
        visit.head(Transfer_Encoding="chunked")
        for start in range(0, len(CONTENT), 7000):
            piece = CONTENT[start : start + 7000]
            visit.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        visit.send(b"0\r\n\r\n")

    def until_the_end(visit: zoo.Visit) -> None:
        visit.head(Connection="close")
        visit.send(CONTENT)

    for name, behaviour in (("/chunked", chunked), ("/end", until_the_end)):
        assert fetch(server.add(name, behaviour)).part.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "data:image/png;base64,iVBORw0KGgo=", "ftp://zoo.example/a.png", "gopher://zoo.example/",
     "javascript:alert(1)", "//zoo.example/a.png", "/etc/passwd", "", "http://", "http:///a.png", "http://[::1",
     "http://zoo.example:99999/", "http://" + "a" * 9000],
)  # fmt: skip
def test_only_http_urls_are_followed(url: str, fetch: Any, server: Zoo) -> None:
    assert refused(lambda: fetch(url)).kind == "url"
    assert not server.log


def test_odd_characters_in_a_url_are_encoded_and_credentials_dropped() -> None:
    assert checked_url("http://zoo.example/a b/ü.png?q=ä\n").url == "http://zoo.example/a%20b/%C3%BC.png?q=%C3%A4"
    assert checked_url("http://user:word@zoo.example/a").url == "http://zoo.example/a"
    assert checked_url("http://zoo.example/../../etc/passwd").url == "http://zoo.example/etc/passwd"
    assert checked_url("HTTPS://BÜCHER.example").url == "https://xn--bcher-kva.example/"


PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


# Every spelling of an address inside: dotted, decimal, octal, hexadecimal, short, IPv6, IPv4 in IPv6.
INSIDE = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "2130706433", "0177.0.0.1", "0x7f000001", "127.1", "0",
          "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[fd00::1]"]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
@pytest.mark.parametrize("by_redirect", [False, True], ids=["direct", "redirect"])
def test_hosts_inside_are_refused(host: str, by_redirect: bool, server: Zoo, fetch: Any) -> None:
    with Zoo("127.0.0.1") as inside:
        url = f"http://{host}:{inside.port}/secret.png"
        if by_redirect:
            url = server.add("/away", zoo.redirect(url, 302))
        error = refused(lambda: fetch(url))
        assert error.kind == "address"
        assert "not a public address" in str(error)
        assert not inside.log


def test_a_name_that_resolves_differently_the_second_time(server: Zoo, fetch: Any) -> None:
    """The connection goes to the address that was checked: the name is asked for once."""
    asked = []

    def rebinding(host: str, port: int) -> list[tuple[str, int]]:
        asked.append(host)
        return [(zoo.ADDRESS if len(asked) == 1 else "127.0.0.1", server.port)]

    url = server.add("/a.png", CONTENT)
    assert fetch(url, replace(server.context(), resolve=rebinding)).size_bytes == len(CONTENT)
    assert asked == ["zoo.example"]
    assert "127.0.0.1" in str(refused(lambda: fetch(url, replace(server.context(), resolve=rebinding))))


def test_a_redirect_to_the_same_name_is_checked_again(server: Zoo, fetch: Any) -> None:
    answers = iter([zoo.ADDRESS, "10.0.0.7"])
    context = replace(server.context(), resolve=lambda host, port: [(next(answers), server.port)])
    server.add("/b.png", CONTENT)
    error = refused(lambda: fetch(server.add("/a.png", zoo.redirect("/b.png")), context))
    assert "10.0.0.7" in str(error)
    assert server.paths == ["/a.png"]


def test_one_private_address_among_public_ones_is_enough(server: Zoo, fetch: Any) -> None:
    both = [(zoo.ADDRESS, server.port), ("192.168.0.1", server.port)]
    url = server.add("/a.png", CONTENT)
    assert refused(lambda: fetch(url, replace(server.context(), resolve=lambda host, port: both))).kind == "address"
    assert not server.log


def test_production_allows_no_loopback_whatever_the_environment_says(
    server: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{zoo.ADDRESS}:{server.port}")
    fetcher = Fetcher(ScrapeContext(), tmp_path)
    assert refused(lambda: fetcher.fetch(f"http://{zoo.ADDRESS}:{server.port}/a.png")).kind == "address"
    assert not server.log


def test_redirects_are_followed_but_not_for_ever(server: Zoo, fetch: Any) -> None:
    server.add("/end", CONTENT)
    for number in range(5):
        server.add(f"/{number}", zoo.redirect("/end" if number == 4 else f"http://other.example/{number + 1}", 307))
    assert fetch("http://zoo.example/0").final_url == "http://other.example/end"
    for loop in ("/loop", "/one"):
        server.add(loop, zoo.redirect("/one" if loop == "/loop" else "/loop"))
    error = refused(lambda: fetch("http://zoo.example/loop"))
    assert error.kind == "redirects"
    assert len([path for path in server.paths if path in ("/loop", "/one")]) == 6


@pytest.mark.parametrize("to", ["file:///etc/passwd", "data:image/png;base64,AA", "ftp://zoo.example/a"])
def test_redirects_keep_to_http(to: str, server: Zoo, fetch: Any) -> None:
    assert refused(lambda: fetch(server.add("/a", zoo.redirect(to)))).kind == "url"


@pytest.mark.parametrize("behaviour", [zoo.endless, zoo.endless_chunked])
def test_an_endless_body_ends_at_the_byte_cap(
    behaviour: zoo.Behaviour, server: Zoo, fetch: Any, tmp_path: Path
) -> None:
    error = refused(lambda: fetch(server.add("/a", behaviour), max_mib=2.0))
    assert (error.kind, str(error)) == ("size", "more than 2 MiB")
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_promise_of_too_many_bytes_is_not_waited_for(server: Zoo, fetch: Any) -> None:
    def behave(visit: zoo.Visit) -> None:
        visit.head(Content_Length=str(10**12))
        time.sleep(60)

    assert refused(lambda: fetch(server.add("/a", behave))).kind == "size"


@pytest.mark.parametrize("behaviour", [zoo.drip, zoo.drip_headers])
def test_a_slow_drip_ends_at_the_deadline(behaviour: zoo.Behaviour, server: Zoo, fetch: Any, tmp_path: Path) -> None:
    error = refused(lambda: fetch(server.add("/a", behaviour), deadline_s=0.6))
    assert (error.kind, str(error)) == ("time", "not here after 0.6 s")
    assert server.paths == ["/a"]
    assert not any((tmp_path / "raw").glob("*"))


def test_a_drip_without_length_is_not_taken_for_a_whole_file(server: Zoo, fetch: Any) -> None:
    def behave(visit: zoo.Visit) -> None:
        visit.head(Connection="close")
        while True:
            visit.send(b"\x89")
            time.sleep(0.05)

    assert refused(lambda: fetch(server.add("/a", behave), deadline_s=0.6)).kind == "time"


def test_silence_is_tried_again_and_then_given_up(server: Zoo, fetch: Any) -> None:
    error = refused(lambda: fetch(server.add("/a", zoo.silent), timeout_s=0.2, deadline_s=30.0, retries=1))
    assert (error.kind, str(error)) == ("time", "nothing came for 0.2 s")
    assert server.paths == ["/a", "/a"]


def test_a_body_cut_short_is_tried_again(server: Zoo, fetch: Any, tmp_path: Path) -> None:
    error = refused(lambda: fetch(server.add("/a", zoo.cut_short(CONTENT)), retries=1))
    assert error.kind == "connection"
    assert server.paths == ["/a", "/a"]
    assert not any((tmp_path / "raw").glob("*"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206])
def test_statuses_that_are_final(status: int, server: Zoo, fetch: Any) -> None:
    error = refused(lambda: fetch(server.add("/a", lambda visit: visit.answer(b"no", status))))
    assert str(error) == f"HTTP status {status}"
    assert len(server.log) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_twice_bad_then_good(status: int, server: Zoo, fetch: Any) -> None:
    url = server.add("/a", zoo.after_failures(2, CONTENT, status))
    assert fetch(url, deadline_s=20.0).size_bytes == len(CONTENT)
    assert len(server.log) == 3


def test_always_bad_ends(server: Zoo, fetch: Any) -> None:
    error = refused(lambda: fetch(server.add("/a", lambda visit: visit.answer(b"no", 503)), retries=2, deadline_s=20.0))
    assert (error.kind, str(error), error.transient) == ("status", "HTTP status 503", True)
    first, second, third = (moment for moment, _ in server.log)
    assert second - first >= 0.5 * fetching.FIRST_WAIT_S and third - second >= 2 * 0.5 * fetching.FIRST_WAIT_S


def test_retry_after_is_waited_for(server: Zoo, fetch: Any) -> None:
    fetch(server.add("/a", zoo.after_failures(1, CONTENT, 429, Retry_After="1")), deadline_s=20.0)
    (first, _), (second, _) = server.log
    assert second - first >= 1.0 > 10 * fetching.FIRST_WAIT_S


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(server: Zoo, fetch: Any) -> None:
    error = refused(lambda: fetch(server.add("/a", zoo.after_failures(9, CONTENT, 429, Retry_After="3600"))))
    assert "it asks to wait 3600 s" in str(error)
    assert len(server.log) == 1


def test_retry_after_in_every_form() -> None:
    assert retry_after_s("120") == 120
    assert 50 < (retry_after_s(formatdate(time.time() + 60, usegmt=True)) or 0) < 70
    assert retry_after_s(formatdate(time.time() - 60, usegmt=True)) == 0
    assert retry_after_s(None) is retry_after_s("soon") is None


@pytest.mark.parametrize("word", ["noai", "noimageai", "noindex", "NoImageIndex", "none", "all, noai", "sdlora: noai"])
def test_opt_outs_are_honoured(word: str, server: Zoo, fetch: Any) -> None:
    url = server.add("/a", CONTENT, X_Robots_Tag=word)
    error = refused(lambda: fetch(url))
    assert error.kind == "opt-out"
    assert str(error).startswith("X-Robots-Tag: no")
    assert fetch(url, honour_opt_out=False).size_bytes == len(CONTENT)


def test_what_is_no_opt_out() -> None:
    assert opt_outs(["all", "nofollow, noarchive", "googlebot: noindex, noai", "max-image-preview: none"]) == []
    assert opt_outs(["googlebot: noindex", "noai"]) == ["noai"]
    assert opt_outs(["unavailable_after: 25 Jun 2030 15:00:00 PST"]) == []


def test_a_packed_body_is_refused(server: Zoo, fetch: Any) -> None:
    url = server.add("/a", CONTENT, Content_Encoding="gzip")
    assert "gzip" in str(refused(lambda: fetch(url)))


def test_a_host_gets_so_many_requests_at_once_and_a_second(server: Zoo, tmp_path: Path) -> None:
    server.delay_s = 0.05
    limits = Scrape(host_concurrency=3, concurrency=8, host_rate_per_s=50.0)
    fetcher = Fetcher(replace(server.context(), limits=limits), tmp_path)
    urls = [server.add(f"/{number}", CONTENT) for number in range(24)]
    threads = [threading.Thread(target=fetcher.fetch, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.log) == 24
    assert server.most_open <= 3
    times = sorted(moment for moment, _ in server.log)
    assert times[-1] - times[0] >= 23 / 50 - 0.1  # a request may be on its way for a moment


def test_stopping_ends_what_is_under_way(server: Zoo, tmp_path: Path) -> None:
    fetcher = Fetcher(replace(server.context(), limits=Scrape(deadline_s=600.0)), tmp_path)
    caught: list[FetchError] = []
    thread = threading.Thread(target=lambda: caught.append(refused(lambda: fetcher.fetch(server.add("/a", zoo.drip)))))
    thread.start()
    while not server.log:
        time.sleep(0.01)
    fetcher.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert len(caught) == 1


def test_a_full_disk_is_told_as_such() -> None:
    file = PartFile(Path("/dev/full"))
    file.write(CONTENT[:100])
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        file.close()


def test_a_disk_error_is_not_taken_for_the_network_s(server: Zoo, tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file where a folder should be")
    fetcher = Fetcher(server.context(), tmp_path / "raw")
    with pytest.raises(DataError, match="cannot be written") as caught:
        fetcher.fetch(server.add("/a", CONTENT))
    assert not isinstance(caught.value, FetchError)


def test_a_name_without_address_and_a_port_without_server(server: Zoo, fetch: Any) -> None:
    assert refused(lambda: fetch("http://nowhere.invalid/a.png")).kind == "address"
    with socket.create_server((zoo.ADDRESS, 0)) as closed:
        port = closed.getsockname()[1]
    context = replace(server.context(), resolve=lambda host, asked: [(zoo.ADDRESS, port)])
    error = refused(lambda: fetch("http://zoo.example/a.png", context, retries=0))
    assert (error.kind, error.transient) == ("connection", True)


def test_tls_verifies_the_name_although_the_address_was_chosen(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        good = Fetcher(rig.context(), tmp_path / "raw")
        assert good.fetch(f"https://{PICTURE_HOSTS[0]}/picture/1.jpg").size_bytes > 0
        anywhere = replace(rig.context(), resolve=lambda host, port: [("127.0.0.1", rig.port)])
        error = refused(lambda: Fetcher(anywhere, tmp_path / "raw").fetch("https://stranger.example/picture/1.jpg"))
        assert str(error).startswith("TLS:")
        unknown = replace(rig.context(), ca_file=None)
        error = refused(lambda: Fetcher(unknown, tmp_path / "raw").fetch(f"https://{PICTURE_HOSTS[0]}/picture/1.jpg"))
        assert str(error).startswith("TLS:")
