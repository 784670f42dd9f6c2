"""The hub source on copies that `datasets` itself wrote, on the hub's own cache and on a small hub on loopback."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers import ROOT
from PIL import Image
from rig.hub import Hub, serving

from sdlora import records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import HubSource
from sdlora.errors import DataError
from sdlora.stages.scrape import hub
from sdlora.stages.scrape.gather import gather
from sdlora.stages.scrape.source import Candidate, ScrapeContext

NAME = "somebody/naruto-blip-captions"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: cc-by-nc-sa-4.0\n---\n# Pictures\n"


def picture(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind)
    return buffer.getvalue()


GOOD = [picture("red"), picture("green", "JPEG"), picture("blue", "WEBP")]
BROKEN: list[Any] = [{"bytes": GOOD[0][:40], "path": None}, None, {"bytes": b"<html>", "path": "x.png"}]


def rows_of(pictures: list[Any], caption: str = "text") -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), caption: datasets.Value("string")})
    cells = [p if p is None or isinstance(p, dict) else {"bytes": p, "path": None} for p in pictures]
    words = [f"a ninja,  number {number}\n" for number in range(len(cells))]
    return datasets.Dataset.from_dict({"image": cells, caption: words}, features=features)


def as_parquet(rows: datasets.Dataset, folder: Path) -> None:
    """As `push_to_hub` lays it out."""
    for shard in range(2):
        target = folder / "data" / f"train-{shard:05d}-of-00002.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        rows.shard(2, shard, contiguous=True).to_parquet(target)


def as_saved(rows: datasets.Dataset, folder: Path) -> None:
    rows.save_to_disk(folder)


def as_saved_splits(rows: datasets.Dataset, folder: Path) -> None:
    datasets.DatasetDict({"test": rows.select([0]), "train": rows}).save_to_disk(folder)


def as_image_folder(rows: datasets.Dataset, folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
        (folder / f"{number:03d}.png").write_bytes(row["image"]["bytes"])
        lines.append({"file_name": f"{number:03d}.png", "text": row["text"]})
    records.write_jsonl(folder / "metadata.jsonl", lines)


def source(folder: Path | None, **options: Any) -> HubSource:
    local = None if folder is None else str(folder)
    return HubSource.model_validate({"kind": "hub", "repository": NAME, "local": local} | options)


def found(folder: Path, **options: Any) -> list[Candidate]:
    return list(hub.find(source(folder, **options), ScrapeContext()))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Six rows, three of them broken, as a folder of parquet files with a card."""
    as_parquet(rows_of([GOOD[0], *BROKEN, *GOOD[1:]]), tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "copy"


@pytest.mark.parametrize("write", [as_parquet, as_saved, as_saved_splits, as_image_folder])
def test_every_kind_of_copy_gives_the_stored_bytes_and_captions(
    write: Callable[[datasets.Dataset, Path], None], tmp_path: Path
) -> None:
    write(rows_of(GOOD), tmp_path / "copy")
    candidates = found(tmp_path / "copy", revision="v1")
    assert [c.content for c in candidates] == GOOD
    assert [c.caption for c in candidates] == [f"a ninja, number {n}" for n in range(3)]
    assert [(c.rank, c.name, c.revision) for c in candidates] == [(n, f"train/{n:06d}", "v1") for n in range(3)]


def test_a_broken_row_is_a_recorded_row(copy: Path, tmp_path: Path) -> None:
    dataset = Dataset(sources=(source(copy),), trigger="naruto style", minimum=3)
    gather(dataset, tmp_path / "out")
    rows = records.read_jsonl(tmp_path / "out/manifest.jsonl")
    assert {(tmp_path / "out/raw" / row["file"]).read_bytes() for row in rows} == set(GOOD)
    assert {row["name"]: row["caption"] for row in rows}["train/000005"] == "a ninja, number 5"
    assert {row["licence"] for row in rows} == {"cc-by-nc-sa-4.0"}
    assert {row["page_url"] for row in rows} == {f"https://huggingface.co/datasets/{NAME}"}
    rejected = records.read_jsonl(tmp_path / "out/rejected.jsonl")
    assert [row["name"] for row in rejected] == ["train/000001", "train/000002", "train/000003"]
    assert all("not a readable picture" in row["reason"] for row in rejected)


def test_limit_means_accepted_pictures(copy: Path, tmp_path: Path) -> None:
    gather(Dataset(sources=(source(copy, limit=2),), trigger="x", minimum=2), tmp_path / "out")
    names = [row["name"] for row in records.read_jsonl(tmp_path / "out/manifest.jsonl")]
    assert sorted(names) == ["train/000000", "train/000004"]


def test_a_path_in_a_row_cannot_leave_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(GOOD[0])
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/inside.png").write_bytes(GOOD[1])
    paths = ["inside.png", str(secret), "../secret.png", "https://huggingface.co/x.png", "file:///etc/hostname", "."]
    cells = [{"bytes": None, "path": path} for path in paths]
    table = datasets.Dataset.from_dict(
        {"image": cells, "text": ["x"] * len(cells)},
        features=datasets.Features(
            {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
             "text": datasets.Value("string")}
        ),
    )  # fmt: skip
    table.to_parquet(tmp_path / "copy/train.parquet")
    assert [c.content for c in found(tmp_path / "copy")] == [GOOD[1], *[b""] * 5]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    as_parquet(rows_of(GOOD, caption="words"), tmp_path / "copy")
    assert [c.caption for c in found(tmp_path / "copy")] == [None] * 3
    assert found(tmp_path / "copy", caption_column="words")[1].caption == "a ninja, number 1"
    with pytest.raises(DataError, match=r"no caption_column 'wrods'; the columns are image, words"):
        found(tmp_path / "copy", caption_column="wrods")
    with pytest.raises(DataError, match=r"image_column 'words' holds none; the columns are image, words"):
        found(tmp_path / "copy", image_column="words")


@pytest.mark.parametrize("write", [as_parquet, as_saved_splits])
def test_a_split_that_is_not_there_is_told(write: Callable[[datasets.Dataset, Path], None], tmp_path: Path) -> None:
    write(rows_of(GOOD), tmp_path / "copy")
    with pytest.raises(DataError, match="trian"):
        found(tmp_path / "copy", split="trian")


def test_a_damaged_copy_is_told(copy: Path) -> None:
    damaged = copy / "data/train-00001-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{NAME} in .* cannot be read"):
        found(copy)
    with pytest.raises(DataError, match="there is no folder"):
        found(copy / "none")
    (copy / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        found(copy / "empty")


# Prints, for every source that it is given as JSON, what is found there and what is said.
FIND = """
import contextlib, io, json, sys
from sdlora.config.sources import HubSource
from sdlora.errors import SdloraError
from sdlora.stages.scrape import hub
from sdlora.stages.scrape.source import ScrapeContext
for asked in sys.argv[1:]:
    found, said = [], io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            for c in hub.find(HubSource.model_validate_json(asked), ScrapeContext()):
                found.append(f"{c.name} {c.revision} {c.caption} {c.licence}")
        except SdloraError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    print(json.dumps([found, said.getvalue()]))
"""


def offline(cache: Path, *asked: dict[str, Any], **env: object) -> list[tuple[list[str], str]]:
    """What is found and said for each, in a process of its own: the hub's client reads its settings on import."""
    settings = {**os.environ, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    settings |= {key: str(value) for key, value in env.items()}
    command = [sys.executable, "-c", FIND, *(source(None, **options).model_dump_json() for options in asked)]
    done = subprocess.run(command, env=settings, text=True, capture_output=True, check=True, timeout=300)
    return [(found, said) for found, said in map(json.loads, done.stdout.splitlines())]


@pytest.mark.workflow
def test_the_hubs_cache_is_enough_and_pins_the_commit(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / f"datasets--{NAME.replace('/', '--')}"
    snapshot = cached / "snapshots" / COMMIT
    as_parquet(rows_of(GOOD), snapshot)
    (snapshot / "README.md").write_text(CARD, encoding="utf-8")
    records.write_text(cached / "refs/main", COMMIT)
    (found, said), (same, nothing_said), (none, refused) = offline(
        tmp_path, {}, {"revision": COMMIT}, {"revision": "v9"}
    )
    assert found == same == [f"train/{n:06d} {COMMIT} a ninja, number {n} cc-by-nc-sa-4.0" for n in range(3)]
    assert f"{NAME} at main is commit {COMMIT} today and can move" in said
    assert "note" not in nothing_said
    assert not none and "v9" in refused, "another revision is not this one"


@pytest.mark.workflow
@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": 1}, {"HF_HUB_OFFLINE": 0, "HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_that_cannot_be_reached_is_told(tmp_path: Path, env: dict[str, Any]) -> None:
    ((found, said),) = offline(tmp_path, {}, **env)
    assert not found
    message = said.splitlines()[-1]
    assert message.startswith(f"MissingError: {NAME} at main is not in the hub's cache and the hub cannot be reached")
    assert f"hf download {NAME} --repo-type dataset --local-dir FOLDER" in message and "local: FOLDER" in message


@pytest.fixture
def a_hub(copy: Path) -> Iterator[Hub]:
    files = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    files |= {"load.py": b"raise SystemExit('executed')", "weights.safetensors": b"x"}
    with serving({NAME: (COMMIT, files)}) as hub:
        yield hub


@pytest.mark.workflow
def test_a_download_is_of_one_commit_and_of_data_only(a_hub: Hub, tmp_path: Path) -> None:
    ((lines, said),) = offline(tmp_path, {}, **a_hub.env)
    assert len(lines) == 6 and lines[5] == f"train/000005 {COMMIT} a ninja, number 5 cc-by-nc-sa-4.0", said
    assert not [path for path in a_hub.log if path.endswith((".py", ".safetensors"))]
    ((again, _),) = offline(tmp_path, {})
    assert again == lines, "the next time without a network"


@pytest.mark.workflow
def test_what_the_hub_does_not_have_is_told(a_hub: Hub, tmp_path: Path) -> None:
    said = {
        "a/b": "DataError: the hub has no dataset 'a/b', or it is private",
        "gated/b": "MissingError: gated/b at main is gated: accept its terms",
    }
    asked = [{"repository": repository} for repository in said]
    *others, (_, of_no_revision) = offline(tmp_path, *asked, {"revision": "v9"}, **a_hub.env)
    for (_, told), message in zip(others, said.values(), strict=True):
        assert told.splitlines()[-1].startswith(message)
    assert of_no_revision.splitlines()[-1] == f"DataError: {NAME} has no revision 'v9'"


@pytest.mark.parametrize("name", ["naruto", "../..", "a/b/c", "a/..", " /x"])
def test_a_repository_is_owner_and_name(name: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        HubSource(kind="hub", repository=name)
