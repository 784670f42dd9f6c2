"""What strangers write cannot become a part of the page; and what it links to."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdlora import records
from sdlora.stages.report.page import _page, read_part, write_comparison, write_index
from sdlora.stages.sample.parts import FOLDERS, INDEX

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


def test_curves_stand_out_from_what_lies_behind_them() -> None:
    """At 3:1 in either scheme, as WCAG 2.2 asks of graphics (1.4.11)."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", scheme))
        for scheme in re.findall(r":root \{(.*?)\}", read_part("templates/page.css"), re.DOTALL)
    )
    for scheme in (light, dark):
        curves = [colour for name, colour in scheme.items() if name.startswith("curve-")]
        assert len({*curves}) == 12
        for colour in (*curves, scheme["bad"]):
            assert contrast(colour, scheme["panel"]) >= 3, colour


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' relative luminances, the lighter one's first."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Of sRGB, 0 to 1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_hostile_caption_stays_text() -> None:
    plain, hostile = tags("v8", "a face"), tags(HOSTILE, HOSTILE)
    assert hostile.found == plain.found
    assert hostile.data is not None and json.loads(hostile.data) == {"caption": HOSTILE}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two measured versions without a picture, of which one has a page."""
    folder, part = tmp_path / "results", {"references": [], "figures": {}}
    best = {"best_step": 2, "resolved": False, "higher_is_better": {}, "choose_by": "ssim", "references": []}
    for name in ("a", "b"):
        for samples in FOLDERS.values():
            records.write_jsonl(folder / name / samples / INDEX, [])
        records.write_json(folder / name / "best.json", {**best, "validation": part, "test": None})
        for table in ("metrics.csv", "train_log.csv"):
            records.write_csv(folder / name / table, ["step"], [])
    records.write_text(folder / "a/report/index.html", "")
    for file in ("manifest", "rejected", "pad/captions", "pad/fit"):
        records.write_jsonl(tmp_path / f"{file}.jsonl", [])
    return folder


def test_a_page_links_to_pages_that_are_there(results: Path) -> None:
    """Those of all versions are made before the page over them; a comparison makes none."""
    table, sets = results / "compare/a-vs-b.csv", dict.fromkeys("ab", results.parent / "pad")
    records.write_csv(table, ["metric"], [])
    compared = write_comparison(table, {"a": {}, "b": {}}, results, sets, sets)
    over_all, _ = write_index({"a": {}, "b": {}}, results, results / "report", sets, sets)
    for page, wanted in ((compared, ["a"]), (over_all, ["a", "b"])):
        found = Tags()
        found.feed(page.read_text("utf-8"))
        assert [version["name"] for version in json.loads(found.data or "")["versions"] if version["page"]] == wanted


def test_v10_comes_after_v9_on_the_page_over_all(results: Path) -> None:
    sets = {}
    for old, new in (("a", "v10"), ("b", "v9")):
        shutil.copytree(results / old, results / new)
        sets[new] = results.parent / "pad"
    page, table = write_index({"v10": {}, "v9": {}}, results, results / "report", sets, sets)
    found = Tags()
    found.feed(page.read_text("utf-8"))
    assert [version["name"] for version in json.loads(found.data or "")["versions"]] == ["v9", "v10"]
    assert [row["version"] for row in records.read_csv(table)] == ["v9", "v10"]
