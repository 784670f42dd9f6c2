"""Image searches as a browser sees them: one small file an engine, one line in choices.ENGINES."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from sdlora import records
from sdlora.config.sources import Search
from sdlora.errors import printable

MAX_TEXT = 10_000  # characters


@dataclass(frozen=True)
class Hit:
    """One result of a search."""

    url: str
    page_url: str | None = None
    title: str | None = None


class Engine(Protocol):
    """Where a search lives, how its page is worked and how a result is written."""

    hosts: ClassVar[tuple[str, ...]]  # names its page needs; the browser cannot reach any other
    results: ClassVar[str]  # CSS selector of a result
    attribute: ClassVar[str]  # the result's attribute that holds its JSON
    more: ClassVar[str]  # CSS selector of the button that brings more
    dismiss: ClassVar[str]  # CSS selector of the button that declines cookies

    @staticmethod
    def address(search: Search) -> str:
        """The result page of a search."""
        ...

    @staticmethod
    def read(attribute: str) -> Hit | None:
        """The result that an attribute's text describes; None if it is none."""
        ...


def read_json(text: str) -> dict[str, Any]:
    """An attribute's JSON object; anything else is an empty one."""
    try:
        value = records.parse_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def words(value: Any) -> str | None:
    """A stranger's text, fit for a manifest: nothing that steers a terminal, no half characters, of bounded length."""
    if not isinstance(value, str):
        return None
    whole = value.encode("utf-8", "replace").decode("utf-8")
    return printable("".join(letter for letter in whole if letter >= " ")[:MAX_TEXT]).strip() or None


def licence_of(search: Search) -> str | None:
    """What a licence filter says about every result; the search may be wrong."""
    return f"{search.licence}, says the search" if search.licence else None
