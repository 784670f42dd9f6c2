"""The tiny VAE: diffusers' `AutoencoderKL`, 64 px, factor 4, four latent channels.

It is trained whole first; then the decoder goes on alone, which leaves the latents as they are, so
that the diffusion model can be trained at the same time.
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor

from tools.tiny_base import loop
from tools.tiny_base.recipe import BaseRecipe

NOISE = 0.05  # deviation of the posterior that the decoder learns to bear


def build(size_px: int) -> AutoencoderKL:
    """A fresh VAE of 2.7 M parameters."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=size_px,
    )


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _difference(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 + 0.5 x gradient difference: sharp edges from the start."""
    l1 = (decoded - images).abs().mean()
    gradients = sum((decoded.diff(dim=axis) - images.diff(dim=axis)).abs().mean() for axis in (2, 3))
    loss: Tensor = l1 + 0.5 * gradients
    return loss


def _decode(vae: AutoencoderKL, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures of posterior means with a little noise, as fp32."""
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    decoded: Tensor = vae.decode(mean + NOISE * noise).sample.float()
    return decoded


@torch.no_grad()
def set_deviation(vae: AutoencoderKL) -> None:
    """Make the posterior's deviation the constant it was trained with; the loss never sees it otherwise."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * math.log(NOISE)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: NDArray[np.uint8], device: str) -> Tensor:
    """Posterior means (N, 4, h, w) fp32 on the CPU, not scaled."""
    parts = []
    for first in range(0, len(pictures), 64):
        images = to_tensor(pictures[first : first + 64]).to(device)
        with torch.autocast(device, torch.bfloat16):
            parts.append(vae.encode(images).latent_dist.mean.float().cpu())
    return torch.cat(parts)


def train(pictures: NDArray[np.uint8], recipe: BaseRecipe, work: Path, out: Path, device: str) -> None:
    """Train the VAE, set its scaling factor to 1/std of its latents and save it as fp16."""
    seed = recipe.seed + 1
    torch.manual_seed(seed)
    vae = build(recipe.size_px).to(device)
    vae.set_attn_processor(AttnProcessor())

    def loss_of_step(step: int) -> Tensor:
        """With a weak pull on the means' size, which keeps the latents near unit variance."""
        images = to_tensor(pictures[loop.batch_indices(seed, step, recipe.vae_batch, len(pictures)).numpy()]).to(device)
        with torch.autocast(device, torch.bfloat16):
            mean = vae.encode(images).latent_dist.mean
            decoded = _decode(vae, mean, loop.step_generator(seed, step))
        loss: Tensor = _difference(decoded, images) + 1e-4 * mean.float().square().mean()
        return loss

    loop.train(
        "vae",
        vae,
        loss_of_step,
        steps=recipe.vae_steps,
        peak_learning_rate=recipe.vae_learning_rate,
        save_every=recipe.save_every,
        folder=work,
    )
    set_deviation(vae)
    std = float(encode(vae, pictures[:512], device).std())
    vae.register_to_config(scaling_factor=round(1 / std, 5))
    vae.half().save_pretrained(out)


def train_decoder(
    vae: AutoencoderKL, pictures: NDArray[np.uint8], recipe: BaseRecipe, work: Path, out: Path, device: str
) -> None:
    """Train the decoder on with the encoder frozen: better pictures from the same latents.

    The squared error joins the loss: it is what PSNR measures.
    """
    seed = recipe.seed + 4
    means = encode(vae, pictures, device)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    vae.set_attn_processor(AttnProcessor())

    def loss_of_step(step: int) -> Tensor:
        index = loop.batch_indices(seed, step, recipe.vae_batch, len(pictures))
        images = to_tensor(pictures[index.numpy()]).to(device)
        with torch.autocast(device, torch.bfloat16):
            decoded = _decode(vae, means[index].to(device), loop.step_generator(seed, step))
        loss: Tensor = _difference(decoded, images) + 2 * (decoded - images).square().mean()
        return loss

    loop.train(
        "decoder",
        vae,
        loss_of_step,
        steps=recipe.decoder_steps,
        peak_learning_rate=recipe.decoder_learning_rate,
        save_every=recipe.save_every,
        folder=work,
    )
    vae.half().save_pretrained(out)
