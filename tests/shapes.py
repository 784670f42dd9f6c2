"""Small pipelines of the real classes with random weights, for tests."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from helpers import ROOT
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdlora.config.params import Base


def small_vae(**settings: object) -> AutoencoderKL:
    """A random VAE with three levels: latents are a quarter of the picture."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(16, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=16, sample_size=64, **settings,
    )  # fmt: skip


def save_small_sdxl(folder: Path) -> Base:
    """Write SDXL's pipeline with two different small text encoders."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer")

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, projection_dim=width, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=8 * 6 + 48, cross_attention_dim=80,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=small_vae(force_upcast=True), text_encoder=CLIPTextModel(text(32)),
        text_encoder_2=CLIPTextModelWithProjection(text(48)), tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(), force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder)  # fmt: skip
    return Base(model=str(folder), family="sdxl", size_px=64, captioner="-")
