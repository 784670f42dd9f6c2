"""The SDXL model on a pipeline of the real classes with small random networks."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_project
from safetensors import safe_open
from shapes import save_small_sdxl, small_vae
from small_set import captain, make_set
from training import ABOUT, examples

from sdlora.config.params import Base, Flip
from sdlora.config.sample import Sample
from sdlora.config.train import Pivotal, TextEncoder, Train
from sdlora.lora import pivotal
from sdlora.lora.card import card
from sdlora.lora.diffusers_file import write_lora
from sdlora.lora.names import FILE_NAME
from sdlora.models import load_model
from sdlora.stages.sample.sample import Painter, Prompt
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.dataset import Example, Geometry, load_examples
from sdlora.stages.train.loop import train_loop
from sdlora.stages.train.run import prepare, write_checkpoint

# One version on the small pipeline, through every stage that a user's version goes through.
STAGES = """
base: small
dataset: small
run: [a]
threads: 1
bases:
  small: {model: models/small-sdxl, family: sdxl, size_px: 64, captioner: models/tiny-blip}
datasets:
  small:
    sources: [{kind: folder, path: data/embedded/small}]
    trigger: captain
    held_out: references
versions:
  a:
    train: {rank: 2, optimizer: adamw, steps: 2, checkpoint_every: 1, learning_rate: 1e-2, gradient_checkpointing: true}
    sample: {inference_steps: 2, max_references: 1, scheduler: euler, negative_prompt: blurry}
"""


def with_geometry() -> list[Example]:
    """Two latents shapes, from pictures of sizes of their own; one was cropped."""
    tall = Geometry((48, 80), (0, 0, 48, 80), (900, 1600), (0, 0))
    wide = Geometry((64, 64), (0, 0, 64, 64), (640, 300), (35, 0))
    made = []
    for number, place in enumerate((tall, wide)):
        shape = (4, place.size[1] // 4, place.size[0] // 4)
        source = torch.Generator().manual_seed(number)
        mean = torch.randn(shape, generator=source)
        made.append(Example(f"p{number}", (mean,), (torch.zeros(shape),), ("captain",), geometry=(place,)))
    return made


def test_sdxl_learns_each_pictures_own_sizes(small_sdxl: Base) -> None:
    train = Train(mixed_precision="no", rank=2, steps=2, checkpoint_every=2, optimizer="adamw", batch_size=2)
    run = prepare(train, Flip(), small_sdxl, with_geometry())
    told = []

    def look(module: torch.nn.Module, inputs: object, options: dict[str, dict[str, torch.Tensor]]) -> None:
        told.append(options["added_cond_kwargs"]["time_ids"])

    hook = run.model.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    batches = [draw_batch(run, step, 0) for step in range(2)]
    with torch.no_grad():
        outputs = [run.model.predict(b.latents, b.timesteps, b.conditioning) for b in batches]
    hook.remove()
    # original height and width, top and left of the crop, target height and width (arXiv 2307.01952, 2.2)
    rows = {tuple(row) for ids in told for row in ids.tolist()}
    assert rows == {(1600, 900, 0, 0, 80, 48), (300, 640, 0, 35, 64, 64)}
    assert {batch.latents.shape[-2:] for batch in batches} == {(20, 12), (16, 16)}
    # and it matters: the same latents with other sizes, and with none, are predicted otherwise
    other = {**batches[0].conditioning, "sizes": batches[0].conditioning["sizes"] * 2}
    none = {name: value for name, value in batches[0].conditioning.items() if name != "sizes"}
    for conditioning in (other, none):
        with torch.no_grad():
            output = run.model.predict(batches[0].latents, batches[0].timesteps, conditioning)
        assert not torch.equal(output, outputs[0])


@pytest.mark.parametrize(("latents", "text"), [("ram", "disk"), ("none", "none")])
def test_sdxl_learns_from_every_cache(
    small_sdxl: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latents: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_set(tmp_path, {"a.png": captain(1), "b.png": captain(2)}, encode=False)
    train = Train(
        mixed_precision="no", rank=2, steps=2, checkpoint_every=2, optimizer="adamw",
        cache_latents=latents, cache_text=text,
    )  # fmt: skip
    run = prepare(train, Flip(), small_sdxl, load_examples(folder, "x", latents), identity="sdxl")
    assert len(train_loop(run, None, lambda state: None)) == 2
    assert (run.model.pipeline.text_encoder_2 is None) == (text == "disk")
    assert draw_batch(run, 0, 0).conditioning["sizes"].tolist() == [[64, 112, 0, 0, 64, 64]]


@pytest.mark.slow
def test_sdxl_trains_saves_and_draws(small_sdxl: Base, tmp_path: Path) -> None:
    train = Train(
        mixed_precision="no",
        rank=2,
        steps=2,
        checkpoint_every=2,
        learning_rate=1e-2,
        optimizer="adamw",
        gradient_checkpointing=True,
    )
    run = prepare(train, Flip(), small_sdxl, examples())
    log = train_loop(run, None, lambda state: None)
    assert len(log) == 2
    write_lora(tmp_path, run.model, train)
    sample = Sample(inference_steps=2, scheduler="euler", negative_prompt="blurry")
    painter, prompt = Painter(small_sdxl, sample, 64), [Prompt("r", "captain", 1)]
    painter.use(None)
    (base,) = painter.draw(prompt)
    painter.use(tmp_path / FILE_NAME)
    (changed,) = painter.draw(prompt)
    painter.use(None)
    assert base.size == (64, 64)
    assert base.tobytes() != changed.tobytes()
    assert painter.draw(prompt)[0].tobytes() == base.tobytes()


@pytest.mark.slow
def test_a_learnt_trigger_leaves_each_caption_its_own_embedding(small_sdxl: Base, tmp_path: Path) -> None:
    """The published configs name a wrong end of the text, and the new token has the highest number."""
    train = Train(
        mixed_precision="no", rank=2, steps=1, checkpoint_every=1, optimizer="adamw", pivotal=Pivotal(learning_rate=0.1)
    )
    run = prepare(train, Flip(), small_sdxl, examples(), trigger="captain")
    plain = load_model(small_sdxl, "cpu").encode_prompts(["a hat"])["pooled"]
    with torch.no_grad():
        pooled = run.conditioning_of(["captain, left", "captain, right", "a hat"])["pooled"]
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    assert torch.allclose(pooled[2:], plain, atol=1e-5), "what does not say it is as before"
    train_loop(run, None, lambda state: None)
    write_lora(tmp_path, run.model, train)
    pivotal.write(tmp_path, run.model.pipeline, "captain")
    names: dict[str, Any] = {}
    text = card("a", train, small_sdxl, small_sdxl.model, ABOUT, {})
    lines = text.partition("```python\n")[2].partition("```")[0].replace(f"checkpoints/step-{1:06d}", str(tmp_path))
    exec(lines.strip().rpartition("\n")[0], names)  # up to the picture
    with torch.no_grad():
        expected = run.conditioning_of(["captain, left"])["pooled"]
        found = names["pipeline"].encode_prompt("<captain>, left", do_classifier_free_guidance=False)[2]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_every_prompt_of_a_picture_says_a_learnt_trigger(small_sdxl: Base, tmp_path: Path) -> None:
    model = load_model(small_sdxl, "cpu")
    train = Train(mixed_precision="no", rank=2, steps=1, checkpoint_every=1, optimizer="adamw")
    run = prepare(train, Flip(), small_sdxl, examples())
    write_lora(tmp_path, run.model, train)
    pivotal.add(model.pipeline, Pivotal(), "captain")
    for encoder in model.text_encoders().values():
        torch.nn.init.normal_(encoder.get_input_embeddings().vectors)
    pivotal.write(tmp_path, model.pipeline, "captain")
    for option in ("second_prompt", "negative_prompt", "second_negative_prompt"):
        pictures = []
        for said in ("captain, left", "<captain>, left"):
            sample = Sample(inference_steps=1, scheduler="euler", **{option: said})
            painter = Painter(small_sdxl, sample, 64)
            painter.use(tmp_path / FILE_NAME)
            painter._trigger = painter._trigger if said.startswith("captain") else None  # said by hand
            pictures.append(painter.draw([Prompt("r", "a hat", 1)])[0].tobytes())
        assert pictures[0] == pictures[1], option


def test_a_text_encoder_is_averaged_by_schedule_free(small_sdxl: Base, tmp_path: Path) -> None:
    """SDXL reads neither encoder's last layer, whose LoRA never has a gradient, nor an average of its own."""
    train = Train(
        mixed_precision="no", rank=2, steps=2, checkpoint_every=1, optimizer="schedulefree_adamw",
        lr_schedule="constant", text_encoder=TextEncoder(rank=2),
    )  # fmt: skip
    run = prepare(train, Flip(), small_sdxl, examples())
    assert len(train_loop(run, None, lambda state: write_checkpoint(run, tmp_path / str(state.step)))) == 2
    assert (tmp_path / "2" / FILE_NAME).is_file()


@pytest.mark.workflow
def test_sdxl_goes_through_the_stages(served: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", python=served)
    save_small_sdxl(project.folder / "models/small-sdxl")
    (project.folder / "params.yaml").write_text(STAGES)
    project.snakemake("results/a/samples")
    rows = list(csv.DictReader(project.read("results/a/train_log.csv").decode().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2"]
    with safe_open(project.folder / "results/a/checkpoints/step-000002" / FILE_NAME, framework="pt") as file:
        # gradients reach every layer: B starts at zero, and none of them is zero after two steps
        ends = [name for name in file.keys() if "lora_B" in name or "lora.up" in name]  # noqa: SIM118
        assert len(ends) == 4 * 2 * 8  # q, k, v, out; self and cross; 2 down, 2 middle, 4 up
        assert all(file.get_tensor(name).abs().sum() > 0 for name in ends)
    drawn = [project.folder / f"results/a/samples/step-{step:06d}" for step in (0, 1, 2)]
    pictures = [next(folder.glob("*.png")).read_bytes() for folder in drawn]
    assert len(set(pictures)) == 3


def test_prompts_are_encoded_as_the_pipeline_does(small_sdxl: Base) -> None:
    model = load_model(small_sdxl, "cpu")
    ours = model.encode_prompts(["captain, smiling", ""])
    with torch.no_grad():
        context, _, pooled, _ = model.pipeline.encode_prompt(
            ["captain, smiling", ""], do_classifier_free_guidance=False
        )
    assert ours["context"].shape == (2, 77, 32 + 48)
    assert torch.equal(ours["context"], context)
    assert torch.equal(ours["pooled"], pooled)


def test_sizes_are_told_to_the_pixel_in_bf16(small_sdxl: Base) -> None:
    """bf16 has no 1365: the sinusoid is taken of fp32, and cast afterwards, as diffusers does."""
    model = load_model(small_sdxl.model_copy(update={"dtype": "bf16"}), "cpu")
    told = []
    hook = model.denoiser.add_time_proj.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    sizes = torch.tensor([[1365, 901, 0, 35, 64, 64]], dtype=torch.float32)
    with torch.no_grad():
        noisy = torch.zeros(1, 4, 16, 16, dtype=torch.bfloat16)
        output = model.predict(noisy, torch.tensor([5]), {**model.encode_prompts(["a"]), "sizes": sizes})
    hook.remove()
    assert told[0].tolist() == sizes[0].tolist()
    assert output.dtype == torch.bfloat16


def test_gradients_reach_both_text_encoders(small_sdxl: Base) -> None:
    model = load_model(small_sdxl, "cpu")
    for encoder in model.text_encoders().values():
        encoder.requires_grad_(True)
    found = model.encode_tokens(model.tokenize(["captain"]))
    (found["context"].sum() + found["pooled"].sum()).backward()
    assert list(model.text_encoders()) == ["text_encoder", "text_encoder_2"]
    for encoder in model.text_encoders().values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_sizes_and_crops_reach_the_unet(small_sdxl: Base) -> None:
    model = load_model(small_sdxl, "cpu")
    noisy, steps, told = torch.zeros(2, 4, 16, 12), torch.tensor([5, 500]), model.encode_prompts(["a", "b"])
    with torch.no_grad():
        whole = model.predict(noisy, steps, told)
        same = model.predict(noisy, steps, {**told, "sizes": torch.tensor([[64, 48, 0, 0, 64, 48]] * 2)})
        cropped = model.predict(noisy, steps, {**told, "sizes": torch.tensor([[96, 48, 16, 0, 64, 48]] * 2)})
    assert torch.equal(whole, same)
    assert not torch.allclose(whole, cropped)


@pytest.mark.parametrize("safe", [False, True])
def test_a_vae_that_overflows_in_fp16_encodes_in_fp32(small_sdxl: Base, tmp_path: Path, safe: bool) -> None:
    """SDXL's own VAE says force_upcast; a repaired one that is configured in its place does not."""
    base = small_sdxl
    if safe:
        small_vae(force_upcast=False).save_pretrained(tmp_path)
        base = base.model_copy(update={"vae": str(tmp_path)})
    model = load_model(base, "cpu")
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    in_fp32 = model.encode_images(picture)[0]
    vae = model.pipeline.vae.to(torch.float16)
    ran = []
    hook = vae.encoder.register_forward_hook(lambda module, inputs, output: ran.append(output.dtype))
    found = model.encode_images(picture)[0]
    hook.remove()
    assert ran == [torch.float16 if safe else torch.float32]
    assert vae.dtype == torch.float16, "diffusers decodes fp16 latents with it"
    assert found.dtype == torch.float32
    assert torch.allclose(found, in_fp32, atol=1e-2)
