"""Stable Diffusion XL: two text encoders, pooled embedding, size and crop conditioning."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor

from sdlora.models.family import Conditioning, ModelFamily
from sdlora.models.names import BaseVersion, KohyaForm, NoKohyaForm
from sdlora.models.published import CLIP_L, OPENCLIP_BIG_G, SCHEDULER, VAE

_UNET: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_VERSION = BaseVersion(  # A1111 takes what starts with `sdxl_` for SDXL
    "sdxl_base_v1-0", "SDXL", "stable-diffusion-xl-v1-base/lora", "https://github.com/Stability-AI/generative-models"
)
#: Modules outside the blocks, and inside a resnet: diffusers' name and the original one.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def original_name(module: str, layers_per_block: int) -> str:
    """A UNet module of diffusers under its name in Stability AI's implementation of SDXL."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    match = re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)", module)
    if match:
        side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind in ("downsamplers", "upsamplers"):  # at the end of their block
            layer = layers_per_block
        place = block * (layers_per_block + 1) + layer
        if kind == "downsamplers":
            return f"input_blocks.{place + 1}.0.op"
        number = {"resnets": 0, "attentions": 1, "upsamplers": 2}[kind]
        where = f"input_blocks.{place + 1}" if side == "down_blocks" else f"output_blocks.{place}"
        return f"{where}.{number}.{_RESNET.get(rest, rest)}"
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module)
    if match:
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{_RESNET.get(match[3], match[3])}"
    raise NoKohyaForm(f"unet.{module} has no name in the original implementation")


class StableDiffusionXL(ModelFamily):
    """The UNet is told both encoders' penultimate states, the pooled embedding and six sizes (px).

    Podell et al., arXiv 2307.01952. Both encoders read the same prompt.
    """

    text2img = StableDiffusionXLPipeline
    img2img = StableDiffusionXLImg2ImgPipeline
    context_tokens = {"text_encoder": 77, "text_encoder_2": 77}  # noqa: RUF012
    lora_encoders = ("text_encoder", "text_encoder_2")
    pivotal_encoders = ("text_encoder", "text_encoder_2")
    kohya = KohyaForm(
        {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
        lambda cross_attention_dim: _VERSION,
        original_name,
        clip_skip=2,
    )
    hub_tag = "stable-diffusion-xl"
    fp16_vae_overflows = True
    published = {  # noqa: RUF012  SDXL base 1.0
        "unet": ("UNet2DConditionModel", _UNET),
        "vae": ("AutoencoderKL", {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}),
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", OPENCLIP_BIG_G),
    }
    published_scheduler = SCHEDULER
    published_size_px = 1024

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """`context` (B, 77, D1 + D2) and `pooled` (B, D2)."""
        first = self.pipeline.text_encoder(tokens["text_encoder"], output_hidden_states=True)
        second = self.pipeline.text_encoder_2(tokens["text_encoder_2"], output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"context": context, "pooled": second.text_embeds}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """As every family; `conditioning["sizes"]` (B, 6) may say that pictures were cropped.

        The six are original height and width, top and left of the crop, target height and width.
        """
        pooled = conditioning["pooled"]
        sizes = conditioning["sizes"] if "sizes" in conditioning else self._whole(noisy)
        added = {"text_embeds": pooled, "time_ids": sizes}  # fp32: bf16 has no 1365
        output: Tensor = self.denoiser(noisy, timesteps, conditioning["context"], added_cond_kwargs=added).sample
        return output

    def prompting(self, prompts: Sequence[str], guidance_scale: float, negative_prompt: str | None) -> dict[str, Any]:
        """As every family; an empty negative prompt is none, for which SDXL was trained with zeros and not with ""."""
        return super().prompting(prompts, guidance_scale, negative_prompt or None)

    def _whole(self, noisy: Tensor) -> Tensor:
        """Sizes of whole pictures: fitted, never cropped."""
        factor = self.pipeline.vae_scale_factor
        height, width = noisy.shape[-2] * factor, noisy.shape[-1] * factor
        sizes = noisy.new_zeros((len(noisy), 6), dtype=torch.float32)  # filled on the device: a copy would wait for it
        sizes[:, 0::4], sizes[:, 1::4] = height, width
        return sizes
