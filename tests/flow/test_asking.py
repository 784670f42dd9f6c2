"""What jobs ask a cluster for: predicted once, and never less than was asked for before there was a prediction."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_set import edited

from sdlora import records
from sdlora.config.train import Prior
from sdlora.flow import asking, plan
from sdlora.memory import ram
from sdlora.memory.demand import demand_of_version
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.sample.recipe import DrawingRecipe
from sdlora.stages.train import texts
from sdlora.stages.train.recipe import TrainRecipe


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the preflight is asked, and what it answers: `says`, or nothing, and then why."""
    found: dict[str, Any] = {"words": [], "says": 0}

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        found["words"].append(words[-3:])
        fails = found["says"] is None
        return subprocess.CompletedProcess(words, int(fails), f"{found['says']}\n", "error: it cannot" if fails else "")

    monkeypatch.setattr(subprocess, "run", run)
    asking._predicted.cache_clear()
    return found


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Any]:
    """By stage and version; a and b draw alike, and c draws two pictures at once."""
    monkeypatch.chdir(tmp_path)
    params = edited(tmp_path, ("  b:\n", "  c: {sample: {batch_size: 2}}\n  b:\n"))
    kinds = (DrawingRecipe, TrainRecipe)
    return {(job.stage, job.wildcards["version"]): job for job in plan.jobs(params) if isinstance(job, kinds)}


@pytest.mark.parametrize(("says", "mib"), [(30_000, 30_000), (5_000, 16_000)])
def test_drawing_asks_for_what_is_predicted(
    jobs: dict[tuple[str, str], Any], asked: dict[str, Any], says: int, mib: int
) -> None:
    asked["says"] = says
    assert [asking.drawing_mib(jobs[key]) for key in (("sample", "a"), ("choose", "a"), ("sample", "b"))] == [mib] * 3
    assert asked["words"] == [["preflight", "a", "--drawing-ram"]], "of all that draw alike once"
    assert asking.drawing_mib(jobs["sample", "c"]) == mib
    assert asked["words"][1:] == [["preflight", "c", "--drawing-ram"]]
    asked["says"] = 2_300
    assert asking.training_mib(jobs["train", "a"]) == 2_300


def test_encoding_asks_for_what_is_predicted(
    jobs: dict[tuple[str, str], Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    params = edited(tmp_path, ("  b:\n", "  c: {fit: {method: bucket, size_px: 48}}\n  b:\n"))
    found = [job for job in plan.jobs(params) if isinstance(job, EncodeRecipe)]
    assert [job.wildcards["fit"] for job in found] == ["pad-edge-64", "pad-edge-48", "bucket-edge-48"]
    versions = [plan.version_of(params, **job.wildcards) for job in found]
    assert versions == ["a", "c", "c"]
    asked["says"] = 2_300
    assert [asking.encoding_mib(job, name) for job, name in zip(found, versions, strict=True)] == [2_300] * 3
    assert asked["words"][0] == ["preflight", "a", "--encoding-ram"] and len(asked["words"]) == 3
    asked["says"] = None
    other = found[0].model_copy(update={"base_identity": "another"})
    assert asking.encoding_mib(other, "a") == 8_000


@pytest.mark.parametrize(("option", "value", "mib"), [("mask", "user", 1), ("cache_latents", "ram", 8)])
def test_a_training_asks_for_what_it_keeps_of_each_picture_as_soon_as_they_are_known(
    tmp_path: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, option: str, value: str, mib: int
) -> None:
    """1 KiB of a mask and 8 of latents at 64 px, for each picture and side."""
    monkeypatch.chdir(tmp_path)
    setting = ("defaults:\n  train: {", f"defaults:\n  train: {{cache_text: none, {option}: {value}, ")
    params = edited(tmp_path, setting, ("trigger: captain\n", "trigger: captain\n    masks: alpha\n"))
    (job,) = (one for one in plan.jobs(params) if isinstance(one, TrainRecipe) and one.wildcards["version"] == "a")
    rows = [{"id": str(n // 2), "split": "train", "mirrored": bool(n % 2), "text": "captain"} for n in range(2048)]
    kept = []
    for number, (name, found) in enumerate((("made", []), ("../manifest.jsonl", rows), ("train/metadata.jsonl", rows))):
        records.write_jsonl(tmp_path / job.dataset / name, found)
        kept.append(ram.demand(params, "a").in_ram // 2**20)
        asked["says"] = 2_000 + number
        assert asking.training_mib(job) == asked["says"], "asked anew"
    assert kept == [0, mib, 2 * mib]
    if mib == 1:
        card = [ram.beside_a_card(params.versions["a"], params.bases["tiny"], kept)["train"] for kept in (0, 2**30)]
        assert card[1] - card[0] == pytest.approx(1.1 * 1024, abs=100)


def test_captioning_asks_for_as_many_pictures_as_are_captioned_at_once(tmp_path: Path) -> None:
    def asks(settings: str) -> int:
        params = edited(tmp_path, ("defaults:\n", f"defaults:\n  caption: {{{settings}}}\n"))
        (job,) = (job for job in plan.jobs(params) if isinstance(job, CaptionRecipe))
        return asking.captioning_mib(job)

    assert asks("num_beams: 1") == asks("batch_size: 1") == 6_000
    assert asks("batch_size: 33") == asks("batch_size: 11, num_beams: 3") == 6_000 + 32 * 55


def test_what_cannot_be_predicted_is_said_once_and_asked_again_by_the_next_run(
    jobs: dict[tuple[str, str], Any], asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked["says"] = None
    assert [asking.drawing_mib(jobs[stage, "a"]) for stage in ("sample", "choose")] == [16_000] * 2
    assert asking.training_mib(jobs["train", "a"]) == 24_000
    assert capsys.readouterr().err.splitlines() == [
        "note: version a asks for 16000 MiB: error: it cannot", "note: version a asks for 24000 MiB: error: it cannot"
    ]  # fmt: skip
    asking._predicted.cache_clear()
    asked["says"] = 20_000
    assert asking.drawing_mib(jobs["sample", "a"]) == asking.training_mib(jobs["train", "a"]) == 20_000


def test_a_training_asks_for_its_captions_as_soon_as_they_are_known(
    jobs: dict[tuple[str, str], Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    """Without latents' files, embeddings are what a training of many pictures holds: 236 KB a caption of SD 1.5's."""
    job, params = jobs["train", "a"], edited(tmp_path)
    rows = [{"id": str(n), "split": "reference" if n == 3 else "train", "mirrored": False} for n in range(4)]
    counts = []
    for name, found in (("made", []), ("../manifest.jsonl", rows), ("train/metadata.jsonl", [*rows, rows[0]])):
        said = [{**row, "text": f"captain {n % 2}"} for n, row in enumerate(found)]
        records.write_jsonl(tmp_path / job.dataset / name, said)
        counts.append((asking.captions_in(job.dataset), ram.demand(params, "a").captions))
        asked["says"] = 2_000 + len(counts)
        assert [asking.training_mib(job) for _ in range(2)] == [asked["says"]] * 2
    assert counts == [(0, 0), (3, 3), (2, 2)] and len(asked["words"]) == 3

    def demand(captions: int, **changes: Any) -> int:
        version = params.versions["a"]
        train = version.train.model_copy(update=changes)
        version = version.model_copy(update={"train": train})
        return demand_of_version(version, params.bases[version.base], captions).captions

    assert [demand(100_000, cache_text=one) for one in ("ram", "disk", "none")] == [100_000, texts.OPEN, 0]
    assert demand(5, prior=Prior(prompt="a head")) == 6


def test_what_was_predicted_otherwise_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PACKAGE", tmp_path)
    found = set()
    for code in ("1", "22"):
        records.write_text(tmp_path / "memory/prediction.py", code)
        asking._predicting.cache_clear()
        found.add(asking.kept("train"))
    asking._predicting.cache_clear()
    assert len(found) == 2
