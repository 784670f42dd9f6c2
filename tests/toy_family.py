"""A third family, as docs/families.md shows it: prompts are told by the penultimate layer ("clip skip 2")."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdlora.models.family import Conditioning
from sdlora.models.sd import StableDiffusion


class ClipSkip(StableDiffusion):
    """Stable Diffusion 1.x trained on the text encoder's last layer but one, normalised."""

    kohya = replace(StableDiffusion.kohya, clip_skip=2)

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """`context` (B, 77, D)."""
        encoder = self.pipeline.text_encoder
        states = encoder(tokens["text_encoder"], output_hidden_states=True).hidden_states
        return {"context": getattr(encoder, "text_model", encoder).final_layer_norm(states[-2])}

    def prompting(self, prompts: Sequence[str], guidance_scale: float, negative_prompt: str | None) -> dict[str, Any]:
        """The pipelines get embeddings, of the negative prompt too, so that drawing agrees with training."""
        told = self.encode_prompts([*prompts])["context"]
        negative = self.encode_prompts([negative_prompt or ""] * len(prompts))["context"]
        return {"prompt_embeds": told, "negative_prompt_embeds": negative, "guidance_scale": guidance_scale}
