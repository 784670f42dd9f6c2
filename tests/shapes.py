"""Small pipelines of the real classes with random weights, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from helpers import ROOT, TINY
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from sdlora.config.params import Base
from sdlora.models.sdxl import StableDiffusionXL


def small_vae(**settings: object) -> AutoencoderKL:
    """A random VAE with three levels: latents are a quarter of the picture."""
    torch.manual_seed(1)
    values = {"block_out_channels": (16, 32, 32), "norm_num_groups": 16, "sample_size": 64, **settings}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, **values
    )


def save_small_svd(folder: Path) -> None:
    """Write Stable Video Diffusion's pipeline with small networks, as diffusers' own tests have them."""
    torch.manual_seed(0)
    levels = (32, 32, 32, 32)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=levels, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4, sample_size=64
    )
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), cross_attention_dim=32,
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=8,
        projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        sigma_max=700.0, sigma_min=0.002, timestep_spacing="leading", timestep_type="continuous",
        use_karras_sigmas=True, steps_offset=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=2, num_attention_heads=4, image_size=224,
        intermediate_size=37, patch_size=32,
    )  # fmt: skip
    StableVideoDiffusionPipeline(
        vae=vae, image_encoder=CLIPVisionModelWithProjection(vision), unet=unet, scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    ).save_pretrained(folder)  # fmt: skip


def save_small_sd(folder: Path) -> Base:
    """Write SD 1.5's pipeline with a small text encoder: a third of the operations of the embedded base."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=small_vae(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=PNDMScheduler.from_pretrained(TINY.model, subfolder="scheduler"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return Base(model=str(folder), family="sd", size_px=64, captioner="-")


def save_small_sdxl(folder: Path, depth: int = 2) -> Base:
    """Write SDXL's pipeline with two different small text encoders, and `depth` transformer blocks a layer."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer")

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, projection_dim=width, eos_token_id=2,  # as the published configs say, wrongly
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, depth), projection_class_embeddings_input_dim=8 * 6 + 48,
        cross_attention_dim=80,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=small_vae(force_upcast=True), text_encoder=CLIPTextModel(text(32)),
        text_encoder_2=CLIPTextModelWithProjection(text(48)), tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(), force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder)  # fmt: skip
    return Base(model=str(folder), family="sdxl", size_px=64, captioner="-")


def smaller_sdxl(name: str, **changes: object) -> tuple[str, dict[str, Any]]:
    """One of SDXL's networks with other settings."""
    kind, settings = StableDiffusionXL.published[name]
    return kind, {**settings, **changes}


#: SDXL in a twentieth of its size; the UNet is the largest, as there.
MIDDLE_SDXL = {
    "unet": smaller_sdxl(
        "unet", block_out_channels=(160, 480), attention_head_dim=(5, 10), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), transformer_layers_per_block=(1, 2),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=480,
        projection_class_embeddings_input_dim=6 * 256 + 240,
    ),
    "vae": smaller_sdxl("vae", block_out_channels=(128, 128, 256, 256)),
    "text_encoder": smaller_sdxl("text_encoder", hidden_size=240, intermediate_size=960, num_hidden_layers=12),
    "text_encoder_2": smaller_sdxl(
        "text_encoder_2", hidden_size=240, intermediate_size=960, projection_dim=240, num_hidden_layers=12
    ),
}  # fmt: skip


def small_t5_tokenizer() -> T5TokenizerFast:
    """A tokenizer of single letters, of T5's class."""
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,.0123456789<>-"]
    return T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)


def save_small_sd3(folder: Path, t5: bool = True) -> Base:
    """Write SD 3's pipeline with three different small text encoders, and a VAE whose latents are shifted."""
    torch.manual_seed(0)
    tokenizer, letters = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer"), small_t5_tokenizer()

    def text(width: int) -> CLIPTextModelWithProjection:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, projection_dim=width, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return CLIPTextModelWithProjection(config)

    encoders = {"text_encoder": text(16), "text_encoder_2": text(24), "text_encoder_3": None}
    if t5:
        config = T5Config(
            vocab_size=len(letters), d_model=48, d_ff=64, d_kv=8, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        encoders["text_encoder_3"] = T5EncoderModel(config)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=48, caption_projection_dim=32, pooled_projection_dim=40,
        pos_embed_max_size=32,
    )  # fmt: skip
    vae = small_vae(
        latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
    )
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, **encoders,
        tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=letters if t5 else None,
    ).save_pretrained(folder)  # fmt: skip
    return Base(model=str(folder), family="sd3", size_px=64, captioner="-")


def clip_skip(folder: Path) -> Base:
    """SD's small base as a base of `toy_family`."""
    return save_small_sd(folder).model_copy(update={"family": "clip-skip"})


#: A small base of every family, for the conformance suite: writes a pipeline into a folder.
SMALL_BASES: dict[str, Callable[[Path], Base]] = {
    "sd": save_small_sd,
    "sdxl": save_small_sdxl,
    "sd3": save_small_sd3,
    "clip-skip": clip_skip,
}
