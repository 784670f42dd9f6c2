"""Many threads, one result: order, limits, duplicates, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from PIL import Image
from rig import zoo
from rig.pictures import encoded, picture, rgb
from rig.zoo import LIMITS, Zoo

from sdlora import choices, records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, FolderSource, Scrape, SeleniumSource
from sdlora.errors import DataError
from sdlora.stages.scrape.gather import gather


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zoo]:
    monkeypatch.setattr(choices, "SOURCES", {**choices.SOURCES, "bing": "rig.zoo:find", "selenium": "rig.zoo:find"})
    monkeypatch.setattr(zoo, "RESULTS", {})
    with Zoo() as running:
        yield running


def search(query: str, urls: list[str], limit: int = 50, kind: str = "bing") -> BingSource | SeleniumSource:
    zoo.RESULTS[query] = urls
    source = BingSource if kind == "bing" else SeleniumSource
    return source(kind=kind, query=query, limit=limit)


def dataset(*sources: Any, **options: Any) -> Dataset:
    limits = Scrape(**{**LIMITS, **options.pop("scrape", {})})
    return Dataset(sources=sources, trigger="x", scrape=limits, **options)


def urls_of(out: Path, file: str = "manifest.jsonl") -> set[str]:
    return {row["url"] for row in records.read_jsonl(out / file)}


def many(server: Zoo, numbers: range) -> list[str]:
    return [server.add(f"/{n}.jpg", picture(n), host=f"host-{n % 7}.example") for n in numbers]


def test_a_row_says_where_a_picture_comes_from(server: Zoo, tmp_path: Path) -> None:
    server.add("/real.jpg", picture(1))
    url = server.add("/first.jpg", zoo.redirect("http://other.example/real.jpg?x=1", 302))
    files = gather(dataset(search("cat", [url])), tmp_path, server.context())
    (row,) = records.read_jsonl(tmp_path / "manifest.jsonl")
    known = {key: row[key] for key in ("query", "engine", "rank", "url", "final_url", "page_url", "licence", "verdict")}
    assert known == {
        "query": "cat", "engine": "bing", "rank": 0, "url": url, "final_url": "http://other.example/real.jpg?x=1",
        "page_url": "http://zoo.example/page", "licence": None, "verdict": "accepted",
    }  # fmt: skip
    assert (row["width_px"], row["height_px"], row["size_bytes"]) == (256, 256, len(picture(1)))
    assert row["file"] == f"{row['sha256']}.{row['format'].lower()}"
    assert len(bytes.fromhex(row["dhash"])) == 16
    assert files == [tmp_path / "manifest.jsonl", tmp_path / "raw" / row["file"]]
    journal = [r for r in records.read_jsonl(tmp_path / "journal.jsonl") if "url" in r]
    assert [r["url"] for r in journal] == [url]
    assert journal[0]["time"].endswith("+00:00")


def test_the_manifest_does_not_depend_on_time_or_on_who_answers_first(server: Zoo, tmp_path: Path) -> None:
    urls = many(server, range(30))
    small = [server.add(f"/small-{n}.png", encoded(rgb(n).resize((140, 140)))) for n in range(0, 30, 3)]
    sources = (search("one", [*small[:5], *urls[:20]], 12), search("two", [*urls[10:], *small[5:]], 12, "selenium"))
    contents = []
    for number, slow in enumerate([(), urls[::2], urls[1::2]]):
        for url in urls:
            content, wait_s = picture(int(url.split("/")[-1][:-4])), 0.15 if url in slow else 0.0
            server.add("/" + url.split("/")[-1], lambda v, c=content, w=wait_s: (time.sleep(w), v.answer(c)))
        out = tmp_path / str(number)
        gather(dataset(*sources), out, server.context())
        contents.append([(out / name).read_bytes() for name in ("manifest.jsonl", "rejected.jsonl")])
        time.sleep(1.1 if number == 0 else 0)  # another second on the clock
    assert contents[0] == contents[1] == contents[2]
    assert len(urls_of(tmp_path / "0")) == 24


def test_limit_counts_accepted_pictures(server: Zoo, tmp_path: Path) -> None:
    bad = [f"http://zoo.example/missing-{n}" for n in range(6)]
    good = many(server, range(20))
    mixed = [url for pair in zip(bad, good[:6], strict=True) for url in pair] + good[6:]
    gather(dataset(search("cat", mixed, limit=8)), tmp_path, server.context())
    assert urls_of(tmp_path) == set(good[:8])
    assert urls_of(tmp_path, "rejected.jsonl") == set(bad)
    assert len(server.log) <= 6 + 8 + 4


def test_fewer_than_wanted_is_said_with_the_reasons(
    server: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [*many(server, range(3)), "http://zoo.example/a", "http://zoo.example/b", "file:///x", "http://[::1]/x"]
    urls.append(server.add("/again.jpg", picture(1)))
    gather(dataset(search("cat", urls, limit=20), minimum=3), tmp_path, server.context())
    said = capsys.readouterr().out
    assert "bing 'cat': 3 of the 20 pictures wanted; 8 candidates: 2 HTTP status 404, 1 address, 1 duplicate" in said
    assert "3 to learn from, 0 references, 4 rejected, 1 duplicates" in said


def test_progress_tells_accepted_rejected_and_duplicates(
    server: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [*many(server, range(3)), "http://zoo.example/missing", server.add("/again.jpg", picture(1))]
    urls.append(server.add("/last.jpg", picture(9)))
    gather(dataset(search("cat", urls, limit=4)), tmp_path, server.context())
    assert "scrape bing 'cat': 4/4 accepted 4, rejected 1, duplicates 1" in capsys.readouterr().err


def test_below_the_minimum_fails_and_the_next_run_goes_on(server: Zoo, tmp_path: Path) -> None:
    urls = [*many(server, range(3)), "http://zoo.example/missing"]
    with pytest.raises(DataError, match=r"3 usable training pictures.*minimum is 5.*HTTP status 404"):
        gather(dataset(search("cat", urls), minimum=5), tmp_path, server.context())
    assert not (tmp_path / "manifest.jsonl").exists()
    more = search("more cats", many(server, range(3, 6)))
    before = len(server.log)
    gather(dataset(search("cat", urls), more, minimum=5), tmp_path, server.context())
    assert len(server.log) == before + 3
    assert len(urls_of(tmp_path)) == 6


def test_duplicates_are_dropped_across_sources(server: Zoo, tmp_path: Path) -> None:
    """A larger copy that a later source finds takes the place of the first, and no place of its own source."""
    small = server.add("/small.png", encoded(rgb(3).resize((130, 130))))
    large = server.add("/large.png", encoded(rgb(3)))
    first, second = [small, *many(server, range(10, 14))], [large, *many(server, range(20, 24))]
    gather(dataset(search("a", first, 3), search("b", second, 3, "selenium")), tmp_path, server.context())
    assert urls_of(tmp_path) == {large, *first[1:3], *second[1:4]}
    rejected = {row["url"]: row for row in records.read_jsonl(tmp_path / "rejected.jsonl")}
    assert rejected[small]["reason"].startswith(f"looks like {large} (256 x 256 px")
    ids = {row["url"]: row["id"] for row in records.read_jsonl(tmp_path / "manifest.jsonl")}
    assert rejected[small]["copy_of"] == ids[large]


def test_your_own_pictures_stay_as_they_are(server: Zoo, tmp_path: Path) -> None:
    """Small, and alike: both wanted. A search's better copy of one of them is not."""
    for name, side in (("a", 64), ("b", 60)):
        records.write_bytes(tmp_path / "own" / f"{name}.png", encoded(rgb(3).resize((side, side))))
    records.write_bytes(tmp_path / "own" / "again.png", (tmp_path / "own" / "a.png").read_bytes())
    folder = FolderSource(kind="folder", path=str(tmp_path / "own"))
    copy = server.add("/large.png", encoded(rgb(3)))
    for number, sources in enumerate(((search("q", [copy]), folder), (folder, search("q", [copy])))):
        out = tmp_path / f"out-{number}"
        gather(dataset(*sources), out, server.context())
        assert {row["name"] for row in records.read_jsonl(out / "manifest.jsonl")} >= {"b.png"}
        assert copy in urls_of(out, "rejected.jsonl")


def test_an_url_past_the_limit_of_one_search_is_fresh_for_the_next(server: Zoo, tmp_path: Path) -> None:
    urls = many(server, range(8))
    gather(dataset(search("a", urls, 2), search("b", urls, 4, "selenium")), tmp_path, server.context())
    assert urls_of(tmp_path) == set(urls[:6])
    assert len(server.log) == len(set(server.paths))


def test_an_interrupted_run_s_remains(server: Zoo, tmp_path: Path) -> None:
    """A torn row, a part of a file, a picture damaged on the disk: put right, and nothing else is fetched again."""
    urls = many(server, range(6))
    source = search("cat", urls)
    with pytest.raises(DataError):
        gather(dataset(source, minimum=99), tmp_path, server.context())
    journal = tmp_path / "journal.part.jsonl"
    rows = [json.loads(line) for line in journal.read_text("utf-8").splitlines()][1:]
    torn = next(row for row in rows if row["url"] == urls[0])
    lines = [line for line in journal.read_bytes().splitlines(True) if urls[0].encode() not in line]
    journal.write_bytes(b"".join(lines) + json.dumps(torn).encode()[:40])
    damaged = next(row for row in rows if row["url"] == urls[1])
    victim = next((tmp_path / "raw").glob(f"{damaged['sha256']}.*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    (tmp_path / "raw" / "abandoned.part").write_bytes(b"half")
    server.log.clear()
    gather(dataset(source), tmp_path, server.context())
    assert sorted(server.paths) == ["/0.jpg", "/1.jpg"]
    assert urls_of(tmp_path) == set(urls)
    assert {p.name for p in (tmp_path / "raw").iterdir()} == {
        row["file"] for row in records.read_jsonl(tmp_path / "manifest.jsonl")
    }


def test_a_journal_in_disorder_is_not_trusted(server: Zoo, tmp_path: Path) -> None:
    urls = many(server, range(3))
    (tmp_path / "journal.part.jsonl").write_bytes(b"\x00\xffnot json\n")
    gather(dataset(search("cat", urls)), tmp_path, server.context())
    assert urls_of(tmp_path) == set(urls)


def test_transient_failures_are_tried_again_and_final_ones_are_not(server: Zoo, tmp_path: Path) -> None:
    flaky = server.add("/flaky.jpg", lambda visit: visit.answer(b"", 503))
    gone, good = "http://zoo.example/gone.jpg", many(server, range(2))
    source = search("cat", [flaky, gone, *good])
    with pytest.raises(DataError):
        gather(dataset(source, minimum=3, scrape={"retries": 0}), tmp_path, server.context())
    server.add("/flaky.jpg", picture(50))
    server.log.clear()
    gather(dataset(source, minimum=3), tmp_path, server.context())
    assert server.paths == ["/flaky.jpg"]
    assert flaky in urls_of(tmp_path)


def test_stricter_limits_do_not_keep_what_they_forbid(server: Zoo, tmp_path: Path) -> None:
    opted_out = server.add("/out.jpg", lambda visit: visit.answer(picture(5), X_Robots_Tag="noai"))
    source = search("cat", [opted_out, *many(server, range(2))])
    with pytest.raises(DataError):
        gather(dataset(source, minimum=9, scrape={"honour_opt_out": False}), tmp_path, server.context())
    gather(dataset(source), tmp_path, server.context())
    assert opted_out in urls_of(tmp_path, "rejected.jsonl")


def test_what_another_scrape_has_stays_until_this_one_is_finished(server: Zoo, tmp_path: Path) -> None:
    source = search("cat", many(server, range(3)))
    before = [path.name for path in gather(dataset(source), tmp_path, server.context())[1:]]
    with pytest.raises(DataError, match="0 usable training pictures"):
        gather(dataset(source, scrape={"min_side_px": 4_096}), tmp_path, server.context(), before)
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == sorted(before)


def test_gathering_again_is_a_new_fetch(server: Zoo, tmp_path: Path) -> None:
    """A finished dataset is not a cache: who runs the stage again wants today's web."""
    urls = many(server, range(3))
    source = search("cat", urls)
    gather(dataset(source), tmp_path, server.context())
    server.add("/1.jpg", picture(77))
    gather(dataset(source), tmp_path, server.context())
    assert len(server.log) == 6
    assert len(list((tmp_path / "raw").iterdir())) == 3


def test_a_source_that_fails_cuts_the_connections_that_are_open(server: Zoo, tmp_path: Path) -> None:
    zoo.RESULTS["cat"] = [server.add(f"/{n}", zoo.drip) for n in range(4)] + [None]  # type: ignore[list-item]
    began = time.monotonic()
    with pytest.raises(ValueError, match="either a url or content"):
        gather(dataset(BingSource(kind="bing", query="cat", limit=9), scrape={"deadline_s": 600.0}), tmp_path,
               server.context())  # fmt: skip
    assert time.monotonic() - began < 300  # far below the deadline: the connections were cut
    assert not list((tmp_path / "raw").glob("*.part"))


VICTIM = """
import sys
from pathlib import Path
from rig import zoo
from sdlora import choices
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, Scrape
from sdlora.stages.scrape.gather import gather
choices.SOURCES["bing"] = "rig.zoo:find"
out, port, urls = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
zoo.RESULTS["cat"] = urls
limits = Scrape(host_rate_per_s=1e4, concurrency=4)
source = BingSource(kind="bing", query="cat", limit=40)
gather(Dataset(sources=(source,), trigger="x", scrape=limits), out, zoo.context_of(port))
"""


@pytest.mark.workflow
def test_kill_and_run_again(server: Zoo, tmp_path: Path) -> None:
    """SIGKILL three times: the same set as without, and no finished picture is asked for again."""
    urls = [*many(server, range(40)), server.add("/bad.jpg", b"<html>"), "http://zoo.example/missing"]
    urls = [url for pair in zip(urls[:21], urls[21:], strict=True) for url in pair]
    command = [sys.executable, "-c", VICTIM]
    whole = [*command, str(tmp_path / "whole"), str(server.port), *urls]
    subprocess.run(whole, check=True, cwd=ROOT / "tests", capture_output=True, timeout=120)
    server.log.clear()
    server.delay_s = 0.1
    out = tmp_path / "killed"
    journal = out / "journal.part.jsonl"
    finished_by: list[tuple[int, set[str]]] = []  # (length of the server's log, what was finished by then)
    for rows in (4, 15, 27):
        victim = subprocess.Popen(
            [*command, str(out), str(server.port), *urls], cwd=ROOT / "tests", stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not (journal.exists() and len(journal.read_bytes().splitlines()) > rows):
            assert victim.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        time.sleep(0.3)  # what was on its way arrives in the log
        finished = {row["url"] for row in map(json.loads, journal.read_bytes().splitlines()[1:]) if "url" in row}
        assert len(finished) >= rows
        finished_by.append((len(server.log), {"/" + url.rsplit("/", 1)[1] for url in finished}))
    subprocess.run(
        [*command, str(out), str(server.port), *urls], check=True, cwd=ROOT / "tests", capture_output=True,
        timeout=120,
    )  # fmt: skip
    for mark, paths in finished_by:
        assert not paths & set(server.paths[mark:])
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    files = [{p.name: p.read_bytes() for p in (folder / "raw").iterdir()} for folder in (out, tmp_path / "whole")]
    assert files[0] == files[1]


def test_limits_come_from_the_dataset(server: Zoo, tmp_path: Path) -> None:
    url = server.add("/a.png", encoded(Image.new("RGB", (100, 100), "red")))
    context = replace(server.context(), limits=Scrape(min_side_px=1))
    with pytest.raises(DataError, match="100 x 100 px; 128 is least"):
        gather(dataset(search("cat", [url])), tmp_path, context)
