"""A third family, as docs/families.md shows it: prompts are told by the penultimate layer ("clip skip 2")."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sdlora.models.family import Conditioning
from sdlora.models.sd import StableDiffusion


class ClipSkip(StableDiffusion):
    """Stable Diffusion 1.x trained on the text encoder's last layer but one, normalised."""

    draw_options = {"clip_skip": 1}  # noqa: RUF012  so that diffusers draws as it was trained
    kohya = replace(StableDiffusion.kohya, clip_skip=2)

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """`context` (B, 77, D)."""
        encoder = self.pipeline.text_encoder
        states = encoder(tokens["text_encoder"], output_hidden_states=True).hidden_states
        return {"context": getattr(encoder, "text_model", encoder).final_layer_norm(states[-2])}
