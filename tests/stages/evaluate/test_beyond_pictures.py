"""Metrics that look at more than a sample and its reference: validation loss, drift, prompt recall."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from helpers import ROOT
from PIL import Image
from training import random_lora

from sdlora import choices, records
from sdlora.config.params import Base
from sdlora.images.pictures import png_bytes
from sdlora.lora.foreign import write_layers
from sdlora.lora.names import FILE_NAME
from sdlora.stages.evaluate.learner import LEVELS, Learner
from sdlora.stages.evaluate.metric import Metric, Pixels
from sdlora.stages.evaluate.prompt_recall import attributes
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.sample.sample import Prompt

CAPTION = "captain, red background"


def reference(number: int) -> Pixels:
    path = ROOT / f"data/embedded/captain/references/{number:03d}.png"
    return np.asarray(Image.open(path).convert("RGB").resize((64, 64)))


def metric(name: str) -> Metric:
    found: Metric = choices.pick(choices.METRICS, name)
    return found


def test_the_validation_loss_is_trainings_at_fixed_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sd: Base
) -> None:
    """One picture at a time, noised by diffusers' own scheduler; the LoRA changes it, and leaves no trace."""
    learner = Learner(small_sd, 1.0, 1)
    pictures, prompts = [reference(1), reference(2), reference(1)], [CAPTION] * 3
    before = metric("validation_loss")(pictures, pictures, prompts, learner=learner)
    assert before[0] == before[2] != before[1]
    asked = []
    own = learner.model.predict
    monkeypatch.setattr(learner.model, "predict", lambda *told: asked.append(told) or own(*told))
    learner.losses(pictures[:1], prompts[:1])
    ((noisy, timesteps, conditioning),) = asked
    assert len(noisy) == LEVELS and len(set(timesteps.tolist())) > 1
    scheduler = DDPMScheduler.from_config(learner.model.pipeline.scheduler.config)
    clean = learner.model.encode_images(torch.from_numpy(pictures[0].copy()).permute(2, 0, 1)[None] / 127.5 - 1)[0]
    losses = []
    for one, level in zip(noisy, timesteps, strict=True):
        share = scheduler.alphas_cumprod[level]
        noise = (one - share.sqrt() * clean[0]) / (1 - share).sqrt()
        with torch.no_grad():
            predicted = own(one[None], level[None], {"context": conditioning["context"][:1]})[0]
        losses.append(float((predicted - noise).square().mean()))
    assert before[0] == pytest.approx(np.mean(losses), rel=1e-3)
    lora = write_layers(tmp_path / FILE_NAME, random_lora(learner.model, ("to_q", "to_v")).layers, learner.model)
    learner.use(lora)
    assert (learner.losses(pictures, prompts) != before).all()
    learner.use(None)
    assert (learner.losses(pictures, prompts) == before).all()


def test_drift_is_the_distance_to_step_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("results/a/samples")
    rows = []
    for step, number in ((0, 1), (100, 1), (200, 2)):
        file = f"step-{step}/r.png"
        records.write_bytes(folder / file, png_bytes(Image.fromarray(reference(number))))
        rows.append({"step": step, "reference": "r", "seed": 42, "file": file})
    records.write_jsonl(folder / "untriggered.jsonl", rows)
    recipe = EvaluateRecipe.model_construct(wildcards={"version": "a"})
    drift = metric("effnet_lite0_drift")
    assert drift.prepare is not None
    at = drift.prepare(recipe)
    pictures = [reference(3)]
    found = [float(drift(pictures, pictures, ["x"], **at(row["step"], [row]))[0]) for row in rows]
    assert found[0] == found[1] == 0 < found[2]


@pytest.mark.parametrize(
    ("text", "without"),
    [("captain, red hat", "red hat"), ("Captain with a hat", "with a hat"), ("captain", ""), ("captains", "captains")],
)
def test_a_prompt_without_its_trigger(text: str, without: str) -> None:
    assert Prompt("r", text, 1).without("captain") == Prompt("r", without, 1)


def test_a_trigger_that_ends_in_no_letter_is_left_out() -> None:
    prompt = Prompt("r", "hatsune_miku_(vocaloid), solo", 1)
    assert prompt.without("Hatsune_Miku_(vocaloid)").text == "solo"


def test_prompt_recall_counts_what_the_captioner_finds() -> None:
    wanted = attributes("captain, gray spiky hair, teal background, small", "captain")
    assert wanted == [frozenset({"gray", "spiky", "hair"}), frozenset({"teal", "background"}), frozenset({"small"})]
    sentence = attributes("captain a man with a red hat and a blue shirt", "captain")
    assert sentence == [frozenset({word}) for word in ("blue", "hat", "man", "red", "shirt")]
    picture = reference(1)

    def recall(prompt: str, seen: str) -> float:
        found = metric("prompt_recall")([picture], [picture], [prompt], describe=lambda _: seen, trigger="captain")
        return float(found[0])

    assert recall("captain, gray hair, teal background", "captain, gray short hair, navy background") == 0.5
    assert recall("captain, gray hair", "captain, gray background, red hair") == 0, "the words of one phrase"
    assert recall("captain, gray hair", "gray hair") == recall("captain", "anything") == 1
