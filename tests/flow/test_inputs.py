"""What the DAG starts from."""

import re
from pathlib import Path

import pytest
from helpers import ROOT

from sdlora.config.animate import XT_COMMIT, Animate
from sdlora.config.dataset import Dataset
from sdlora.config.evaluate import Evaluate
from sdlora.config.load import load
from sdlora.config.params import Base, Lora, Params
from sdlora.config.sources import FolderSource
from sdlora.errors import DataError
from sdlora.flow import inputs

HUB = {"model": "somebody/base", "family": "sd", "size_px": 512, "captioner": "models/tiny-blip"}


def params_with(**base: object) -> Params:
    """The shipped settings with v8 alone, on a base of the hub."""
    shipped = load(ROOT / "params.yaml")
    bases = {**shipped.bases, "tiny": Base.model_validate({**HUB, **base})}
    return shipped.model_copy(update={"bases": bases, "run": ("v8",)})


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({}, ["bases.tiny.revision is not set, which means main: somebody/base can change"]),
        ({"revision": "v1"}, ["bases.tiny.revision is v1: somebody/base can change under that name"]),
        ({"revision": "a" * 40}, []),
        ({"revision": "a" * 40, "vae": "b/c"}, ["bases.tiny.vae_revision is not set"]),
        ({"model": "models/tiny-sd", "captioner": "b/c"}, ["bases.tiny.captioner_revision is not set"]),
        ({"model": "models/tiny-sd", "revision": "v1"},
         ["bases.tiny.revision is v1, but models/tiny-sd lies on this machine, where a model has no rev"]),
        ({"revision": "a" * 40, "captioner_revision": "v1"}, ["bases.tiny.captioner_revision is v1, but"]),
    ],
)  # fmt: skip
def test_what_can_move_on_the_hub_is_said(
    base: dict[str, object], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = [*inputs.moving(params_with(**base))]
    assert len(found) == len(said) and all(words in note for words, note in zip(said, found, strict=True))


def test_networks_that_measure_and_films_can_move_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load(ROOT / "params.yaml")
    asked = {"metrics": ("psnr_db", "clip_t", "cmmd"), "choose_by": "psnr_db"}
    versions = {
        "v7": {"evaluate": Evaluate(**asked, clip_model="a/clip"), "animate": Animate()},
        "v8": {
            "evaluate": Evaluate(**asked, clip_model="b/clip", dinov2_model="b/dino"),
            "animate": Animate(model="a/b"),
        },
    }
    changed = {name: shipped.versions[name].model_copy(update=update) for name, update in versions.items()}
    params = shipped.model_copy(update={"versions": {**shipped.versions, **changed}, "run": ("v7", "v8")})
    said = "is not set, which means main: {} can change under that name"
    assert [note.removeprefix("note: ").partition(",")[0] for note in inputs.moving(params)] == [
        "evaluate.clip_revision is not set"
    ] * 2 + ["animate.revision is not set"]
    notes = "".join(inputs.moving(params))
    assert all(said.format(model) in notes for model in ("a/clip", "b/clip", "a/b")), "cmmd's is pinned by default"


@pytest.mark.parametrize("of_film", [False, True])
def test_a_revision_of_a_network_on_this_machine_is_refused(of_film: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped, local = load(ROOT / "params.yaml"), "models/tiny-blip"

    def params(revision: str | None) -> Params:
        film, network = Animate(model=local, revision=revision), Evaluate(clip_model=local, clip_revision=revision)
        version = shipped.versions["v8"].model_copy(update={"animate": film} if of_film else {"evaluate": network})
        return shipped.model_copy(update={"versions": {**shipped.versions, "v8": version}, "run": ("v8",)})

    option = "animate.revision" if of_film else "evaluate.clip_revision"
    said = f"versions.v8.{option} is 'v1', but 'models/tiny-blip' lies on this machine, where a model has no revisions"
    with pytest.raises(DataError, match=f"^{re.escape(said)}: leave {re.escape(option)} out"):
        inputs.check(params("v1"))
    inputs.check(params(None))


def test_a_rate_of_another_optimizer_is_doubted_with_prodigy() -> None:
    shipped = load(ROOT / "params.yaml")
    assert not [*inputs.doubtful(shipped)]
    for rate, said in ((1e-4, True), (1.0, False), (0.5, False)):
        train = shipped.versions["v8"].train.model_copy(update={"optimizer": "prodigy", "learning_rate": rate})
        v8 = shipped.versions["v8"].model_copy(update={"train": train})
        notes = [*inputs.doubtful(shipped.model_copy(update={"versions": {**shipped.versions, "v8": v8}}))]
        assert bool(notes) == said
        assert all("versions.v8.train.learning_rate is 0.0001, by which prodigy multiplies" in note for note in notes)


def test_references_that_nothing_measures_are_told() -> None:
    shipped = load(ROOT / "params.yaml").model_copy(update={"run": ("v8",)})
    name = shipped.versions["v8"].dataset
    for held_out, said in ((50, ["note: datasets.captain.held_out is 50, but v8 measures 10"]), (10, [])):
        dataset = shipped.datasets[name].model_copy(update={"held_out": held_out})
        notes = [*inputs.doubtful(shipped.model_copy(update={"datasets": {**shipped.datasets, name: dataset}}))]
        assert [note.partition(" of them: ")[0] for note in notes] == said


def test_what_a_job_starts_from_is_missed_whether_run_has_it_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load(ROOT / "params.yaml")
    lost = shipped.versions["v8"].model_copy(update={"lora": (Lora(file="gone.safetensors"),)})
    params = shipped.model_copy(update={"versions": {**shipped.versions, "lost": lost}})
    inputs.check(params)
    inputs.check_of(params, {"version": "v8", "step": "4"})
    with pytest.raises(DataError, match=r"^versions\.lost\.lora: there is no file or folder 'gone\.safetensors'"):
        inputs.check_of(params, {"version": "lost"})


@pytest.mark.parametrize("file", ["results/own/own.safetensors", "results/own/checkpoints", "data/../results/own"])
def test_a_lora_from_elsewhere_does_not_lie_where_its_version_is_written(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The version's own files would take its place."""
    monkeypatch.chdir(ROOT)
    shipped = load(ROOT / "params.yaml")
    own = shipped.versions["v8"].model_copy(update={"lora": (Lora(file=file),)})
    params = shipped.model_copy(update={"versions": {**shipped.versions, "own": own}})
    with pytest.raises(DataError, match=rf"^versions\.own\.lora: '{file}' lies in results/own, .* copy it elsewhere"):
        inputs.check_of(params, {"version": "own"})


def test_a_folder_of_hidden_files_holds_no_picture(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/1.png").touch()
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/.DS_Store").touch()
    shipped = load(ROOT / "params.yaml")
    mine = Dataset(sources=(FolderSource(kind="folder", path=str(tmp_path)),), trigger="mine")
    params = shipped.model_copy(update={"datasets": {"mine": mine}})
    with pytest.raises(DataError, match=r"datasets\.mine\.sources\[0\]\.path: .* holds no picture"):
        inputs.check_of(params, {"dataset": "mine"})
    (tmp_path / "deep/er/1.png").touch()
    inputs.check_of(params, {"dataset": "mine"})


def test_captions_of_a_users_own_that_are_not_there_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load(ROOT / "params.yaml")
    name = shipped.versions["v8"].dataset
    lost = shipped.datasets[name].model_copy(update={"captions_override": "data/mine.jsonl"})
    params = shipped.model_copy(update={"datasets": {**shipped.datasets, name: lost}, "run": ("v8",)})
    with pytest.raises(DataError, match=rf"datasets\.{name}\.captions_override: there is no file 'data/mine.jsonl'"):
        inputs.check(params)
    inputs.check(shipped)


def test_the_shipped_bases_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shipped = load(ROOT / "params.yaml")
    versions = {name: shipped.versions["v8"].model_copy(update={"base": name}) for name in shipped.bases}
    assert not [*inputs.moving(shipped.model_copy(update={"versions": versions, "run": tuple(versions)}))]


def test_the_films_own_model_is_pinned_and_another_is_not() -> None:
    assert Animate().revision == XT_COMMIT and Animate(revision="main").revision == "main"
    assert Animate(model="a/b").revision is None
