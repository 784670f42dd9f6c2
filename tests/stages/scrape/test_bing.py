"""The Bing source on the real bing-image-downloader, against a search on loopback."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import Answer, Result, Rig, Search, results

from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, SeleniumSource
from sdlora.errors import DataError
from sdlora.stages.scrape import bing
from sdlora.stages.scrape.engines.bing import LICENCES, SIZES, TYPES, Bing, filters
from sdlora.stages.scrape.gather import gather
from sdlora.stages.scrape.source import Candidate

SEARCH = "https://www.bing.com/images/async"
PHOTO = frozenset({"photo-photo", "license-L1"})
ODD = (
    Result("https://pictures-0.example/a b.jpg", title='quotes " and \\ and <b>'),
    Result("https://pictures-0.example/x.jpg?a=1&b=2&c=%20d"),
    Result("https://pictures-0.example/söme/ピクセル.png", page_url="https://gallery.example/ü"),
    Result('https://pictures-0.example/"quoted".jpg'),
    Result("file:///etc/hostname"),
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    filtered = (*results(range(3)), *(Result(r.url, filters=PHOTO) for r in results(range(3, 5))))
    searches = {
        "cat": Search(results(range(80))),
        "odd": Search(ODD),
        "spaced": Search(ODD, compact=False),
        "few": Search(filtered),
        "..": Search(results(range(2))),
    }
    with Rig(tmp_path / "rig", searches) as found:
        yield found


def source(query: str, **options: object) -> BingSource:
    return BingSource.model_validate({"kind": "bing", "query": query, "limit": 5, **options})


def found(rig: Rig, query: str, **options: object) -> list[Candidate]:
    return list(bing.find(source(query, **options), rig.context()))


def asked(rig: Rig, name: str) -> list[str]:
    return [request.query[name] for request in rig.requests("www.bing.com", "/images/async")]


def test_every_page_brings_new_pictures(rig: Rig) -> None:
    began = time.monotonic()
    candidates = found(rig, "cat")
    assert time.monotonic() - began >= 3 / bing.PAGES_PER_S, "each page but the first waits for its turn"
    assert [c.url for c in candidates] == [r.url for r in results(range(80))]
    assert [c.rank for c in candidates] == list(range(80))
    assert asked(rig, "first") == ["1", "36", "71", "81"], "35, 35, 10 results, and none"


def test_pages_are_asked_for_when_they_are_needed(rig: Rig) -> None:
    stream = bing.find(source("cat"), rig.context())
    for _ in range(35):
        next(stream)
    assert len(asked(rig, "first")) == 1
    next(stream)
    stream.close()
    assert len(asked(rig, "first")) == 2


@pytest.mark.workflow
def test_the_unmodified_package_reaches_the_rig_and_stops_after_a_page(rig: Rig, tmp_path: Path) -> None:
    """The rig speaks to the package as it is; what the package makes of it is why only its search is used."""
    command = [sys.executable, "-m", "bing_image_downloader", "cat", "--limit", "37", "--output-dir", "out", "--quiet"]
    env = {**os.environ, **rig.environment}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=120)
    assert len(list((tmp_path / "out/cat").iterdir())) == 35, done.stdout
    assert asked(rig, "first") == ["0", "1"], "one further on is the same page"
    assert not rig.refused


@pytest.mark.parametrize("query", ["odd", "spaced"])
def test_links_are_what_the_search_means(rig: Rig, query: str) -> None:
    candidates = found(rig, query)
    assert [c.url for c in candidates] == [r.url for r in ODD]
    assert [c.page_url for c in candidates] == [r.page_url for r in ODD]
    assert candidates[0].title == ODD[0].title
    assert all(c.query == query and c.engine == "bing" for c in candidates)


def test_odd_links_go_through_the_fetcher(rig: Rig, tmp_path: Path) -> None:
    """A file: link is a verdict, never a copied file; encoded links arrive as they were written."""
    dataset = Dataset(sources=(source("odd"),), trigger="x", minimum=1)
    with pytest.raises(DataError, match="0 usable training pictures"):
        gather(dataset, tmp_path / "out", rig.context())
    rejected = {row["url"]: row for row in records.read_jsonl(tmp_path / "out/rejected.jsonl")}
    assert rejected["file:///etc/hostname"]["reason"] == "only http and https are fetched, not 'file'"
    assert not list((tmp_path / "out").rglob("raw/*"))
    assert {r.path for r in rig.requests("pictures-0.example")} == {
        "/a%20b.jpg", "/x.jpg", "/s%C3%B6me/%E3%83%94%E3%82%AF%E3%82%BB%E3%83%AB.png", "/%22quoted%22.jpg",
    }  # fmt: skip


def test_gathered_pictures_have_their_provenance(rig: Rig, tmp_path: Path) -> None:
    gather(Dataset(sources=(source("cat", limit=7),), trigger="cat", minimum=7), tmp_path / "out", rig.context())
    rows = records.read_jsonl(tmp_path / "out/manifest.jsonl")
    assert len(rows) == 7
    for row in rows:
        number = int(row["url"].rsplit("/", 1)[1].removesuffix(".jpg"))
        assert row["rank"] == number and row["query"] == "cat" and row["engine"] == "bing"
        assert row["page_url"] == f'https://gallery.example/{number}?a=1&b="two"'
        assert (row["width_px"], row["height_px"]) == (256, 256)
    assert max(Counter(r.url for r in rig.requests("", "/picture/")).values()) == 1


def test_filters_are_asked_for_and_recorded(rig: Rig) -> None:
    candidates = found(rig, "few", licence="public_domain", type="photo")
    assert [c.rank for c in candidates] == [0, 1]
    assert {c.licence for c in candidates} == {"public_domain, says the search"}
    assert asked(rig, "qft")[0] == "+filterui:license-L1+filterui:photo-photo"
    assert len(found(rig, "few")) == 5


def test_every_filter_that_can_be_chosen_has_a_name_at_bing() -> None:
    for key, names in (("licence", LICENCES), ("size", SIZES), ("type", TYPES)):
        schema = BingSource.model_json_schema()["properties"][key]["anyOf"][0]["enum"]
        assert sorted(schema) == sorted(names)
        for choice, name in names.items():
            assert filters(source("cat", **{key: choice})) == f"+filterui:{name}"
    with pytest.raises(ValueError, match="'creative_commons', 'public_domain'"):
        source("cat", licence="free")


def test_the_adult_filter_is_on_unless_it_is_turned_off(rig: Rig) -> None:
    found(rig, "few")
    found(rig, "few", adult_filter=False)
    assert set(asked(rig, "adlt")[:2]) == {"strict"} and set(asked(rig, "adlt")[2:]) == {"off"}


@pytest.mark.parametrize("query", ["", "   ", "x" * 301, "two\nlines", "nul\x00"])
def test_queries_that_say_nothing_are_refused(query: str) -> None:
    for kind in (BingSource, SeleniumSource):
        with pytest.raises(ValueError, match=r"blank|at (least|most)|control characters"):
            kind.model_validate({"kind": kind.model_fields["kind"].annotation.__args__[0], "query": query, "limit": 5})


@pytest.mark.parametrize(
    "query", ["..", "../../x", "初音ミク", 'say "cheese"', "a&b=c#d", "x" * 300, "👩‍🎨 art", "-o /tmp/x"]
)
def test_any_other_query_is_asked_as_it_is_and_touches_no_file(
    rig: Rig, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package makes a folder of the query, and for `..` deletes the one around it."""
    keep = tmp_path / "work/keep.txt"
    records.write_text(keep, "mine")
    monkeypatch.chdir(keep.parent)
    rig.searches[query] = Search(results(range(2)))
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert len(found(rig, query)) == 2
    assert asked(rig, "q") == [query] * 2
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before


@pytest.mark.workflow
def test_a_bing_py_in_the_working_directory_is_not_executed(rig: Rig, tmp_path: Path) -> None:
    """It is by the package's own import, which is shown first."""
    (tmp_path / "bing.py").write_text("print('EXECUTED')\nclass Bing: pass\n", encoding="utf-8")
    ours = (
        "from pathlib import Path; from rig.server import connect; from sdlora.stages.scrape import bing\n"
        "from sdlora.config.sources import BingSource\n"
        f"context = connect(Path({str(rig.folder / 'rig.json')!r}))\n"
        "print(len(list(bing.find(BingSource(kind='bing', query='few', limit=5), context))))"
    )
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(str(root / name) for name in ("src", "tests"))
    env = {**os.environ, "PYTHONPATH": paths}
    for code, output in (("import bing_image_downloader", "EXECUTED\n"), (ours, "5\n")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.stdout == output, done.stderr[-2000:]


def test_the_package_says_nothing_on_standard_output(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    found(rig, "cat")
    found(rig, "nothing like it")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "bing: no result for 'nothing like it'\n"


def test_a_search_that_cannot_be_reached_is_told(rig: Rig) -> None:
    rig.add(SEARCH, Answer(b"no", 403))
    with pytest.raises(DataError, match=r"Bing's image search could not be asked for 'cat': HTTP status 403"):
        found(rig, "cat")


def test_a_page_that_fails_later_keeps_what_there_is(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    stream = bing.find(source("cat"), rig.context())
    first = [next(stream) for _ in range(35)]
    rig.add(SEARCH, Answer(b"no", 404))
    assert len(first) == 35 and not list(stream)
    assert "page 2 did not come, going on with 35 results: HTTP status 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    "page",
    [
        b"", b"<html>please prove that you are a person</html>", b"\xff\xfe\x00", b'<a class="iusc" m="[1, 2]">',
        b'<a class="iusc" m="{&quot;murl&quot;: 5}">', b'<a class="iusc">', b'<a class="iusc" m="{&quot;mu',
        b"murl&quot;:&quot;https://pictures-0.example/1.jpg&quot;",
    ],
)  # fmt: skip
def test_a_page_without_results_has_none(rig: Rig, page: bytes) -> None:
    rig.add(SEARCH, Answer(page))
    assert found(rig, "cat") == []


def test_a_page_is_read_up_to_a_bound(rig: Rig) -> None:
    rig.add(SEARCH, Answer(b"x" * int(bing.PAGE_MIB * 2**20 + 1)))
    with pytest.raises(DataError, match="more than 8 MiB"):
        found(rig, "cat")


def test_the_same_page_over_and_over_ends(rig: Rig) -> None:
    from rig.site import anchors

    rig.add(SEARCH, Answer(anchors(results(range(20))).encode()))
    assert len(found(rig, "cat")) == 20
    assert len(asked(rig, "first")) == 2


@pytest.mark.parametrize("text", ["", "null", "5", "{", '{"murl": ""}', '{"murl": null}', '{"murl": ["x"]}'])
def test_an_attribute_that_is_no_result(text: str) -> None:
    assert Bing.read(text) is None


def test_an_attribute_with_escapes() -> None:
    hit = Bing.read(json.dumps({"murl": "https://x.example/?a=1&b=ü"}).replace("&", "\\u0026"))
    assert hit is not None and hit.url == "https://x.example/?a=1&b=ü" and hit.page_url is None


def test_a_strangers_words_can_be_written_down() -> None:
    """Half a surrogate pair cannot be encoded as UTF-8, and a line break would end a row."""
    hit = Bing.read('{"murl": "https://x.example/\\ud83d", "t": "a\\nb\\u0000c", "purl": "%s"}' % ("x" * 20_000))
    assert hit is not None and hit.url == "https://x.example/?" and hit.title == "abc"
    assert hit.page_url is not None and len(hit.page_url) == 10_000
