"""Drawing: how many at once, and what is drawn again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY

from sdlora import records
from sdlora.config.params import Hires, Sample, Version
from sdlora.flow import store
from sdlora.lora.names import EMBEDDINGS, FILE_NAME
from sdlora.memory.prediction import draw_phase
from sdlora.stages.sample import sample
from sdlora.stages.sample.recipe import SampleRecipe
from sdlora.stages.sample.sample import Painter, Prompt, sample_version

PROMPTS = [Prompt(f"{n:03d}", text, 42) for n, text in enumerate(("captain, red background", "critter", "dylan face"))]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settings(batch_size: int) -> Sample:
    return Sample(inference_steps=3, batch_size=batch_size, hires=Hires(factor=1.5, denoising_strength=0.7))


def counted(batch_size: int) -> tuple[list[Any], int]:
    """All pictures of `PROMPTS`, and how often the UNet was asked."""
    painter = Painter(TINY, settings(batch_size), 64)
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
        wildcards={"version": "a"}, sample=settings, base=TINY, base_identity="sha256:tiny", size_px=64, threads=1,
        references=Path(), trigger=None,
    )  # fmt: skip


@pytest.mark.slow
def test_a_batch_draws_the_same_pictures_with_fewer_calls() -> None:
    alone, calls_alone = counted(1)
    together, calls_together = counted(3)
    assert calls_alone == 3 * calls_together
    for one, other in zip(alone, together, strict=True):
        assert one.size == other.size == (96, 96)
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2
    assert alone[0].tobytes() != alone[1].tobytes()


@pytest.mark.slow
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
        return draw_phase(version.sample, version.fit.size_px or 64, TINY, torch.device("cpu")).parts["activations"]

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
