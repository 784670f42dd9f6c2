"""Stable Diffusion 1.x and 2.x, and the embedded base: one text encoder."""

from collections.abc import Mapping
from typing import Any

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from sdlora.models.family import Conditioning, ModelFamily
from sdlora.models.names import BaseVersion, KohyaForm
from sdlora.models.published import CLIP_L, SCHEDULER, VAE

_UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


def _version(cross_attention_dim: int) -> BaseVersion:
    """SD 2.x is told by another text encoder, of 1024 numbers a token."""
    if cross_attention_dim == 1024:
        return BaseVersion("sd_v2", "SD2", "stable-diffusion-v2/lora", "diffusers")
    return BaseVersion("sd_v1", "SD1", "stable-diffusion-v1/lora", "diffusers")


class StableDiffusion(ModelFamily):
    """The UNet is told the text encoder's last hidden states."""

    text2img = StableDiffusionPipeline
    img2img = StableDiffusionImg2ImgPipeline
    load_options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012
    kohya = KohyaForm({"unet": "lora_unet_", "text_encoder": "lora_te_"}, _version)
    hub_tag = "stable-diffusion"
    published = {  # noqa: RUF012  SD 1.5
        "unet": ("UNet2DConditionModel", _UNET),
        "vae": ("AutoencoderKL", {**VAE, "sample_size": 512, "scaling_factor": 0.18215}),
        "text_encoder": ("CLIPTextModel", CLIP_L),
    }
    published_scheduler = SCHEDULER

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """`context` (B, 77, D)."""
        return {"context": self.pipeline.text_encoder(tokens["text_encoder"]).last_hidden_state}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(noisy, timesteps, conditioning["context"]).sample
        return output
