"""The tiny VAE: diffusers' `AutoencoderKL`, 64 px, factor 4, four latent channels.

It is trained whole first; then the decoder goes on alone, which leaves the latents as they are, so
that the diffusion model can be trained at the same time.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from sdlora import tensors
from sdlora.progress import Progress
from tools.tiny_base import loop
from tools.tiny_base.loop import Part
from tools.tiny_base.pictures import Drawn, Pixels
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


def to_tensor(pictures: Pixels) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _difference(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 + 0.5 x gradient difference: sharp edges from the start; 10 x squared error: what PSNR measures.

    The squared error is what looks at faces: backgrounds have many small errors, and eyes and hair few large ones.
    """
    l1 = (decoded - images).abs().mean()
    gradients = sum((decoded.diff(dim=axis) - images.diff(dim=axis)).abs().mean() for axis in (2, 3))
    loss: Tensor = l1 + 0.5 * gradients + 10 * (decoded - images).square().mean()
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


def encode(vae: AutoencoderKL, pictures: Pixels, device: str, parts: int) -> Tensor:
    """Posterior means (N, 4, h, w) fp16 on the CPU, not scaled; `parts` threads take batches in turn."""
    found, progress = [], Progress("encode", len(pictures))

    def one_batch(first: int) -> Tensor:
        images = to_tensor(pictures[first : first + 64]).to(device)
        with torch.no_grad(), loop.autocast(device):
            mean: Tensor = vae.encode(images).latent_dist.mean.half().cpu()
        return mean

    with loop.one_thread_each(parts) as pool:
        for mean in pool.map(one_batch, range(0, len(pictures), 64)):
            found.append(mean)
            progress.advance(len(mean))
    return torch.cat(found)


def encoded(vae: AutoencoderKL, pictures: Pixels, kept: Path, device: str, parts: int) -> Tensor:
    """The same, remembered in a file: a run that was stopped does not encode again."""
    if not kept.exists():
        tensors.write(kept, {"mean": encode(vae, pictures, device, parts)})
    return tensors.read(kept)["mean"]


def _loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """With a weak pull on the means' size, which keeps the latents near unit variance."""
    with loop.autocast(images.device.type):
        mean = vae.encode(images).latent_dist.mean
        decoded = _decode(vae, mean, generator)
    loss: Tensor = _difference(decoded, images) + 1e-4 * mean.float().square().mean()
    return loss


def train(plain: Drawn, larger: Drawn, recipe: BaseRecipe, work: Path, out: Path, device: str, parts: int) -> None:
    """Train the VAE, set its scaling factor to 1/std of its latents and save it as fp16."""
    seed = recipe.seed + 1
    torch.manual_seed(seed)
    vae = build(recipe.size_px).to(device)
    vae.set_attn_processor(AttnProcessor())
    batches = (recipe.vae_batch, recipe.as_long(recipe.vae_batch))

    def loss_of(step: int, part: Part) -> Tensor:
        images = to_tensor(_batch((plain, larger), batches, seed, step, part)).to(device)
        return _loss(vae, images, loop.part_generator(seed, step, part))

    loop.train(
        "vae",
        vae,
        loss_of,
        parts=parts,
        steps=recipe.vae_steps,
        peak_learning_rate=recipe.vae_learning_rate,
        ema_decay=recipe.vae_ema_decay,
        save_every=recipe.save_every,
        folder=work,
        on_save=lambda step: _preview(vae, work),
    )
    set_deviation(vae)
    std = float(encode(vae, plain.pixels[:2000], device, parts).float().std())
    vae.register_to_config(scaling_factor=round(1 / std, 5))
    vae.half().save_pretrained(out)


def _preview(vae: AutoencoderKL, work: Path) -> None:
    """The weights so far, for looking at; `diffusion` reads only what is whole."""
    vae.save_pretrained(work / "preview-vae")


def _batch(drawn: Sequence[Drawn], batches: Sequence[int], seed: int, step: int, part: Part) -> Pixels:
    """The pictures of a part of a step: every fourth batch is of the second, the larger ones."""
    larger = loop.sees_larger(step)
    pixels, batch = drawn[larger].pixels, batches[larger]
    index = part.of(loop.batch_indices(seed, step, batch, len(pixels))).numpy()
    return np.ascontiguousarray(pixels[index])


def train_decoder(
    vae: AutoencoderKL,
    plain: Drawn,
    larger: Drawn,
    recipe: BaseRecipe,
    work: Path,
    out: Path,
    device: str,
    parts: int,
) -> None:
    """Train the decoder on with the encoder frozen: better pictures from the same latents."""
    seed = recipe.seed + 4
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    vae.set_attn_processor(AttnProcessor())
    batches = (recipe.decoder_batch, recipe.as_long(recipe.decoder_batch))

    def loss_of(step: int, part: Part) -> Tensor:
        images = to_tensor(_batch((plain, larger), batches, seed, step, part)).to(device)
        with torch.no_grad(), loop.autocast(device):
            mean = vae.encode(images).latent_dist.mean
        with loop.autocast(device):
            decoded = _decode(vae, mean, loop.part_generator(seed, step, part))
        return _difference(decoded, images)

    loop.train(
        "decoder",
        vae,
        loss_of,
        parts=parts,
        steps=recipe.decoder_steps,
        peak_learning_rate=recipe.decoder_learning_rate,
        ema_decay=recipe.vae_ema_decay,
        save_every=recipe.save_every,
        folder=work,
        on_save=lambda step: _preview(vae, work),
    )
    vae.half().save_pretrained(out)
