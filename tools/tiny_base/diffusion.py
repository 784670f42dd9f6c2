"""The tiny Stable Diffusion: UNet and CLIP text encoder trained together on the VAE's latents."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.tiny_base import loop, readers, text
from tools.tiny_base.recipe import BaseRecipe

TEXT_WIDTH = 192
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def build_unet(latent_size: int) -> UNet2DConditionModel:
    """A fresh UNet with SD 1.5's blocks in small."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        block_out_channels=(96, 160, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers' name: this is the number of heads
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A fresh CLIP text encoder: 4 layers of 192."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=77,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (N, 77) as the pipeline makes them."""
    ids: Tensor = tokenizer(
        list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def save(parts: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write everything as a plain fp16 `StableDiffusionPipeline` folder."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=parts["text_encoder"],
        tokenizer=tokenizer,
        unet=parts["unet"],
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    for name in ("unet", "text_encoder", "vae"):
        folder = out / name
        module = type(getattr(pipeline, name)).from_pretrained(folder, torch_dtype=torch.float16)
        module.save_pretrained(folder)
    declare_float32(out / "text_encoder" / "config.json")
    readers.open_to_both(out)
    # as in SD 1.5's own file: other schedulers made from this one must not clip latents
    config = out / "scheduler" / "scheduler_config.json"
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "clip_sample": False}, indent=2) + "\n", encoding="utf-8")


def declare_float32(config: Path) -> None:
    """Have transformers load fp16 weights as fp32, as diffusers does, so that the parts fit together."""
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def without_dropped(captions: Sequence[str], dropped: Sequence[bool]) -> list[str]:
    """Captions of a step, empty where they are left out."""
    return ["" if left_out else caption for caption, left_out in zip(captions, dropped, strict=True)]


def with_foreign_words(captions: Sequence[str], dropped: Sequence[bool], recipe: BaseRecipe, step: int) -> list[str]:
    """Captions of a step; half of those that are left out become words that say nothing."""
    rng = random.Random(f"words-{recipe.seed}-{step}")
    nothing = [text.foreign_words(rng, 1, 20) if rng.random() < 0.5 else "" for _ in captions]
    return [other if left_out else caption for caption, left_out, other in zip(captions, dropped, nothing, strict=True)]


@dataclass(frozen=True)
class Examples:
    """Posterior means of the VAE (N, 4, h, w), not scaled, and what they show."""

    latents: Tensor
    captions: Sequence[str]


def train(
    plain: Examples, varied: Examples, vae: AutoencoderKL, recipe: BaseRecipe, work: Path, out: Path, device: str
) -> None:
    """Train UNet and text encoder (epsilon, min-SNR weights, caption dropout) and save the pipeline."""
    torch.manual_seed(recipe.seed + 3)
    tokenizer = text.clip_tokenizer(plain.captions, work / "clip-tokenizer")
    unet = build_unet(plain.latents.shape[-1])
    unet.set_attn_processor(AttnProcessor())  # faster than SDPA for bf16 heads this small on a CPU
    parts = nn.ModuleDict({"unet": unet, "text_encoder": build_text_encoder(tokenizer)}).to(device)
    parts.train()
    noising = DDPMScheduler(**SCHEDULE)
    snr = noising.alphas_cumprod / (1 - noising.alphas_cumprod)
    weights = (snr.clamp(max=recipe.min_snr_gamma) / snr).to(device)

    def loss_of(step: int, seed: int, examples: Examples, batch: int, foreign: bool) -> Tensor:
        index = loop.batch_indices(seed, step, batch, len(examples.latents))
        generator = loop.step_generator(seed, step)
        clean = examples.latents[index] * vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=generator)
        noise += recipe.noise_offset * torch.randn(*clean.shape[:2], 1, 1, generator=generator)
        timesteps = torch.randint(0, 1000, (len(index),), generator=generator)
        dropped = (torch.rand(len(index), generator=generator) < recipe.caption_dropout).tolist()
        texts = [examples.captions[int(number)] for number in index]
        words = with_foreign_words(texts, dropped, recipe, step) if foreign else without_dropped(texts, dropped)
        tokens = token_ids(tokenizer, words).to(device)
        noisy = noising.add_noise(clean, noise, timesteps).to(device)
        with torch.autocast(device, torch.bfloat16):
            context = parts["text_encoder"](tokens).last_hidden_state
            predicted = parts["unet"](noisy, timesteps.to(device), context).sample.float()
        per_picture = (predicted - noise.to(device)).square().mean(dim=(1, 2, 3))
        weighted: Tensor = per_picture * weights[timesteps.to(device)]
        return weighted.mean()

    def plain_loss(step: int) -> Tensor:
        return loss_of(step, recipe.seed + 3, plain, recipe.unet_batch, foreign=False)

    def varied_loss(step: int) -> Tensor:
        examples, batch = ((plain, recipe.unet_batch), (varied, recipe.varied_batch))[step % 2]
        return loss_of(step, recipe.seed + 5, examples, batch, foreign=True)

    phases = (
        ("diffusion", recipe.unet_steps, recipe.unet_learning_rate, plain_loss),
        ("varied", recipe.varied_steps, recipe.varied_learning_rate, varied_loss),
    )
    for name, steps, rate, loss_of_step in phases:
        loop.train(
            name,
            parts,
            loss_of_step,
            steps=steps,
            peak_learning_rate=rate,
            save_every=recipe.save_every,
            folder=work,
            on_save=lambda step: save(parts, vae, tokenizer, work / "preview"),
        )
    save(parts, vae, tokenizer, out)
