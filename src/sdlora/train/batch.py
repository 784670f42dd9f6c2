"""What one forward pass sees: a function of (seed, step, place in the batch) alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdlora.adapters import Conditioning
from sdlora.randomness import generator
from sdlora.train.dataset import chosen, orientation
from sdlora.train.noise import shaped

if TYPE_CHECKING:
    from sdlora.train.loop import Run


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees, on the device."""

    latents: Tensor
    noise: Tensor  # the target's noise
    input_noise: Tensor  # what the latents are mixed with: the same, unless the input is perturbed
    timesteps: Tensor
    conditioning: Conditioning
    mask: Tensor | None = None


def draw_batch(run: Run, step: int, part: int) -> Batch:
    """Batch `part` of optimizer step `step`: a function of (seed, step, place) alone.

    Returns:
        Latents and noises (B, C, h, w), timesteps (B,) and the captions' conditioning.
    """
    size, seed = run.settings.batch_size, run.settings.seed
    first = (step * run.settings.accumulation + part) * size
    latents, noises, input_noises, timesteps, texts = [], [], [], [], []
    for draw in range(first, first + size):
        example = run.examples[chosen(seed, draw, len(run.examples))]
        side = orientation(example, run.flip.probability, seed, draw)
        source = generator("draw", seed, draw, example.id)
        mean, std = example.mean[side], example.std[side]
        # always drawn, so that the noise below does not depend on the option
        posterior = torch.randn(mean.shape, generator=source)
        latents.append(mean + std * posterior if run.settings.latents == "sample" else mean)
        gaussian = torch.randn(mean.shape, generator=source)
        # options draw from a source of their own, so that they change nothing else
        noise, input_noise = shaped(gaussian, generator("noise", seed, draw, example.id), run.settings)
        noises.append(noise)
        input_noises.append(input_noise)
        timesteps.append(torch.randint(0, run.noising.config.num_train_timesteps, (), generator=source))
        texts.append(example.text[side])
    device = run.accelerator.device
    rows = [run.conditioning[text] for text in texts]
    conditioning = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return Batch(
        torch.stack(latents).to(device),
        torch.stack(noises).to(device),
        torch.stack(input_noises).to(device),
        torch.stack(timesteps).to(device),
        conditioning,
    )
