"""What one forward pass sees: a function of (seed, step, place in the batch) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdlora.models import Conditioning
from sdlora.randomness import generator
from sdlora.stages.train.captions import drawn_caption
from sdlora.stages.train.dataset import Example, orientation
from sdlora.stages.train.noise import shaped

if TYPE_CHECKING:
    from sdlora.stages.train.loop import Run


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees, on the device."""

    latents: Tensor
    noise: Tensor  # the target's noise
    input_noise: Tensor  # what the latents are mixed with: the same, unless the input is perturbed
    timesteps: Tensor
    conditioning: Conditioning
    mask: Tensor | None = None  # (B, 1, h, w), weights of the loss; None: all of it is learnt


def draw_batch(run: Run, step: int, part: int) -> Batch:
    """Batch `part` of optimizer step `step`: a function of (seed, step, place) alone.

    Returns:
        Latents and noises (B, C, h, w), timesteps (B,), the captions' conditioning and the mask.
    """
    seed = run.settings.seed
    latents, noises, input_noises, timesteps, texts, drawn = [], [], [], [], [], []
    for draw, place in run.order.draws(step * run.settings.accumulation + part):
        example = run.examples[place]
        side = orientation(example, run.flip.probability, seed, draw)
        source = generator("draw", seed, draw, example.id)
        mean, std = run.latents_of(example, side)
        # always drawn, so that the noise below does not depend on the option
        posterior = torch.randn(mean.shape, generator=source)
        latents.append(mean + std * posterior if run.settings.latents == "sample" else mean)
        gaussian = torch.randn(mean.shape, generator=source)
        # options draw from a source of their own, so that they change nothing else
        noise, input_noise = shaped(gaussian, generator("noise", seed, draw, example.id), run.settings)
        noises.append(noise)
        input_noises.append(input_noise)
        timesteps.append(run.objective.timesteps(source))
        texts.append(drawn_caption(example.text[side], run.settings, draw, example.id))
        drawn.append((example, side))
    device = run.accelerator.device
    mask = stacked_masks(drawn, latents[0])
    return Batch(
        torch.stack(latents).to(device),
        torch.stack(noises).to(device),
        torch.stack(input_noises).to(device),
        torch.cat(timesteps).to(device),
        {**run.conditioning_of(texts), **sizes_of(drawn, device)},
        None if mask is None else mask.to(device),
    )


def stacked_masks(drawn: Sequence[tuple[Example, int]], like: Tensor) -> Tensor | None:
    """Masks (B, 1, h, w) of (example, side) pairs; None if all of each is learnt."""
    masks = [example.mask[side] if example.mask else None for example, side in drawn]
    if all(mask is None for mask in masks):
        return None
    whole = torch.ones_like(like[:1])
    return torch.stack([whole if mask is None else mask for mask in masks])


def sizes_of(drawn: Sequence[tuple[Example, int]], device: torch.device) -> Conditioning:
    """`sizes` (B, 6), what SDXL is told of each picture (Podell et al., arXiv 2307.01952, 2.2), px.

    Original height and width, top and left of the crop, height and width of the fitted picture. Empty
    for examples without geometry: the model then takes the latents' size.
    """
    if not all(example.geometry for example, _ in drawn):
        return {}
    places = [example.geometry[side] for example, side in drawn]
    rows = [[*p.original[::-1], *p.corner[::-1], *p.size[::-1]] for p in places]
    return {"sizes": torch.tensor(rows, dtype=torch.float32, device=device)}
