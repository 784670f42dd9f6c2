"""Stable Diffusion 3 and 3.5: a transformer that learns flow matching, told by two CLIPs and a T5."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor

from sdlora.models.family import Conditioning, ModelFamily
from sdlora.models.loading import revision_option
from sdlora.models.objective import FlowMatching
from sdlora.models.published import CLIP_L, OPENCLIP_BIG_G, VAE
from sdlora.weights import BASE, UNREADABLE, unreadable

_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"
# Both streams of a block: the picture's and the text's (Esser et al., figure 2b).
_ATTENTION = ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
_TRANSFORMER: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
_T5_XXL: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


class StableDiffusion3(ModelFamily):
    """The transformer is told the CLIPs' penultimate states, T5's last after them, and the CLIPs' pooled embeddings.

    Esser et al., arXiv 2403.03206. All encoders read the same prompt. A base without T5 (`text_encoder_3: null` in
    its `model_index.json`) is told zeros in its place, as diffusers does.
    """

    text2img = StableDiffusion3Pipeline
    img2img = StableDiffusion3Img2ImgPipeline
    denoiser_name = "transformer"
    context_tokens = {"text_encoder": 77, "text_encoder_2": 77, _T5: 256}  # noqa: RUF012
    draw_options = {"max_sequence_length": 256}  # noqa: RUF012
    objectives = (FlowMatching,)
    targets = {  # noqa: RUF012
        "attention": _ATTENTION,
        "attention_feed_forward": (*_ATTENTION, *_FEED_FORWARD),
        "all": (*_ATTENTION, *_FEED_FORWARD, "norm1.linear", "norm1_context.linear", "context_embedder", "proj_out"),
    }
    lora_encoders = _CLIPS  # diffusers reads no LoRA on T5
    pivotal_encoders = ()  # diffusers' pipeline loads no learnt embeddings
    hub_tag = "stable-diffusion-3"
    published = {  # noqa: RUF012  SD 3 medium
        "transformer": ("SD3Transformer2DModel", _TRANSFORMER),
        "vae": (
            "AutoencoderKL",
            {**VAE, "sample_size": 1024, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
             "use_quant_conv": False, "use_post_quant_conv": False},
        ),
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", OPENCLIP_BIG_G),
        _T5: ("T5EncoderModel", _T5_XXL),
    }  # fmt: skip
    published_scheduler = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    published_size_px = 1024

    def _load_options(self) -> dict[str, Any]:
        """T5 is the largest part by far, so a folder may come without it; diffusers wants that said."""
        model, revision = self.base.model, self.base.revision
        try:
            index = self.text2img.load_config(model, **revision_option(model, revision))
        except UNREADABLE as error:
            raise unreadable(BASE, model, revision, error) from None
        left_out = (index.get(_T5) or [None])[0] is None
        return dict.fromkeys((_T5, "tokenizer_3")) if left_out else {}

    @property
    def resolution_multiple(self) -> int:
        """A patch of the transformer is a square of latent cells."""
        return int(self.pipeline.vae_scale_factor * self.denoiser_config.patch_size)

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """`context` (B, 77 + 256, D), the CLIPs' side by side and filled up with zeros to T5's width D; `pooled`."""
        found = [getattr(self.pipeline, name)(tokens[name], output_hidden_states=True) for name in _CLIPS]
        clip = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
        pooled = torch.cat([one.text_embeds for one in found], dim=-1)
        width = self.denoiser_config.joint_attention_dim
        if _T5 in tokens:
            t5 = getattr(self.pipeline, _T5)(tokens[_T5])[0]
        else:
            t5 = clip.new_zeros(len(clip), self.context_tokens[_T5], width)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return {"context": torch.cat([clip, t5], dim=-2), "pooled": pooled}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditioning["context"],
            pooled_projections=conditioning["pooled"],
        ).sample
        return output
