"""Bing's image search: result page, filters and the JSON in `a.iusc`."""

from typing import ClassVar
from urllib.parse import urlencode

from sdlora.config.sources import Search
from sdlora.stages.scrape.engines import Hit, read_json, words

LICENCES = {
    "creative_commons": "licenseType-Any",
    "public_domain": "license-L1",
    "share": "license-L2_L3_L4_L5_L6_L7",
    "share_commercially": "license-L2_L3_L4",
    "modify": "license-L2_L3_L5_L6",
    "modify_commercially": "license-L2_L3",
}
SIZES = {
    "small": "imagesize-small",
    "medium": "imagesize-medium",
    "large": "imagesize-large",
    "extra_large": "imagesize-wallpaper",
}
TYPES = {
    "photo": "photo-photo",
    "clipart": "photo-clipart",
    "line_drawing": "photo-linedrawing",
    "transparent": "photo-transparent",
    "animated": "photo-animatedgif",
}


class Bing:
    """Bing, worked as a person would: scroll, then press "See more images"."""

    hosts: ClassVar[tuple[str, ...]] = ("bing.com", "*.bing.com", "*.bing.net")
    results: ClassVar[str] = "a.iusc"
    attribute: ClassVar[str] = "m"
    more: ClassVar[str] = "a.btn_seemore"
    dismiss: ClassVar[str] = "#bnp_btn_reject"

    @staticmethod
    def address(search: Search) -> str:
        """The result page of a search, filters included."""
        asked = {"q": search.query, "qft": filters(search), "adlt": adult(search), "first": "1"}
        return "https://www.bing.com/images/search?" + urlencode(asked)

    @staticmethod
    def read(attribute: str) -> Hit | None:
        """The picture's and its page's address and title, from the JSON of a result."""
        value = read_json(attribute)
        url = words(value.get("murl"))
        return Hit(url, words(value.get("purl")), words(value.get("t"))) if url else None


def filters(search: Search) -> str:
    """Bing's `qft` parameter: every filter that is set."""
    chosen = (
        LICENCES[search.licence] if search.licence else None,
        SIZES[search.size] if search.size else None,
        TYPES[search.type] if search.type else None,
    )
    return "".join(f"+filterui:{name}" for name in chosen if name)


def adult(search: Search) -> str:
    """Bing's `adlt` parameter."""
    return "strict" if search.adult_filter else "off"
