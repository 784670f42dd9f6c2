"""Bing through the real bing-image-downloader: its search, our downloader.

The package's `Bing.run` asks the search and walks through its pages. Here it runs unchanged, as its own code bound to
two of our names: `urllib`, so that pages come through the safe fetcher (bounded in bytes and time, tried again, errors
told), and `print`, so that a library does not talk. Links are yielded instead of saved. What the package does around
`run` (folders made and deleted from the query, `sys.exit`) is never called.

Measured defects of version 1.1.3 that end here: it saves `file:` links, follows redirects anywhere, reads without
bound, asks for each page at `first` + 1 so that a page brings one new picture, needs JSON without spaces and leaves
JSON's escapes in links, and executes a `bing.py` of the current directory when it is imported.
"""

import html
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

from sdlora.config.sources import BingSource
from sdlora.errors import DataError, MissingError
from sdlora.stages.scrape.connect import FetchError
from sdlora.stages.scrape.engines import Hit, licence_of
from sdlora.stages.scrape.engines import bing as engine
from sdlora.stages.scrape.fetch import Fetcher
from sdlora.stages.scrape.source import Candidate, ScrapeContext

PACKAGE = "bing_image_downloader"
PAGE = 35  # results asked for at once: what the search gives
MAX_PAGES = 60
PAGE_MIB = 8.0
PAGES_PER_S = 1.0


def find(source: BingSource, context: ScrapeContext) -> Iterator[Candidate]:
    """What Bing finds, in its order, until a page brings nothing new.

    Raises:
        DataError: If the search cannot be reached.
        MissingError: If the package is not installed.
    """
    rank = 0
    with tempfile.TemporaryDirectory() as folder:
        pages = _Pages(context, Path(folder))
        search = _searcher(source, pages)
        for number in range(MAX_PAGES):
            try:
                hits = _next_page(search, pages)
            except FetchError as error:
                if not rank:
                    raise DataError(f"Bing's image search could not be asked for {source.query!r}: {error}") from None
                print(f"bing: page {number + 1} did not come, going on with {rank} results: {error}", file=sys.stderr)
                return
            if not hits:
                if not rank:
                    print(f"bing: no result for {source.query!r}", file=sys.stderr)
                return
            for hit in hits:
                yield Candidate(
                    engine="bing", rank=rank, url=hit.url, query=source.query, page_url=hit.page_url,
                    title=hit.title, licence=licence_of(source),
                )  # fmt: skip
                rank += 1


def _next_page(search: Any, pages: "_Pages") -> list[Hit]:
    """Run the package's search for one page; the results that are new."""
    search.links, search.download_count = [], 0
    search.run()
    return [pages.hits.get(link) or Hit(link) for link in search.links]


def _searcher(source: BingSource, pages: "_Pages") -> Any:
    """The package's own search object, which hands out links."""
    package = _package()

    class Search(package):  # type: ignore[misc, valid-type]
        """Collects links; `first` counts the results so far, as the search wants it."""

        links: list[str]
        run = _with_names(package.run, urllib=pages.urllib, print=lambda *words: None)

        def download_image(self, link: str) -> None:
            self.links.append(link)
            self.download_count += 1

        def get_filter(self, shorthand: str) -> str:
            return shorthand

        @property
        def page_counter(self) -> int:
            return len(self.seen) + 1

        @page_counter.setter
        def page_counter(self, value: int) -> None:
            if value:  # `run` has read a page: it has what it came for
                self.download_count = self.limit

    limits = pages.context.limits
    return Search(
        query=source.query, limit=PAGE, output_dir=None, adult=engine.adult(source), timeout=int(limits.timeout_s) or 1,
        filter=engine.filters(source), verbose=False,
    )  # fmt: skip


def _with_names(function: FunctionType, **names: Any) -> FunctionType:
    """The same code, looking up some of its global names here."""
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__)


@cache
def _package() -> type[Any]:
    """The package's class, loaded from its own file.

    The package's `__init__` would import any top-level module called `bing`, of the current directory for one.

    Raises:
        MissingError: If the package is not installed.
    """
    found = find_spec(PACKAGE)
    folder = next(iter(found.submodule_search_locations or ()), None) if found else None
    spec = spec_from_file_location(f"{PACKAGE}.bing", Path(folder) / "bing.py") if folder else None
    if spec is None or spec.loader is None:
        raise MissingError("bing-image-downloader is not installed; say: pip install bing-image-downloader")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found_class: type[Any] = module.Bing
    return found_class


class _Pages:
    """What the package takes for `urllib`: pages through the safe fetcher, in the spelling that it reads."""

    def __init__(self, context: ScrapeContext, folder: Path) -> None:
        calm = context.limits.model_copy(
            update={"max_mib": PAGE_MIB, "host_rate_per_s": PAGES_PER_S, "honour_opt_out": False}
        )  # the opt-out speaks about pictures; pages are only read for their links
        self.context = replace(context, limits=calm)
        self.hits: dict[str, Hit] = {}
        self._folder = folder
        self._fetcher: Fetcher | None = None
        request = SimpleNamespace(Request=_Request, urlopen=self._open)
        self.urllib = SimpleNamespace(parse=urllib.parse, request=request)

    def _open(self, request: "_Request", timeout: float) -> SimpleNamespace:
        # one fetcher for all pages: it keeps the pace
        self._fetcher = self._fetcher or Fetcher(self.context, self._folder, request.headers)
        fetched = self._fetcher.fetch(request.url)
        text = fetched.part.read_text("utf-8", errors="replace")
        fetched.part.unlink()
        hits = {_spelling(hit.url): hit for hit in hits_of(text)}
        self.hits |= hits
        links = [f"murl&quot;:&quot;{html.escape(link)}&quot;" for link in hits]
        return SimpleNamespace(read=lambda: "\n".join(links).encode())


class _Request:
    def __init__(self, url: str, data: None, headers: Mapping[str, str]) -> None:
        self.url, self.headers = url, headers


def _spelling(url: str) -> str:
    """A URL as the package hands it on: it cuts links at a quote and replaces spaces."""
    return url.replace(" ", "%20").replace('"', "%22")


def hits_of(page: str) -> list[Hit]:
    """The results on a page, in order."""
    reader = _Reader()
    reader.feed(page)
    hits = (engine.Bing.read(text) for text in reader.found)
    return [hit for hit in hits if hit]


class _Reader(HTMLParser):
    """Collects the attribute of every result."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted_tag, _, wanted_class = engine.Bing.results.partition(".")
        values = dict(attrs)
        if tag == wanted_tag and wanted_class in (values.get("class") or "").split():
            self.found.append(values.get(engine.Bing.attribute) or "")
