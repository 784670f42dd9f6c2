"""Stable Diffusion 1.x and 2.x, and the embedded base: one text encoder."""

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from sdlora.adapters.base import Adapter, Conditioning


class StableDiffusion(Adapter):
    """The UNet is told the text encoder's last hidden states."""

    text2img = StableDiffusionPipeline
    img2img = StableDiffusionImg2ImgPipeline

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`context` (B, 77, D)."""
        prompts = self.pipeline.maybe_convert_prompt(prompts, self.pipeline.tokenizer)
        tokens = self.pipeline.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return {"context": self.pipeline.text_encoder(tokens.to(self.device)).last_hidden_state}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.pipeline.unet(noisy, timesteps, conditioning["context"]).sample
        return output
