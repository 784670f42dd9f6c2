"""Every file of a user's folder is accounted for: a picture, a picture's caption, or a row that says why not."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora import records
from sdlora.config.caption import Caption
from sdlora.config.dataset import Dataset
from sdlora.config.params import Fit
from sdlora.config.sources import FolderSource, HubSource
from sdlora.errors import DataError
from sdlora.flow import folders, inputs
from sdlora.flow.hashing import FileHashes
from sdlora.stages.caption.caption import caption_dataset
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.fit.fit import fit_dataset
from sdlora.stages.scrape.gather import gather


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (80, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def write(mine: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        records.write_bytes(mine / name, content if isinstance(content, bytes) else content.encode("utf-8"))


def dataset(mine: Path) -> Dataset:
    return Dataset(sources=(FolderSource(kind="folder", path=str(mine)),), trigger="hero")


def gathered(mine: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Captions of the kept, and reasons of the others, by name."""
    out = mine.parent / "out"
    gather(dataset(mine), out)
    kept = {row["name"]: row["caption"] for row in records.read_jsonl(out / "manifest.jsonl")}
    return kept, {row["name"]: row["reason"] for row in records.read_jsonl(out / "rejected.jsonl")}


def test_the_content_says_what_a_picture_is_and_no_name(mine: Path) -> None:
    write(mine, {"a.jfif": picture("red", "JPEG"), "b.jpe": picture("green", "JPEG"), "c": picture("blue", "WEBP"),
                 "d.txt.png": picture("white"),
                 "e.dat": picture("black", "AVIF"), "f.JPG": picture("grey", "GIF")})  # fmt: skip
    kept, rejected = gathered(mine)
    assert set(kept) == {"a.jfif", "b.jpe", "c", "d.txt.png", "e.dat", "f.JPG"}
    assert not rejected


def container(brand: bytes) -> bytes:
    return (24).to_bytes(4, "big") + b"ftyp" + brand + bytes(4) + b"mif1" + b"isom" + bytes(40)


OTHERS: dict[str, tuple[bytes | str, str]] = {
    "a.heic": (container(b"heic"), "a HEIC picture, for which there is no decoder here: save it as PNG or JPEG"),
    "a.jp2": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(30), "a JPEG 2000 picture, for which there is no decoder here"),
    "a.tga": (bytes([0, 0, 2]) + bytes(60), "a TGA picture, for which there is no decoder here"),
    "a.jxl": (b"\xff\x0a" + bytes(30), "a JPEG XL picture"),
    "a.svg": ('<?xml version="1.0"?><svg width="9"/>', "an SVG drawing"),
    "a.mp4": (container(b"isom").replace(b"mif1", b"mp42"), "no picture: it is a video"),
    "a.zip": (b"PK\x03\x04" + bytes(30), "no picture: it is a zip archive"),
    "notes": ("to do", "no picture: its bytes are of none of the kinds that are read"),
    "readme.txt": ("hello", "a text without a picture of its name"),
    "empty.png": (b"", "not a readable picture: no bytes"),
    "none.png": (b"nothing", "not a readable picture: none of PNG, JPEG"),
    "empty": (b"", "no bytes"),
    ".DS_Store": (b"x", "hidden: its name begins with a dot"),
}


def test_what_is_no_picture_is_a_row_that_says_what_it_is(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(mine, {name: content for name, (content, _) in OTHERS.items()} | {"good.png": picture("red")})
    kept, rejected = gathered(mine)
    assert set(kept) == {"good.png"}
    assert {name for name in OTHERS if OTHERS[name][1] not in rejected.get(name, "")} == set()
    assert set(rejected) == set(OTHERS)
    said = capsys.readouterr().out
    assert "1 left out, " in said and "a.heic for one: a HEIC picture, for which there is no decoder here" in said
    assert ": 5 more left out; rejected.jsonl says why" in said, "none is passed over but the hidden one"
    for name in ("empty.png", "none.png"):
        assert f"scrape: folder: left out: {name}: {OTHERS[name][1]}" in said


def test_linked_folders_are_searched_once_and_what_cannot_be_read_is_told(mine: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"far.png": picture("red")})
    write(mine, {"near.png": picture("blue"), "sub/deep.png": picture("green")})
    (mine / "linked").symlink_to(tmp_path / "elsewhere")
    (mine / "sub" / "loop").symlink_to(mine)
    (mine / "again").symlink_to(mine / "sub")
    (mine / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(mine / "pipe.png")
    kept, rejected = gathered(mine)
    assert {name.split("/")[-1] for name in kept} == {"near.png", "deep.png", "far.png"}
    assert rejected["gone.png"] == "a link that leads nowhere"
    assert rejected["pipe.png"] == "no regular file"
    assert len([reason for reason in rejected.values() if reason.startswith("the same folder as")]) == 2
    assert len(rejected) == 4


def test_a_name_that_is_not_utf_8_is_a_row(mine: Path) -> None:
    write(mine, {"good.png": picture("red")})
    with open(os.fsencode(mine) + b"/caf\xe9.png", "wb") as handle:  # noqa: PTH123
        handle.write(picture("blue"))
    os.mkdir(os.fsencode(mine) + b"/dos\xff")  # noqa: PTH102
    kept, rejected = gathered(mine)
    assert set(kept) == {"good.png"}
    assert rejected == {
        r"caf\xe9.png": "its name is not UTF-8; rename it",
        r"dos\xff": "its name is not UTF-8; rename it",
    }


def test_kohya_s_captions_are_read(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(mine, {
        "a.png": picture("red"), "a.txt": "1girl, red hair,\n  smile \n",
        "b.png": picture("green"), "b.caption": "\ufeffa green room", "b.txt": "a green field",
        "c.png": picture("blue"), "c.txt": "caf\u00e9".encode("cp1252"),
        "d.png": picture("white"), "d.txt": "  \n", "d.caption": "white\u200b ha\u00adt",
        "E.PNG": picture("black"), "E.TXT": "night\x1b[2J",
        "f.jpg": picture("grey", "JPEG"), "f.webp": picture("pink", "WEBP"), "f.txt": "two of them", "g.txt": "alone",
    })  # fmt: skip
    kept, rejected = gathered(mine)
    assert kept == {
        "a.png": "1girl, red hair, smile", "b.png": "a green field", "c.png": None, "d.png": "white hat",
        "E.PNG": "night[2J", "f.jpg": "two of them", "f.webp": "two of them",
    }  # fmt: skip
    assert rejected == {
        "b.caption": "a second caption: b.txt is used",
        "c.txt": "a caption that is not used: byte 0xe9 is not UTF-8; save it as UTF-8",
        "d.txt": "a caption that is not used: it is empty",
        "g.txt": "a text without a picture of its name",
    }
    assert "7 files to open, 6 of them with a caption beside" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["zed.png", "a.png"])
def test_of_the_same_bytes_the_held_out_file_stays_and_has_the_caption(mine: Path, tmp_path: Path, name: str) -> None:
    """Whichever comes first by name: a picture that measures is not learnt from."""
    write(mine, {name: picture("red"), "b.png": picture("blue"), "test/m.png": picture("red")})
    write(mine, {Path(name).with_suffix(".txt").name: "red hair"})
    gather(dataset(mine).model_copy(update={"held_out": "test"}), tmp_path / "out")
    rows = records.read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert {row["name"]: (row["split"], row["caption"]) for row in rows} == {
        "b.png": ("train", None), "test/m.png": ("reference", "red hair"),
    }  # fmt: skip


class NoModel:
    """Nobody may ask it."""

    def caption(self, picture: Image.Image) -> str:
        raise AssertionError("this picture has a caption of its own")


def test_captions_beside_pictures_reach_the_training_and_a_user_s_own_win(mine: Path, tmp_path: Path) -> None:
    write(mine, {"a.png": picture("red"), "a.txt": "red hair", "b.png": picture("blue"), "b.txt": "blue hair"})
    gathered(mine)
    override = tmp_path / "override.jsonl"
    override.write_text(json.dumps({"file": "b.png", "caption": "mine"}), encoding="utf-8")
    fit_dataset(Fit(size_px=64), tmp_path / "out", tmp_path / "fitted")
    recipe = CaptionRecipe(
        wildcards={}, caption=Caption(), captioner="-", captioner_identity="blip", captioner_revision=None,
        trigger="hero", threads=1, override=str(override), overrides=None,
    )  # fmt: skip
    caption_dataset(recipe, NoModel(), tmp_path / "fitted", tmp_path / "store")  # type: ignore[arg-type]
    rows = records.read_jsonl(tmp_path / "fitted/captions.jsonl")
    assert sorted((row["caption"], row["origin"]) for row in rows) == [
        ("hero, mine", "override"),
        ("hero, red hair", "source"),
    ]


def test_the_recipe_notices_captions_linked_folders_and_odd_names(mine: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"far.png": picture("red")})
    write(mine, {"a.png": picture("red"), ".DS_Store": b"1"})

    def identity() -> str:
        hashes = FileHashes(tmp_path / "hashes.json")
        (found,) = inputs.source_files(dataset(mine).sources, hashes).values()
        return found

    seen = [identity()]
    (mine / ".DS_Store").write_bytes(b"2")
    assert identity() == seen[0], "what is hidden is not looked at"
    (mine / "a.txt").write_text("red hair")
    seen.append(identity())
    (mine / "a.txt").write_text("green hair")
    seen.append(identity())
    (mine / "linked").symlink_to(tmp_path / "elsewhere")
    seen.append(identity())
    (tmp_path / "elsewhere/far.png").write_bytes(picture("blue"))
    seen.append(identity())
    Path(os.fsdecode(os.fsencode(mine) + b"/caf\xe9.png")).write_bytes(picture("white"))
    seen.append(identity())
    assert len(set(seen)) == len(seen)
    assert [one.path.name for one in folders.walk(mine) if one.is_hidden] == [".DS_Store"]


@pytest.mark.parametrize("name", ["0001.tar", "rows.tsv", "rows.ndjson", "pictures.zip", "a.parquet"])
def test_every_file_of_a_hub_dataset_s_copy_counts(mine: Path, tmp_path: Path, name: str) -> None:
    found = []
    for content in (b"1", b"2"):
        write(mine, {name: content})
        copy = HubSource(kind="hub", repository="a/b", local=str(mine))
        found.append(inputs.source_files([copy], FileHashes(tmp_path / "hashes.json")))
    assert found[0] != found[1]


def test_a_folder_of_hidden_files_holds_no_picture(mine: Path) -> None:
    write(mine, {".a.png": picture("red")})
    with pytest.raises(DataError, match="holds no picture"):
        gathered(mine)


def test_an_honest_large_picture_is_told_the_limit_and_the_way_out(mine: Path) -> None:
    write(mine, {"good.png": picture("red"), "huge.jpg": picture("blue", "JPEG", (12_000, 9_000))})
    _, rejected = gathered(mine)
    assert rejected["huge.jpg"] == (
        "huge.jpg: 12000 x 9000 px is more than 64000000 pixels; that is the most that is read of any picture: save it "
        "smaller, 8000 x 8000 px at most"
    )


def test_small_pictures_that_are_enlarged_are_named(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(mine, {"small.png": picture("red", size=(20, 16)), "large.png": picture("blue", size=(200, 100))})
    gathered(mine)
    fit_dataset(Fit(size_px=64), mine.parent / "out", mine.parent / "fitted")
    said = capsys.readouterr().out
    assert "fit: 1 smaller than 64 px and enlarged, which adds no detail: small.png (20 x 16 px, 3.2 times)" in said
    capsys.readouterr()
    fit_dataset(Fit(size_px=64), mine.parent / "out", mine.parent / "fitted")
    assert "small.png" in capsys.readouterr().out, "also when nothing was fitted anew"
