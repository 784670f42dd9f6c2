"""Stable Diffusion 1.x and 2.x, and the embedded base: one text encoder."""

from collections.abc import Mapping

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from sdlora.models.family import Conditioning, ModelFamily, Tokens


class StableDiffusion(ModelFamily):
    """The UNet is told the text encoder's last hidden states."""

    text2img = StableDiffusionPipeline
    img2img = StableDiffusionImg2ImgPipeline
    load_options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012

    def tokenize(self, prompts: list[str]) -> Tokens:
        """`text_encoder` (B, 77); tokens of several vectors (textual inversion) are written out."""
        prompts = self.pipeline.maybe_convert_prompt(prompts, self.pipeline.tokenizer)
        tokens = self.pipeline.tokenizer(
            prompts, padding="max_length", max_length=self.context_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        return {"text_encoder": tokens.to(self.device)}

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """`context` (B, 77, D)."""
        return {"context": self.pipeline.text_encoder(tokens["text_encoder"]).last_hidden_state}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(noisy, timesteps, conditioning["context"]).sample
        return output
