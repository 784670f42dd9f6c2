"""Drawing: how many at once, and what is drawn again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from small_set import edited
from training import random_lora, small_base

from sdlora import records
from sdlora.config.evaluate import Evaluate
from sdlora.config.params import Version
from sdlora.config.sample import Hires, Sample
from sdlora.errors import DataError
from sdlora.flow import plan, store
from sdlora.images.pictures import png_bytes
from sdlora.lora.foreign import write_layers
from sdlora.lora.names import EMBEDDINGS, FILE_NAME
from sdlora.memory.prediction import draw_phase
from sdlora.models import load_model
from sdlora.stages.choose.choose import choose_version
from sdlora.stages.choose.recipe import ChooseRecipe
from sdlora.stages.sample import sample
from sdlora.stages.sample.recipe import SampleRecipe
from sdlora.stages.sample.sample import Painter, Prompt, draw, parts_of, prompts_of, sample_version

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(f"{n:03d}", text, 42) for n, text in enumerate(("captain, red background", "critter", "dylan face"))]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settings(batch_size: int) -> Sample:
    return Sample(inference_steps=3, batch_size=batch_size, hires=Hires(factor=1.5, denoising_strength=0.7))


def counted(batch_size: int) -> tuple[list[Any], int]:
    """All pictures of `PROMPTS`, and how often the UNet was asked."""
    painter = Painter(small_base(), settings(batch_size), 64)
    painter.use(None)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    painter._adapter.denoiser.register_forward_pre_hook(count)  # type: ignore[union-attr]
    drawn = []
    for first in range(0, len(PROMPTS), batch_size):
        drawn += painter.draw(PROMPTS[first : first + batch_size])
    return drawn, calls


def recipe_of(settings: Sample) -> SampleRecipe:
    return SampleRecipe(
        wildcards={"version": "a"}, sample=settings, base=small_base(), base_identity="sha256:tiny", size_px=64,
        threads=1, references=Path(), trigger=None, validation=0.5,
    )  # fmt: skip


def many(folder: Path, count: int = 10) -> list[Prompt]:
    """A set of so many references, each with its picture, and a seed of theirs."""
    rows = [{"id": f"{n:03d}", "split": "reference", "caption": f"captain, {n} hats"} for n in range(count)]
    records.write_jsonl(folder / "captions.jsonl", rows)
    for number, row in enumerate(rows):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        records.write_bytes(folder / "pictures" / f"{row['id']}.png", png_bytes(Image.fromarray(pixels)))
    return prompts_of(rows, [42])


def choose_recipe(settings: Sample, chosen: int | None) -> ChooseRecipe:
    return ChooseRecipe(
        **dict(recipe_of(settings)), chosen=chosen, drawing_code="a", drawing_software={}, learning=None,
        describing=None, networks={}, evaluate=Evaluate(metrics=("psnr_db",), choose_by="psnr_db"),
    )  # fmt: skip


QUICK = Sample(inference_steps=2, batch_size=5, report_seeds=(42, 43))


def test_pictures_are_the_same_drawn_at_once_or_in_two_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for way in ("at once", "in two stages"):
        (tmp_path / way).mkdir()
        monkeypatch.chdir(tmp_path / way)
        prompts, recipe, out = many(Path()), recipe_of(QUICK), Path("results/a")
        if way == "at once":
            draw(recipe, prompts, {0: None}, out / "samples")
        else:
            sample_version(recipe)
            assert len([*out.rglob("*.png")]) == 5, "the references that choose alone"
            draw(recipe, prompts_of(parts_of(recipe)[1], QUICK.report_seeds), {0: None}, out / "test_samples")
        found[way] = {path.name: path.read_bytes() for path in out.rglob("*.png")}
    assert len(found["at once"]) == 10 and len(found["in two stages"]) == 5 + 5 * 2
    assert found["at once"].items() <= found["in two stages"].items()


def test_another_choice_and_a_further_seed_draw_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    many(Path())
    model, out = load_model(small_base(), "cpu"), Path("results/a")
    for step, layer in enumerate(("to_q", "to_k", "to_v"), start=1):
        target = out / f"checkpoints/step-{step:06d}" / FILE_NAME
        write_layers(target, random_lora(model, (layer,)).layers, model)

    def kept() -> int:
        return len([*store.STORE.glob("sample/*/*.png")])

    sample_version(recipe_of(QUICK).model_copy(update={"code": "a"}))
    assert kept() == 4 * 5
    drawn = {path: path.stat().st_mtime_ns for path in out.glob("samples/**/*.png")}
    choose_version(choose_recipe(QUICK, None))
    rule = records.read_json(out / "choice.json")["by_rule"]
    assert kept() == 4 * 5 + 2 * 5 * 2
    assert {row["step"] for row in records.read_jsonl(out / "test_samples/index.jsonl")} == {0, rule}
    other = rule % 3 + 1
    choose_version(choose_recipe(QUICK, other))
    choice = records.read_json(out / "choice.json")
    assert (choice["by_rule"], choice["chosen"]) == (rule, other)
    assert kept() == 4 * 5 + 3 * 5 * 2
    assert {row["step"] for row in records.read_jsonl(out / "test_samples/index.jsonl")} == {0, rule, other}
    choose_version(choose_recipe(QUICK.model_copy(update={"report_seeds": (42, 43, 44)}), None))
    assert kept() == 4 * 5 + 3 * 5 * 2 + 2 * 5
    assert len([*out.glob("test_samples/**/*.png")]) == 2 * 5 * 3
    assert {path: path.stat().st_mtime_ns for path in out.glob("samples/**/*.png")} == drawn, "nothing else was written"
    with pytest.raises(DataError, match="chosen is 4, but the checkpoints are 1, 2, 3"):
        choose_version(choose_recipe(QUICK, 4))


def test_fewer_than_ten_references_all_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    many(Path(), 9)
    validation, test = parts_of(recipe_of(QUICK))
    assert (len(validation), test) == (9, [])


def test_step_0_is_drawn_before_a_lora_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    many(Path(), 2)
    for step in (1, 2):
        records.write_bytes(Path(f"results/a/checkpoints/step-{step:06d}") / FILE_NAME, b"no LoRA")
    with pytest.raises(SafetensorError):
        sample_version(recipe_of(QUICK))
    assert sorted(path.parent.name for path in Path("results/a/samples").rglob("*.png")) == ["step-000000"] * 2


def test_how_many_report_says_nothing_about_what_is_screened() -> None:
    """A recipe of `sample` has the report's seeds at their default, so that they are no part of its identity."""
    assert "report_seeds" not in recipe_of(Sample()).identity()["sample"]
    assert recipe_of(Sample()).drawing() == recipe_of(Sample(seeds=(1, 2), max_references=3)).drawing()
    ours, theirs = recipe_of(QUICK).model_copy(update={"code": "a"}), choose_recipe(QUICK, None)
    assert ours.drawing() == theirs.drawing(), "so the store has one name for a picture"
    assert theirs.drawing() == choose_recipe(QUICK, 3).drawing() and theirs.digest() != choose_recipe(QUICK, 3).digest()


def test_a_batch_draws_the_same_pictures_with_fewer_calls() -> None:
    alone, calls_alone = counted(1)
    together, calls_together = counted(3)
    assert calls_alone == 3 * calls_together
    for one, other in zip(alone, together, strict=True):
        assert one.size == other.size == (96, 96)
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2
    assert alone[0].tobytes() != alone[1].tobytes()


def test_a_lost_picture_is_drawn_again_with_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": p.reference, "split": "reference", "caption": p.text} for p in PROMPTS]
    records.write_jsonl(tmp_path / "captions.jsonl", rows)
    recipe, out = recipe_of(settings(2)), Path("results/a/samples")
    sample_version(recipe)
    pictures = {path.name: path.read_bytes() for path in out.rglob("*.png")}
    assert len(pictures) == 3
    (kept,) = (path.parent for path in tmp_path.glob(f"{store.STORE}/sample/*/hashes.json"))
    times = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.png")}
    (kept / PROMPTS[0].file_name).unlink()
    sample_version(recipe)
    again = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.png")}
    assert [again[p.file_name] != times[p.file_name] for p in PROMPTS] == [True, True, False]
    assert {path.name: path.read_bytes() for path in out.rglob("*.png")} == pictures


def test_the_preflight_counts_the_batch() -> None:
    def activations(batch_size: int) -> int:
        version = Version.model_validate({"base": "tiny", "dataset": "d", "sample": {"batch_size": batch_size}})
        phase = draw_phase(version.sample, version.fit.size_px or 64, small_base(), torch.device("cpu"))
        return phase.parts["activations"]

    assert activations(8) > 4 * activations(1)


def test_files_for_other_tools_do_not_change_what_is_drawn(tmp_path: Path) -> None:
    """A renamed version, or one whose files have another type, takes its pictures from the store."""
    lora = tmp_path / FILE_NAME
    lora.write_bytes(b"lora")
    prompts = [Prompt("r1", "captain", 42)]
    keys = [sample._key(recipe_of(settings(1)), lora, prompts)]
    (tmp_path / "a-step000002-comfyui-a1111.safetensors").write_bytes(b"for tools")
    keys.append(sample._key(recipe_of(settings(1)), lora, prompts))
    (tmp_path / EMBEDDINGS).write_bytes(b"embedding")
    keys.append(sample._key(recipe_of(settings(1)), lora, prompts))
    lora.write_bytes(b"another")
    keys.append(sample._key(recipe_of(settings(1)), lora, prompts))
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize(("factor", "drawn_with"), [(0.5, 3.5), (1.0, 7.0), (0.1, 1.0)])
def test_a_base_may_be_drawn_with_less_guidance(
    factor: float, drawn_with: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = edited(tmp_path, ("  tiny: {", f"  tiny: {{guidance_scale_factor: {factor}, "))
    jobs = [job for job in plan.jobs(params) if isinstance(job, SampleRecipe | ChooseRecipe)]
    assert {job.sample.guidance_scale for job in jobs} == {drawn_with}
    assert {job.base.guidance_scale_factor for job in jobs} == {1.0}, "said once: the factor alone makes nothing stale"
