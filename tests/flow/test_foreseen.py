"""What a job would refuse is said before the first one: asked once, remembered, and by each job in the same words."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from small_set import edited
from training import settings

from sdlora import gpu, records
from sdlora.config.params import Base
from sdlora.config.sample import Hires, Sample
from sdlora.config.train import Pivotal, TextEncoder
from sdlora.errors import DataError, MissingError, ParamsError, SdloraError
from sdlora.flow import foreseen, plan
from sdlora.flow.foreseen import Foresight, Question
from sdlora.flow.recipe import Recipe
from sdlora.memory import preflight
from sdlora.models.forbidden import why_not

SD = Base(model=str(ROOT / "models/tiny-sd"), family="sd", size_px=64, captioner="-")
FLOW = {"scheduler": "flow_euler"}


@pytest.mark.parametrize(
    ("family", "train", "sample", "told"),
    [
        ("sd", {}, {}, None),
        ("sd", {"weighting": "min_snr", "pivotal": Pivotal(), "text_encoder": TextEncoder()}, {"clip_skip": 2}, None),
        ("sd3", {"text_encoder": TextEncoder()}, {**FLOW, "second_prompt": "a face"}, None),
        ("sd", {"timestep_shift": 2.0}, {}, "train.timestep_shift belongs to flow_matching"),
        ("sd", {}, FLOW, "sample.scheduler is flow_euler, which cannot draw"),
        ("sd", {}, {"second_prompt": "a face"}, "sample.second_prompt is for families with a second text encoder"),
        ("sd", {}, {"decode": "tiled", "hires": None, "base_px": 128}, "no larger than a tile, 64 px"),
        ("sd", {}, {"decode": "tiled", "hires": Hires(factor=1.5), "base_px": 128}, None),
        ("sd", {}, {"clip_skip": 12}, "sample.clip_skip is 12, but a text encoder has"),
        ("sd3", {"weighting": "debiased"}, FLOW, "train.weighting is debiased, which weighs by the signal-to-noise"),
        ("sd3", {"loss": "huber"}, FLOW, "train.huber_schedule is snr"),
        ("sd3", {"pivotal": Pivotal()}, FLOW, "train.pivotal: diffusers loads no learnt embeddings for family sd3"),
        ("sd3", {"compile": "blocks"}, FLOW, "does not say which blocks family sd3 repeats"),
        ("sd3", {}, {"scheduler": "ddim"}, "sample.scheduler is ddim, which cannot draw"),
        ("sd3", {}, {**FLOW, "clip_skip": 1}, "sample.clip_skip is 1"),
    ],
    ids=str,
)
def test_it_is_the_preflights_own_sentence(
    small_sd3: Base, family: str, train: dict[str, Any], sample: dict[str, Any], told: str | None
) -> None:
    sample = dict(sample)
    base = (SD if family == "sd" else small_sd3).model_copy(update={"size_px": sample.pop("base_px", 64)})
    drawn, trained = Sample(**sample), settings(**train)
    reason = why_not(Question.of(base, 64, drawn, trained))
    if told is None:
        assert reason == ""
        return
    assert told in reason
    with pytest.raises(SdloraError) as refused:
        preflight.check(trained, base, preflight.Demand((16, 16, 16)), device="cpu", drawing=(drawn, 64))
    assert str(refused.value) == reason


def test_a_scheduler_file_that_does_not_say_enough_is_foreseen(tmp_path: Path) -> None:
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        records.write_bytes(tmp_path / name, (Path(SD.model) / name).read_bytes())
    path = tmp_path / "scheduler/scheduler_config.json"
    records.write_json(path, {**records.read_json(path), "prediction_type": "sample"})
    base = SD.model_copy(update={"model": str(tmp_path)})
    assert why_not(Question.of(base, 64, Sample(), settings())).startswith(f"{path}: it says prediction_type: sample")
    assert why_not(Question.of(base, 64, Sample(), None)) == "", "who only draws does not ask it"
    asked = Question.of(SD, 64, Sample(), settings())
    strange = asked.model_copy(update={"scheduler": {**(asked.scheduler or {}), "beta_schedule": "none of diffusers'"}})
    assert why_not(strange) is None, "the job says it; of other bases there are answers"
    away = SD.model_copy(update={"model": "somebody/base"})
    assert why_not(Question.of(away, 64, Sample(clip_skip=12), None)) == "", "of the hub nothing is fetched"
    assert "cannot draw" in why_not(Question.of(away, 64, Sample(scheduler="flow_euler"), None))


@pytest.mark.parametrize("revision", [None, "v2", "c" * 40])
def test_a_base_of_the_hub_is_read_from_its_cache(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    base = SD.model_copy(update={"model": "somebody/base", "revision": revision})
    assert Question.of(base, 64, Sample(), None).scheduler is None
    cached = tmp_path / "hub/models--somebody--base"
    records.write_text(cached / "refs/main", "a" * 40)
    records.write_text(cached / "refs/v2", "b" * 40)
    for commit in "abc":
        records.write_json(cached / f"snapshots/{commit * 40}/scheduler/scheduler_config.json", {"is": commit})
    found = {None: "a", "v2": "b", "c" * 40: "c"}[revision]
    assert Question.of(base, 64, Sample(), None).scheduler == {"is": found}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Question]]:
    """What the process that imports torch would be asked; it says no to SNR weights."""
    found: list[list[Question]] = []

    def ask(questions: Sequence[Question]) -> list[str | None]:
        found.append([*questions])
        return ["no" if (q.training or {}).get("weighting") == "min_snr" else "" for q in questions]

    monkeypatch.setattr(foreseen, "_ask", ask)
    return found


def jobs(folder: Path, *changes: tuple[str, str]) -> dict[tuple[str, str], Recipe]:
    """The small project's jobs, by stage and name."""
    return {(job.stage, job.name): job for job in plan.jobs(edited(folder, *changes))}


def test_one_process_answers_for_all_and_is_asked_again_only_for_what_matters(
    tmp_path: Path, asked: list[list[Question]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = jobs(tmp_path)
    foresight = Foresight(found.values(), here=True)
    assert not asked, "a plan with nothing to do asks nothing"
    for job in found.values():
        foresight.check(job)
    assert [len(questions) for questions in asked] == [2], "versions a and b ask the same: of training and of drawing"
    for before, after in (("", ""), ("rank: 2", "rank: 8"), ("steps: 4", "steps: 6"), ("factor: 1.5", "factor: 1.25")):
        again = jobs(tmp_path, (before, after))
        Foresight(again.values(), here=True).check(again["train", "a"])
    assert len(asked) == 1
    other = jobs(tmp_path, ("rank: 2", "rank: 2, weighting: min_snr"))
    with pytest.raises(ParamsError, match=r"^no$"):
        Foresight(other.values(), here=True).check(other["train", "a"])
    Foresight(other.values(), here=True).check(other["train", "b"])
    assert [len(questions) for questions in asked] == [2, 1]


def test_what_nobody_could_answer_is_asked_again(
    tmp_path: Path, asked: list[list[Question]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = jobs(tmp_path)
    ask = foreseen._ask
    monkeypatch.setattr(foreseen, "_ask", lambda questions: [None for _ in ask(questions)])
    for _ in range(2):
        Foresight(found.values(), here=True).check(found["train", "a"])
    assert [len(questions) for questions in asked] == [2, 2]


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("Traceback (most recent call last):\n    ^^^^\nImportError: no torch\n", "ImportError: no torch"),
        ("", "the process that was asked ended with -9"),
    ],
)
def test_why_nobody_could_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: str, said: str
) -> None:
    """Without torch, or if the process is killed."""
    monkeypatch.chdir(tmp_path)
    done = subprocess.CompletedProcess([], 1 if stderr else -9, "", stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = jobs(tmp_path)
    Foresight(found.values(), here=True).check(found["train", "a"])
    assert capsys.readouterr().err == f"note: what the bases cannot do is said by each job: {said}\n"


def test_weights_that_could_run_code_are_told_for_each_job_that_reads_them(
    tmp_path: Path, asked: list[list[Question]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("other-blip", "other-vae"):
        shutil.copytree(ROOT / "models/tiny-blip", tmp_path / "own" / name)
        (tmp_path / f"own/{name}/model.safetensors").rename(tmp_path / f"own/{name}/pytorch_model.bin")
    captioned = jobs(tmp_path, ("captioner: models/tiny-blip", "captioner: own/other-blip"))
    refused = [job.stage for job in captioned.values() if _refuses(job, captioned)]
    assert refused == ["caption"]
    encoded = jobs(tmp_path, ("size_px: 64,", "size_px: 64, vae: own/other-vae,"))
    refused = [job.stage for job in encoded.values() if _refuses(job, encoded)]
    assert {*refused} == {"encode", "train", "sample", "choose"}


@pytest.mark.parametrize(("before", "after", "said", "stages"), [
    ("model: models/tiny-sd", "model: own", "bases.<name>.model: the folder 'own' has no model_index.json",
     {"encode", "train", "sample", "choose"}),
    ("captioner: models/tiny-blip", "captioner: own", "bases.<name>.captioner: the folder 'own' has no config.json",
     {"caption"}),
    ("model: models/tiny-sd", "model: own/mine.safetensors",
     "bases.<name>.model: there is no file or folder 'own/mine.safetensors'", {"encode", "train", "sample", "choose"}),
    ("captioner: models/tiny-blip", "captioner: ./tiny-blop",
     "bases.<name>.captioner: there is no file or folder './tiny-blop', and no model of the hub has such a name",
     {"caption"}),
    ("captioner: models/tiny-blip", "captioner: Salesforce/blip-image-captioning-base", "", set()),
    ("defaults:\n", "defaults:\n  caption: {by: none}\n", "", set()),
])  # fmt: skip
def test_a_folder_that_is_no_model_is_told_before_the_first_job(
    before: str, after: str, said: str, stages: set[str], tmp_path: Path, asked: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records.write_text(tmp_path / "own/unet/config.json", "{}")
    found, refused = jobs(tmp_path, (before, after)), set()
    for job in found.values():
        try:
            Foresight(found.values(), here=False).check(job)
        except SdloraError as error:
            assert str(error).startswith(said)
            refused.add(job.stage)
    assert refused == stages


def _refuses(job: Recipe, found: dict[tuple[str, str], Recipe]) -> bool:
    try:
        Foresight(found.values(), here=True).check(job)
    except DataError as error:
        return "pytorch_model.bin: only .safetensors" in str(error)
    return False


def test_a_machine_is_looked_at_only_where_the_job_runs_there(
    tmp_path: Path, asked: list[list[Question]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "found", lambda: None)
    found = jobs(tmp_path, ("    train: {rank: 2}", "    train: {rank: 2, mixed_precision: fp16}\n    animate: {}"))
    for stage, said in (("train", "mixed_precision fp16 needs a GPU"), ("animate", "animate.dtype is fp16, which")):
        with pytest.raises(MissingError, match=said):
            Foresight(found.values(), here=True).check(found[stage, "a"])
        Foresight(found.values(), here=False).check(found[stage, "a"])


@pytest.mark.parametrize(
    ("change", "card", "said", "stages"),
    [
        (("", ""), {"kernels": False}, "no kernels for V100", {"caption", "encode", "train", "sample", "choose"}),
        (("size_px: 64,", "size_px: 64, dtype: bf16,"), {}, "has no bf16", {"train", "sample", "choose"}),
        (
            ("size_px: 64,", "size_px: 64, dtype: bf16, defaults: {train: {mixed_precision: fp16}},"),
            {}, "set bases.<name>.dtype: fp16, in which is drawn, too", {"sample", "choose"},
        ),
        (("defaults:\n", "defaults:\n  encode: {dtype: bf16}\n"), {}, "set encode.dtype: fp16 or fp32", {"encode"}),
        (
            ("defaults:\n  train: {", "defaults:\n  encode: {dtype: bf16}\n  train: {cache_latents: ram, "),
            {}, "set encode.dtype: fp16 or fp32", {"encode", "train"},
        ),
        (("size_px: 64,", "size_px: 64, dtype: bf16,"), {"bf16": True}, "", set()),
    ],
    ids=["kernels", "bf16", "drawn in bf16", "encoded in bf16", "encoded while training", "has bf16"],
)  # fmt: skip
def test_what_a_card_cannot_do_is_told_for_each_job_that_computes_on_it(
    tmp_path: Path, asked: list[list[Question]], monkeypatch: pytest.MonkeyPatch, change: tuple[str, str],
    card: dict[str, bool], said: str, stages: set[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    old = gpu.Gpu("V100", 2**34, (7, 0), **{"bf16": False, **card})
    monkeypatch.setattr(gpu, "found", lambda: old)
    monkeypatch.setattr(gpu, "is_likely", lambda: True)
    found = jobs(tmp_path, change)
    refused = set()
    for job in found.values():
        try:
            Foresight(found.values(), here=True).check(job)
        except MissingError as error:
            assert said in str(error)
            refused.add(job.stage)
    assert refused == stages


def test_a_token_needs_a_letter_of_the_trigger(tmp_path: Path) -> None:
    miku = ("trigger: captain", "trigger: 初音ミク")
    edited(tmp_path, miku)
    with pytest.raises(
        ParamsError, match=r"a\.train\.pivotal: its token .* and '初音ミク' of datasets\.small has none"
    ):
        edited(tmp_path, miku, ("rank: 2", "rank: 2, pivotal: {}"))
