"""Gathering pictures from a folder."""

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import FolderSource
from sdlora.errors import DataError
from sdlora.stages.scrape.gather import gather


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(folder: Path, **options: object) -> Dataset:
    return Dataset(sources=(FolderSource(kind="folder", path=str(folder)),), trigger="x", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"), ("references/d", "white")):
        records.write_bytes(tmp_path / "in" / f"{name}.png", picture(colour))
    return tmp_path / "in"


def test_pictures_are_kept_by_content(folder: Path, tmp_path: Path) -> None:
    gather(dataset(folder, held_out="references"), tmp_path / "out")
    rows = records.read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert [row["split"] for row in sorted(rows, key=lambda r: r["name"])] == ["train"] * 3 + ["reference"]
    for row in rows:
        content = (tmp_path / "out" / "raw" / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]


def test_one_broken_picture_is_recorded_and_the_rest_goes_on(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(picture("red")[:40])
    (folder / "twice.png").write_bytes(picture("blue"))
    gather(dataset(folder), tmp_path / "out")
    rejected = records.read_jsonl(tmp_path / "out" / "rejected.jsonl")
    assert {row["name"] for row in rejected} == {"broken.png", "twice.png"}
    assert "not a readable picture" in next(r["reason"] for r in rejected if r["name"] == "broken.png")
    assert len(records.read_jsonl(tmp_path / "out" / "manifest.jsonl")) == 4


def test_no_usable_picture_is_an_error(tmp_path: Path) -> None:
    records.write_bytes(tmp_path / "in" / "a.png", b"nothing")
    with pytest.raises(DataError, match=r"0 usable training pictures.*minimum is 1.*1 rejected"):
        gather(dataset(tmp_path / "in"), tmp_path / "out")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        gather(dataset(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(DataError, match="there is no folder"):
        gather(dataset(tmp_path / "none"), tmp_path / "out")


def test_held_out_by_number_does_not_depend_on_names(folder: Path, tmp_path: Path) -> None:
    def references(out: str) -> set[str]:
        gather(dataset(folder, held_out=2), tmp_path / out)
        rows = records.read_jsonl(tmp_path / out / "manifest.jsonl")
        return {row["sha256"] for row in rows if row["split"] == "reference"}

    before = references("one")
    (folder / "a.png").rename(folder / "z.png")
    assert len(before) == 2
    assert references("two") == before


def test_removed_pictures_leave_the_dataset(folder: Path, tmp_path: Path) -> None:
    gather(dataset(folder), tmp_path / "out")
    (folder / "a.png").unlink()
    gather(dataset(folder), tmp_path / "out")
    assert len(list((tmp_path / "out" / "raw").iterdir())) == 3
