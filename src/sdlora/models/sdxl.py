"""Stable Diffusion XL: two text encoders, pooled embedding, size and crop conditioning."""

from collections.abc import Mapping

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor

from sdlora.models.family import Conditioning, ModelFamily, Tokens


class StableDiffusionXL(ModelFamily):
    """The UNet is told both encoders' penultimate states, the pooled embedding and six sizes (px).

    Podell et al., arXiv 2307.01952. Both encoders read the same prompt.
    """

    text2img = StableDiffusionXLPipeline
    img2img = StableDiffusionXLImg2ImgPipeline
    text_encoder_names = ("text_encoder", "text_encoder_2")
    fp16_vae_overflows = True

    def tokenize(self, prompts: list[str]) -> Tokens:
        """`text_encoder` and `text_encoder_2`, each (B, 77): the two pad differently."""
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        options = {"padding": "max_length", "max_length": self.context_tokens, "truncation": True}
        return {
            name: tokenizer(
                self.pipeline.maybe_convert_prompt(prompts, tokenizer), **options, return_tensors="pt"
            ).input_ids.to(self.device)
            for name, tokenizer in zip(self.text_encoder_names, tokenizers, strict=True)
        }

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
        added = {"text_embeds": pooled, "time_ids": sizes.to(pooled.dtype)}
        output: Tensor = self.denoiser(noisy, timesteps, conditioning["context"], added_cond_kwargs=added).sample
        return output

    def _whole(self, noisy: Tensor) -> Tensor:
        """Sizes of whole pictures: fitted, never cropped."""
        factor = self.pipeline.vae_scale_factor
        height, width = noisy.shape[-2] * factor, noisy.shape[-1] * factor
        sizes = noisy.new_zeros((len(noisy), 6), dtype=torch.float32)  # filled on the device: a copy would wait for it
        sizes[:, 0::4], sizes[:, 1::4] = height, width
        return sizes
