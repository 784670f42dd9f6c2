"""Caches of latents and text embeddings: each gives the same bits, and none does work twice."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate.state import AcceleratorState
from small_set import CAPTION, ENCODE, captain, edited, examples_of, make_set
from training import recipe_of, settings, small_base

from sdlora import records
from sdlora.config.params import Encode, Fit, Flip
from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.flow import plan, store
from sdlora.flow.store import KEPT_DAYS
from sdlora.lora.names import FILE_NAME
from sdlora.models import ModelFamily
from sdlora.stages.encode import shards
from sdlora.stages.encode.encode import INDEX, encode_dataset
from sdlora.stages.train import texts
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.loop import Run
from sdlora.stages.train.recipe import TrainRecipe
from sdlora.stages.train.run import prepare, train_version
from sdlora.stages.train.texts import text_key

pytestmark = pytest.mark.slow

CACHES = ("disk", "ram", "none")


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the store lies in the working directory
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shapes, mirrored, one caption each; with latents on disk. Never changed by a test."""
    place = tmp_path_factory.mktemp("made")
    pictures = {"a.png": captain(1), "b.png": captain(2), "c.png": captain(3, (64, 64))}
    captions = [CAPTION, "captain, brown dress", "captain"]
    folder = make_set(place, pictures, Fit(method="bucket", size_px=64), captions=captions, encode=False)
    with chdir(place):
        encode_dataset(ENCODE.model_copy(update={"base": small_base()}), folder)
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of that set."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "fitted"


def recipe(train: Train, folder: Path) -> TrainRecipe:
    resolved = train.model_copy(update={"cache_text": train.text_cache})
    encode = None if train.cache_latents == "disk" else Encode()
    return recipe_of(resolved, folder, encode=encode, base=small_base())


def trained(folder: Path, **changes: object) -> bytes:
    """The last LoRA of a run from recipe to file."""
    AcceleratorState._reset_state(reset_partial_state=True)  # another file's training may have had another precision
    train = settings(steps=3, checkpoint_every=3, batch_size=2, **changes)
    train_version(recipe(train, folder))
    return (Path("results/a/checkpoints/step-000003") / FILE_NAME).read_bytes()


@pytest.fixture(scope="module")
def plain(made: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The LoRA of the caches' defaults, trained elsewhere: no test finds it in its store."""
    place = tmp_path_factory.mktemp("plain")
    shutil.copytree(made, place, dirs_exist_ok=True)
    with chdir(place):
        return trained(place / "fitted")


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_latents_give_the_same_bytes_without_files(folder: Path, plain: bytes, cache: str) -> None:
    shutil.rmtree(folder / "latents")
    assert trained(folder, cache_latents=cache) == plain
    assert not (folder / "latents").exists()
    with pytest.raises(DataError, match="no latents to learn from"):
        trained(folder, rank=3)


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_texts_give_the_same_bytes(folder: Path, plain: bytes, cache: str) -> None:
    assert trained(folder, cache_text=cache) == plain
    assert len(list(Path(".sdlora/store").glob("text/*.safetensors"))) == (4 if cache == "disk" else 0)


def test_nothing_cached_at_all_gives_the_same_bytes(folder: Path, plain: bytes) -> None:
    assert trained(folder, cache_latents="none", cache_text="none") == plain


def prepared(folder: Path, **changes: object) -> Run:
    train = settings(**changes)
    return prepare(train, Flip(), small_base(), examples_of(folder, train.cache_latents), None, "sha256:tiny")


def test_a_batch_is_the_same_from_every_cache(folder: Path) -> None:
    first = draw_batch(prepared(folder, batch_size=2), 1, 0)
    for latents in CACHES:
        for text in CACHES:
            batch = draw_batch(prepared(folder, batch_size=2, cache_latents=latents, cache_text=text), 1, 0)
            assert torch.equal(batch.latents, first.latents), latents
            assert batch.conditioning.keys() == first.conditioning.keys()
            assert all(torch.equal(batch.conditioning[name], first.conditioning[name]) for name in first.conditioning)


@pytest.mark.parametrize(("latents", "text"), [("disk", "ram"), ("none", "ram"), ("ram", "none"), ("none", "none")])
def test_only_what_is_needed_stays_in_memory(folder: Path, latents: str, text: str) -> None:
    pipeline = prepared(folder, cache_latents=latents, cache_text=text).model.pipeline
    assert (pipeline.vae is not None) == (latents == "none")
    assert (pipeline.text_encoder is not None) == (text == "none")
    assert pipeline.unet is not None


class Counted:
    """A real method of a model, counting its calls."""

    def __init__(self, method: Callable[..., object]) -> None:
        self.method, self.calls = method, 0

    def __call__(self, *inputs: object) -> object:
        self.calls += 1
        return self.method(*inputs)


def test_caption_dropout_is_cached(folder: Path) -> None:
    run = prepared(folder, caption_dropout=0.5, batch_size=8, cache_text="ram")
    empty = run.conditioning_of([""])["context"]
    context = torch.cat([draw_batch(run, step, 0).conditioning["context"] for step in range(2)])
    found = sum(torch.equal(row, empty[0]) for row in context)
    assert 0 < found < len(context)


def test_versions_share_text_and_only_new_captions_are_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(captions: list[str], **changes: object) -> str:
        pictures = {f"{n}.png": captain(n + 1) for n in range(len(captions))}
        folder = make_set(tmp_path, pictures, captions=captions, mirror=False)
        capsys.readouterr()
        prepared(folder, cache_text="disk", **changes)
        return capsys.readouterr().out.strip()

    assert said(["captain", "captain, dress"]) == "train: 2 captions encoded, 0 already in the cache"
    assert said(["captain", "captain, dress"], rank=4) == "train: 0 captions encoded, 2 already in the cache"
    assert said(["captain", "captain, dress", "captain, hat"]).startswith("train: 1 captions encoded, 2 already")
    newest = max((store.STORE / "text").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    assert said(["captain", "captain, dress", "captain, hat"]).startswith("train: 1 captions encoded, 2 already")


def test_embeddings_that_nobody_asks_for_are_deleted_in_time(folder: Path) -> None:
    prepared(folder, cache_text="disk")
    used = sorted((store.STORE / "text").iterdir())
    young, old = (used[0].with_name(f"{name}.safetensors") for name in ("young", "old"))
    for path, days in (*((path, 1000) for path in used), (young, KEPT_DAYS - 1), (old, KEPT_DAYS + 1)):
        path.touch()
        os.utime(path, 2 * (time.time() - days * 24 * 60 * 60,))
    prepared(folder, cache_text="disk")
    assert sorted((store.STORE / "text").iterdir()) == sorted([*used, young])


@pytest.mark.skipif(sys.platform != "linux", reason="the maps of a process are read from /proc")
@pytest.mark.parametrize("limit", [4, 40])
def test_embeddings_on_disk_are_not_all_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """100,000 captions would be more maps than a process may have (vm.max_map_count)."""
    monkeypatch.setattr(texts, "OPEN", limit)
    monkeypatch.setattr(texts, "text_key", lambda model, text, identity: text)
    model = SimpleNamespace(
        device=torch.device("cpu"), encode_prompts=lambda asked: {"context": torch.full((1, 4096), float(asked[0]))}
    )
    every = [str(number) for number in range(20)]
    conditioning_of = texts.on_disk(cast("ModelFamily", model), every, "weights", tmp_path)
    for _ in range(2):
        assert [row[0].item() for row in conditioning_of(every)["context"]] == [*range(20)]
        assert Path("/proc/self/maps").read_text("utf-8").count(str(tmp_path)) == min(limit, 20)


def test_a_texts_key_is_its_content_and_what_encodes_it(folder: Path) -> None:
    model = prepared(folder, cache_text="none").model
    keys = [text_key(model, text, weights) for text in ("a", "b") for weights in ("x", "y")]
    model.dtype = torch.bfloat16
    keys.append(text_key(model, "a", "x"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.append(text_key(model, "a", "x"))
    torch.set_num_threads(threads)
    assert len(set(keys)) == 6


def latents_of(folder: Path) -> dict[str, torch.Tensor]:
    """The mean of each picture's latents, by key."""
    below = folder / "latents/tiny"
    return {row["key"]: shards.read(below / row["file"])[row["key"]][0] for row in records.read_jsonl(below / INDEX)}


def test_adding_a_picture_encodes_that_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = {"a.png": captain(1), "b.png": captain(2)}
    folder = make_set(tmp_path, pictures)
    before = latents_of(folder)
    assert "encode: 4 new, 0 already in the cache" in capsys.readouterr().out
    make_set(tmp_path, {**pictures, "c.png": captain(3)})
    said = capsys.readouterr().out
    assert "fit: 1 new, 2 kept" in said and "encode: 2 new, 4 already in the cache" in said, "both its orientations"
    after = latents_of(folder)
    assert len(after) == 6 and all(torch.equal(after[key], value) for key, value in before.items())
    # another caption or mask leaves latents alone
    make_set(tmp_path, {**pictures, "c.png": captain(3)}, captions=["captain, x", "captain, y", "captain, z"])
    assert "encode: 0 new, 6 already" in capsys.readouterr().out
    encode_dataset(ENCODE.model_copy(update={"threads": 2}), folder)
    assert "encode: 6 new, 0 already" in capsys.readouterr().out, "what latents depend on is in their key"


@pytest.mark.parametrize("cache", CACHES)
def test_the_plan_asks_for_latents_only_where_they_are_read(tmp_path: Path, cache: str) -> None:
    params = edited(tmp_path, ("run: [a, b]", "run: [a]"), ("rank: 2", f"rank: 2, cache_latents: {cache}"))
    train = next(job for job in plan.jobs(params) if job.stage == "train" and job.name == "a")
    inputs = [path.name for path in train.inputs]
    assert inputs == ["flip.json", *(["encode-tiny.json"] if cache == "disk" else [])]
    assert (train.encode is None) == (cache == "disk")
    assert any(path.name == "encode-tiny.json" for path in plan.dataset_records(params)) == (cache == "disk")


def test_live_text_is_encoded_one_by_one(folder: Path) -> None:
    run = prepared(folder, shuffle_tags=True, batch_size=3)
    counted = Counted(run.model.encode_prompts)
    run.model.encode_prompts = counted  # type: ignore[assignment, method-assign]
    contexts = draw_batch(run, 0, 0).conditioning["context"]
    assert counted.calls == len(contexts) == 3
