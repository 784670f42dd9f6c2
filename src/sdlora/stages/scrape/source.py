"""The contract between sources, which find candidates, and `gather`, which fetches and judges them."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from sdlora.config.sources import Scrape

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
PUBLIC = ipaddress.IPv6Network("2000::/3")  # all that has been given to the public internet (RFC 4291)
# Parts of it that are no place: protocols' own (Teredo, ORCHID, benchmarks), documentation, 6to4.
NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# Public by their numbers, but answered inside a cloud or a network: its metadata, its own services, relays.
INSIDE = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "168.63.129.16/32", "192.88.99.0/24")))


@dataclass(frozen=True)
class Candidate:
    """One picture that a source found: either a URL to fetch or bytes that are already here.

    Exactly one of `url` and `content` is set. Candidates with `content` were chosen by somebody (a folder, a
    captioned dataset): they must be readable and new, but the limits on what a search may bring do not apply.
    """

    engine: str  # folder, bing, selenium, hub
    rank: int  # place in the source's own order, from 0; the result depends on it, not on timing
    url: str | None = None
    content: bytes | None = field(default=None, repr=False)
    name: str = ""  # path or key inside the source; a URL is its own name
    query: str | None = None
    page_url: str | None = None  # the page the picture stands on
    title: str | None = None  # what the search calls it; never a caption
    caption: str | None = None  # used instead of BLIP's
    licence: str | None = None
    revision: str | None = None  # what pins a hub dataset
    problem: str | None = None  # why it cannot be used, where its source knows; content is then empty

    def __post_init__(self) -> None:
        if (self.url is None) == (self.content is None):
            raise ValueError("a candidate has either a url or content")

    def without_content(self) -> "Candidate":
        """The same once its bytes are in a file."""
        return replace(self, content=b"") if self.content else self

    @property
    def label(self) -> str:
        """What to call it in a row or an error."""
        return self.name or self.url or f"{self.engine} {self.rank}"


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: not loopback, private, link-local, multicast or reserved.

    Of IPv6 only 2000::/3 is, and what carries an IPv4 address for a system's own translator (mapped, NAT64), which is
    judged by the address it carries.
    """
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        carried = address.ipv4_mapped or nat64
        if carried:
            return is_public(carried)
        if address not in PUBLIC or any(address in part for part in NOT_PUBLIC):
            return False
    elif any(address in part for part in INSIDE):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve_by_system(host: str, port: int) -> list[tuple[str, int]]:
    """The (address, port) pairs of a host name, as the system's resolver gives them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))


@dataclass(frozen=True)
class ScrapeContext:
    """How the outside is reached. The defaults are production's; tests inject the rest, and nothing else can.

    Neither the environment nor `params.yaml` reaches these fields.
    """

    limits: Scrape = field(default_factory=Scrape)
    allow: Callable[[Address], bool] = is_public  # whether the fetcher may connect to an address
    resolve: Callable[[str, int], list[tuple[str, int]]] = resolve_by_system  # (host, port) -> (address, port) pairs
    ca_file: Path | None = None  # trust this authority instead of the system's
    browser_arguments: tuple[str, ...] = ()  # more command-line arguments of Chromium


class Source(Protocol):
    """Entry of choices.SOURCES, a generator: finds candidates lazily, best first, and ends when there are no more.

    It must not stop at the source's `limit`: that counts accepted pictures, so `gather` stops asking and
    closes the generator: a browser or a file is closed in its `finally`. Finding again
    after an interruption must give the same candidates in the same order as far as the source can.
    """

    def __call__(self, source: Any, context: ScrapeContext, /) -> Iterator[Candidate]: ...
