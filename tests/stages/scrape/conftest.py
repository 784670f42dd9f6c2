"""Waits that politeness asks of a scrape are a tenth here: no test's server tires."""

import pytest

from sdlora.stages.scrape import bing, fetch

SHORTER = 10


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before another attempt, and between the pages of a search; what a server asks for is waited for."""
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", fetch.FIRST_WAIT_S / SHORTER)
    monkeypatch.setattr(bing, "PAGES_PER_S", bing.PAGES_PER_S * SHORTER)
