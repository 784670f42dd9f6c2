"""References: chosen once, kept when pictures come and go, and never copies of what is learnt from."""

import io
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.errors import DataError
from sdlora.stages.scrape.gather import gather
from sdlora.stages.scrape.split import CHOSEN, mark_copies, split
from sdlora.stages.scrape.verify import Look, examine

CAPTAIN = ROOT / "data/embedded/captain/train"


def rows(*names: str) -> list[records.Row]:
    return [{"id": name, "name": f"{name}.png"} for name in names]


def references(found: tuple[list[records.Row], list[records.Row]]) -> set[str]:
    return {row["id"] for row in found[0] if row["split"] == "reference"}


def test_references_stay_when_pictures_are_added(tmp_path: Path) -> None:
    assert references(split(rows("d", "e", "f", "g"), 2, tmp_path)) == {"d", "e"}
    assert references(split(rows("a", "b", "d", "e", "f", "g"), 2, tmp_path)) == {"d", "e"}
    assert references(split(rows("a", "b", "d", "e", "f", "g"), 3, tmp_path)) == {"d", "e", "a"}
    assert references(split(rows("a", "b", "e", "f", "g"), 2, tmp_path)) == {"e", "a"}, "d is gone"
    assert references(split(rows("a", "b", "d", "e", "f", "g"), 2, tmp_path)) == {"d", "e"}, "d is back"


def test_copies_are_never_on_both_sides(tmp_path: Path) -> None:
    pictures = rows("a", "b", "c", "d", "e")
    for copy in (1, 2):
        pictures[copy]["copy_of"] = "a"
    assert references(split(pictures, 2, tmp_path)) == {"d", "e"}, "pictures without copies come first"
    with pytest.raises(DataError, match="held_out is 3, but only 2 pictures can be references"):
        split(pictures, 3, tmp_path / "other")


def test_who_looks_like_two_others_joins_them(tmp_path: Path) -> None:
    """Frames of a film: the first and the third differ, and both look like the second."""
    hashes = {"a": "0" * 32, "b": "f" * 4 + "0" * 28, "c": "f" * 2 + "0" * 30, "d": "5" * 32}
    looks = {name: Look("PNG", 64, 64, dhash, "00" * 192) for name, dhash in hashes.items()}
    found = mark_copies(rows("a", "b", "c", "d"), looks, bits=10)
    assert [row.get("copy_of") for row in found] == [None, "a", "a", None]
    assert references(split(found, 1, tmp_path)) == {"d"}
    found = mark_copies(rows("a", "c", "b"), looks, bits=10)
    assert [row.get("copy_of") for row in found] == [None, "a", "a"]


def test_a_copy_of_a_reference_that_comes_later_is_left_out(tmp_path: Path) -> None:
    split(rows("d", "e", "f"), 1, tmp_path)
    later = [*rows("a"), {"id": "d", "name": "d.png", "copy_of": "a"}, *rows("e", "f")]
    kept, left_out = split(later, 1, tmp_path)
    assert references((kept, [])) == {"d"} and [row["id"] for row in left_out] == ["a"]


def encoded(number: int, quality: int) -> bytes:
    out = io.BytesIO()
    with Image.open(CAPTAIN / f"{number:03d}.png") as picture:
        picture.convert("RGB").save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_re_encodings_are_found_and_other_pictures_are_not() -> None:
    files = [encoded(1, 95), encoded(2, 95), encoded(1, 40), encoded(3, 95), encoded(2, 60)]
    looks = {str(n): examine(content, "x", None) for n, content in enumerate(files)}
    found = mark_copies(rows(*looks), looks, 10)
    assert [row.get("copy_of") for row in found] == [None, None, "0", None, "1"]
    assert mark_copies(rows(*looks), looks, -1) == rows(*looks)
    pairs = [(a, b) for a in range(5) for b in range(a) if looks[str(a)].same_as(looks[str(b)], 10)]
    assert pairs == [(2, 0), (4, 1)], "the same as Look.same_as says"


def test_ten_re_encodings_of_one_picture_measure_nothing(tmp_path: Path) -> None:
    for quality in range(50, 100, 5):
        records.write_bytes(tmp_path / "mine" / f"{quality}.jpg", encoded(1, quality))
    for number in range(2, 6):
        records.write_bytes(tmp_path / "mine" / f"other-{number}.jpg", encoded(number, 90))
    dataset = Dataset.model_validate(
        {"sources": ({"kind": "folder", "path": str(tmp_path / "mine")},), "trigger": "x", "held_out": 2}
    )
    gather(dataset, tmp_path / "set")
    manifest = records.read_jsonl(tmp_path / "set/manifest.jsonl")
    names = {row["split"]: {r["name"] for r in manifest if r["split"] == row["split"]} for row in manifest}
    assert len(names["reference"]) == 2 and all(name.startswith("other") for name in names["reference"])
    assert len(names["train"]) == 12


def test_what_is_left_out_says_of_what_it_is_a_copy(tmp_path: Path) -> None:
    for number in range(1, 7):
        records.write_bytes(tmp_path / "mine" / f"{number}.jpg", encoded(number, 90))
    dataset = Dataset.model_validate(
        {"sources": ({"kind": "folder", "path": str(tmp_path / "mine")},), "trigger": "x", "held_out": 1}
    )
    gather(dataset, tmp_path / "set")
    rows = records.read_jsonl(tmp_path / "set/manifest.jsonl")
    (reference,) = (row for row in rows if row["split"] == "reference")
    number = int(Path(reference["name"]).stem)
    records.write_bytes(tmp_path / "mine/again.jpg", encoded(number, 60))
    records.write_bytes(tmp_path / "mine/twice.jpg", encoded(number % 6 + 1, 90))
    gather(dataset, tmp_path / "set")
    learnt = {row["name"]: row["id"] for row in rows}
    rejected = {row["name"]: row["copy_of"] for row in records.read_jsonl(tmp_path / "set/rejected.jsonl")}
    assert rejected == {"again.jpg": reference["id"], "twice.jpg": learnt[f"{number % 6 + 1}.jpg"]}


@pytest.mark.parametrize("name", ["hats/red", "hats/red/", "hats"])
def test_a_subfolder_may_be_nested_and_end_with_a_slash(name: str, tmp_path: Path) -> None:
    pictures = [
        {"id": "1", "name": "hats/red/1.png"},
        {"id": "2", "name": "2.png"},
        {"id": "3", "name": "hatsoff/3.png"},
    ]
    assert references(split(pictures, name, tmp_path)) == {"1"}


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("hat", "names the subfolder 'hat', but no accepted picture lies in it; did you mean hats"),
        ("hats", "holds all 1 pictures"),
        ("10", "names the subfolder '10', but .* lies in it; write 10 without quotes for a number of pictures"),
        (1, "held_out is 1, but there are 1 pictures: none is left to learn from"),
    ],
)
def test_what_leaves_nothing_is_told(held_out: int | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        split([{"id": "1", "name": "hats/1.png"}], held_out, tmp_path)


def test_a_damaged_memory_is_told(tmp_path: Path) -> None:
    (tmp_path / CHOSEN).write_text("{")
    with pytest.raises(DataError, match=r"references\.json is damaged"):
        split(rows("a", "b"), 1, tmp_path)
