"""What strangers write cannot become a part of the page."""

import json
from html.parser import HTMLParser

from sdlora.stages.report.page import _page

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.data: str | None = None
        self._reading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self._reading = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        if self._reading:
            self.data, self._reading = data, False


def tags(title: str, value: str) -> Tags:
    parser = Tags()
    parser.feed(_page(title, {"caption": value}))
    return parser


def test_a_hostile_caption_stays_text() -> None:
    plain, hostile = tags("v8", "a face"), tags(HOSTILE, HOSTILE)
    assert hostile.found == plain.found
    assert hostile.data is not None and json.loads(hostile.data) == {"caption": HOSTILE}
