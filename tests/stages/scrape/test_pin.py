"""What was scraped stays scraped: the pin, without Snakemake and without a web."""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from rig.pictures import picture

from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.errors import DataError, ParamsError
from sdlora.flow import hashing, makers, plan
from sdlora.flow.code import Code
from sdlora.stages.scrape import pin
from sdlora.stages.scrape.recipe import ScrapeRecipe

CODE = Code()  # the files are the same for every recipe
BING = {"kind": "bing", "query": "cat", "limit": 3}


def recipe(*sources: dict[str, Any], **options: Any) -> ScrapeRecipe:
    stated = {"sources": sources or [BING], "trigger": "x"} | options
    dataset = Dataset.model_validate_json(records.canonical_json(stated))
    return plan._scrape("cats", dataset, makers.Seen(hashing.FileHashes(Path("none.json")), CODE))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of three pictures that was scraped."""
    monkeypatch.chdir(tmp_path)
    rows, cats = [], recipe().folder
    for number in range(3):
        content = picture(number)
        digest = hashlib.sha256(content).hexdigest()
        records.write_bytes(cats / "raw" / f"{digest}.png", content)
        rows.append({"id": digest[:16], "file": f"{digest}.png", "sha256": digest, "name": f"{number}"})
    records.write_json(cats / "pin.json", {"asked": pin.asked_for(recipe()), "rows": rows})
    return cats


def may_run(asked: ScrapeRecipe, allowed: bool = True, forced: bool = False) -> None:
    pin.may_run(asked, allowed, forced)


@pytest.mark.parametrize(
    ("sources", "is_web"),
    [
        ([BING], True),
        ([{"kind": "selenium", "query": "cat", "limit": 3}], True),
        ([{"kind": "hub", "repository": "a/b"}], True),
        ([{"kind": "hub", "repository": "a/b", "local": "copy"}], False),
        ([{"kind": "folder", "path": "data"}], False),
        ([{"kind": "folder", "path": "data"}, BING], True),
    ],
)
def test_what_asks_the_web_is_pinned_and_what_does_not_follows_the_code(
    sources: list[dict[str, Any]], is_web: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    asked = recipe(*sources)
    assert (asked.code is None) == (asked.software == {}) == is_web
    if is_web:
        with pytest.raises(ParamsError, match=r"datasets.cats comes from the web and has no pictures yet"):
            may_run(asked, allowed=False)
    else:
        may_run(asked, allowed=False)
    may_run(asked)


def test_what_is_there_needs_no_permission(folder: Path) -> None:
    may_run(recipe(), allowed=False)
    may_run(recipe(held_out=2, minimum=1), allowed=False)
    with pytest.raises(ParamsError, match=r"is scraped, but scraping is off"):
        may_run(recipe(), allowed=False, forced=True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (recipe(BING | {"query": "dog"}), "sources[0].query was 'cat', is 'dog'"),
        (recipe(BING | {"licence": "share"}), "sources[0].licence was None, is 'share'"),
        (recipe(BING, BING), "it had 1 sources, has 2"),
        (recipe(scrape={"retries": 9}), "scrape.retries was 3, is 9"),
        (recipe().model_copy(update={"files": {"data": "other"}}), "the pictures in its folders have changed"),
    ],
)
def test_another_wish_says_what_changed_and_what_to_type(folder: Path, asked: ScrapeRecipe, said: str) -> None:
    with pytest.raises(ParamsError) as told:
        may_run(asked)
    assert said in str(told.value)
    assert f"`snakemake {folder}/manifest.jsonl --forcerun scrape`" in str(told.value)
    may_run(asked, forced=True)


def test_a_setting_that_a_later_release_adds_changes_nothing(folder: Path) -> None:
    """A pin of an earlier release lacks it; it had its default then."""
    pinned = records.read_json(folder / "pin.json")
    del pinned["asked"]["dataset"]["sources"][0]["adult_filter"], pinned["asked"]["dataset"]["scrape"]["retries"]
    records.write_json(folder / "pin.json", pinned)
    may_run(recipe(), allowed=False)


def test_references_are_chosen_anew_without_asking(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pin.scrape(recipe(held_out=1), again=False)
    rows = records.read_jsonl(folder / "manifest.jsonl")
    assert [row["split"] for row in rows] == ["reference", "train", "train"]
    assert files == [folder / "manifest.jsonl", *(folder / "raw" / row["file"] for row in rows)]
    assert "the web is not asked" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"2 training pictures were scraped, but the dataset's minimum is 3"):
        pin.scrape(recipe(held_out=1, minimum=3), again=False)


@pytest.mark.parametrize("fails", [True, False])
def test_pinned_pictures_stay_until_another_scrape_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    before = {path.name for path in (folder / "raw").iterdir()}

    def gather(dataset: Dataset, out: Path, context: object, spared: set[str]) -> list[Path]:
        assert spared == before
        if fails:
            raise DataError("fewer than the minimum")
        rows = records.read_json(out / "pin.json")["rows"][:1]
        records.write_jsonl(out / "manifest.jsonl", [{**row, "split": "train"} for row in rows])
        return [out / "manifest.jsonl", out / "raw" / rows[0]["file"]]

    monkeypatch.setattr(pin, "gather", gather)
    with pytest.raises(DataError) if fails else nullcontext():
        pin.scrape(recipe(), again=True)
    may_run(recipe(), allowed=False)
    assert len([*(folder / "raw").iterdir()]) == (3 if fails else 1)


@pytest.mark.parametrize("damage", [b"", None])
def test_damaged_pictures_are_told(folder: Path, damage: bytes | None) -> None:
    lost = sorted((folder / "raw").iterdir())[0]
    lost.unlink() if damage is None else lost.write_bytes(damage)
    with pytest.raises(DataError, match=f"1 scraped pictures are gone or damaged, raw/{lost.name}"):
        may_run(recipe())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"asked": {"dataset": {}}, "rows": []}'])
def test_a_damaged_pin_is_told(folder: Path, content: str) -> None:
    records.write_text(folder / "pin.json", content)
    with pytest.raises(DataError, match=r"pin.json is damaged; bring it back with `dvc checkout data/sets`"):
        may_run(recipe())
