"""The SDXL adapter on a pipeline of the real classes with small random networks."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from small_set import captain, make_set
from test_train import examples
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.params import Base, Flip, Sample
from sdlora.sample import Painter, Prompt
from sdlora.train.batch import draw_batch
from sdlora.train.dataset import Example, Geometry, load_examples
from sdlora.train.export import FILE_NAME, write_lora
from sdlora.train.loop import train_loop
from sdlora.train.run import prepare
from sdlora.train_section import Train


@pytest.fixture(scope="module")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Base:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=8 * 6 + 32, cross_attention_dim=64,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=16, sample_size=64,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(),
        force_zeros_for_empty_prompt=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline.save_pretrained(folder)
    return Base(model=str(folder), family="sdxl", size_px=64, captioner="-")


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

    hook = run.adapter.pipeline.unet.register_forward_pre_hook(look, with_kwargs=True)
    batches = [draw_batch(run, step, 0) for step in range(2)]
    with torch.no_grad():
        outputs = [run.adapter.predict(b.latents, b.timesteps, b.conditioning) for b in batches]
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
            output = run.adapter.predict(batches[0].latents, batches[0].timesteps, conditioning)
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
    assert (run.adapter.pipeline.text_encoder_2 is None) == (text == "disk")
    assert draw_batch(run, 0, 0).conditioning["sizes"].tolist() == [[64, 112, 0, 0, 64, 64]]


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
    write_lora(tmp_path, run.adapter, train)
    sample = Sample(inference_steps=2, scheduler="euler", negative_prompt="blurry")
    painter, prompt = Painter(small_sdxl, sample, 64), Prompt("r", "captain", 1)
    painter.use(None)
    base = painter.draw(prompt)
    painter.use(tmp_path / FILE_NAME)
    changed = painter.draw(prompt)
    painter.use(None)
    assert base.size == (64, 64)
    assert base.tobytes() != changed.tobytes()
    assert painter.draw(prompt).tobytes() == base.tobytes()
