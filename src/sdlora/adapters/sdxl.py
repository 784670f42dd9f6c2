"""Stable Diffusion XL: two text encoders, pooled embedding, size and crop conditioning."""

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from sdlora.adapters.base import Adapter, Conditioning


class StableDiffusionXL(Adapter):
    """The UNet is told both encoders' penultimate states, the pooled embedding and six sizes (px)."""

    text2img = StableDiffusionXLPipeline
    img2img = StableDiffusionXLImg2ImgPipeline

    def parts(self) -> list[nn.Module]:
        return [*super().parts(), self.pipeline.text_encoder_2]

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`context` (B, 77, D1 + D2) and `pooled` (B, D2)."""
        context, _, pooled, _ = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"context": context, "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        sizes = conditioning.get("sizes")
        if sizes is None:  # whole squares of the base's own size
            factor = self.pipeline.vae_scale_factor
            height, width = noisy.shape[-2] * factor, noisy.shape[-1] * factor
            sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device).repeat(len(noisy), 1)
        added = {"text_embeds": conditioning["pooled"], "time_ids": sizes.to(conditioning["pooled"].dtype)}
        output: Tensor = self.pipeline.unet(noisy, timesteps, conditioning["context"], added_cond_kwargs=added).sample
        return output
