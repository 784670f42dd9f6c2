"""What one forward pass sees: a function of (seed, step, place in the batch) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdlora.models import Conditioning
from sdlora.randomness import generator
from sdlora.stages.train.ahead import packed, unpacked
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


@dataclass(frozen=True)
class Drawn:
    """A batch as it is drawn: what has numbers, and its captions, which the run's text encoders read."""

    latents: Tensor
    noise: Tensor
    input_noise: Tensor
    timesteps: Tensor
    texts: tuple[str, ...]  # captions
    mask: Tensor | None = None
    sizes: Tensor | None = None  # (B, 6)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def draw_batch(run: Run, step: int, part: int) -> Batch:
    """Batch `part` of optimizer step `step`: a function of (seed, step, place) alone.

    Returns:
        Latents and noises (B, C, h, w), timesteps (B,), the captions' conditioning and the mask.
    """
    return batch_of(run, drawn(run, step * run.settings.accumulation + part))


def drawn(run: Run, number: int) -> Drawn:
    """Batch `number` on the CPU, or this process's rows of it.

    A function of (seed, number) alone, and of no network unless latents are made live.
    """
    seed = run.settings.seed
    latents, noises, input_noises, timesteps, texts, shown = [], [], [], [], [], []
    for draw, place in run.share.rows(run.order.draws(number)):
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
        shown.append((example, side))
    noise = torch.stack(noises)
    return Drawn(
        latents=torch.stack(latents),
        noise=noise,
        input_noise=torch.stack(input_noises) if run.settings.input_perturbation else noise,
        timesteps=torch.cat(timesteps),
        texts=tuple(texts),
        mask=stacked_masks(shown, latents[0]),
        sizes=sizes_of(shown),
    )


def to_device(batches: Sequence[Drawn], device: torch.device) -> Callable[[], list[Drawn]]:
    """Get batches ready to go to a device; the call that is returned sends them, in one copy that nobody waits for."""
    tensors = [tensor for batch in batches for tensor in batch.tensors.values()]
    memory = packed(tensors, pinned=torch.cuda.is_available())

    def send() -> list[Drawn]:
        there = iter(unpacked(memory.to(device, non_blocking=True), tensors))
        return [Drawn(texts=batch.texts, **{name: next(there) for name in batch.tensors}) for batch in batches]

    return send


def batch_of(run: Run, drawn: Drawn) -> Batch:
    """What the forward pass sees of a drawn batch, which may be on the device already."""
    there = {name: tensor.to(run.accelerator.device) for name, tensor in drawn.tensors.items()}
    sizes = {"sizes": there.pop("sizes")} if "sizes" in there else {}
    return Batch(**there, conditioning={**run.conditioning_of(drawn.texts), **sizes})


def stacked_masks(drawn: Sequence[tuple[Example, int]], like: Tensor) -> Tensor | None:
    """Masks (B, 1, h, w) of (example, side) pairs; None if all of each is learnt."""
    masks = [example.mask[side] if example.mask else None for example, side in drawn]
    if all(mask is None for mask in masks):
        return None
    whole = torch.ones_like(like[:1])
    return torch.stack([whole if mask is None else mask for mask in masks])


def sizes_of(drawn: Sequence[tuple[Example, int]]) -> Tensor | None:
    """(B, 6), what SDXL is told of each picture (Podell et al., arXiv 2307.01952, 2.2), px.

    Original height and width, top and left of the crop, height and width of the fitted picture. None
    for examples without geometry: the model then takes the latents' size.
    """
    if not all(example.geometry for example, _ in drawn):
        return None
    places = [example.geometry[side] for example, side in drawn]
    rows = [[*p.original[::-1], *p.corner[::-1], *p.size[::-1]] for p in places]
    return torch.tensor(rows, dtype=torch.float32)
