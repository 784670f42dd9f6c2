"""The SDXL adapter on a pipeline of the real classes with small random networks."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from test_train import examples
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.params import Base, Flip, Sample
from sdlora.sample import Painter, Prompt
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
