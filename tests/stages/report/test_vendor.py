"""Scripts of others: each has its licence and its hash beside it, and is what was looked at."""

import re

import pytest

from sdlora.flow.hashing import sha256_of
from sdlora.stages.report.page import FOLDER, VENDOR

PLACE = FOLDER / "vendor"
SUMS = dict(reversed(line.split("  ")) for line in (PLACE / "SHA256SUMS").read_text("utf-8").splitlines())


def test_every_file_has_its_hash() -> None:
    files = {path.name for path in PLACE.iterdir()} - {"README.md", "SHA256SUMS"}
    assert {name: sha256_of(PLACE / name) for name in files} == SUMS


@pytest.mark.parametrize("name", VENDOR)
def test_every_library_has_its_licence(name: str) -> None:
    text = " ".join((PLACE / f"{name}.LICENSE").read_text("utf-8").split())
    assert re.search(r"Copyright \(c\) \w+", text) and "this permission notice shall be included" in text
    told = (PLACE / "README.md").read_text("utf-8")
    assert f"`{name}.js`" in told and f"`{name}.LICENSE`" in told and re.search(rf"\| {name}@[\d.]+ \| `sha512-", told)
