"""What a run brings along besides its settings: how large its pictures are, and what it keeps of them in memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from sdlora import choices
from sdlora.config.params import Base, Encode, Version
from sdlora.config.train import Train
from sdlora.models import ModelFamily
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.texts import OPEN


@dataclass(frozen=True)
class Demand:
    """What a run brings along besides its settings."""

    latent: tuple[int, int, int]  # largest latents of one picture (C, h, w)
    cached: int = 0  # bytes of latents that the run makes and keeps in memory
    captions: int = 0  # distinct captions whose conditioning is kept in memory at once
    images: bool = False  # whether the VAE stays and encodes in every step
    texts: bool = False  # whether the text encoders stay and encode in every step
    encodes: bool = False  # whether the VAE encodes every picture before the first step
    vae: str = "fp32"  # the type in which it encodes, on a GPU
    masks: int = 0  # bytes of a user's masks, one a picture and side; those of padding are few

    @property
    def in_ram(self) -> int:
        """Bytes that stay in RAM for the whole run, also where a GPU trains."""
        return self.cached + self.masks


def demand_of(examples: Sequence[Example], settings: Train, base: Base, encode: Encode | None = None) -> Demand:
    """What a run's pictures and captions take, by the caches that its settings choose.

    Latents from the disk are pages of files that the system takes back where memory is short, so they need not be free.
    """
    outline = cache(lambda: choices.pick(choices.FAMILIES, base.family).outline(base, torch.device("cpu")))
    captions = len({text for example in examples for text in example.text})
    live = settings.text_cache == "none"
    tensors = [tensor for example in examples for tensor in example.mean]
    if tensors:
        shapes: list[tuple[int, ...]] = [tuple(tensor.shape) for tensor in tensors]
    else:  # made later, by the run itself
        shapes = [latent_shape(outline(), *place.size) for example in examples for place in example.geometry]
    images = not tensors and settings.cache_latents == "none"
    encodes = not tensors and not images
    cached = sum(map(_latents_bytes, shapes)) if encodes else 0
    masks = sum(map(_mask_bytes, shapes)) if settings.mask == "user" else 0
    if settings.prior is not None:
        shapes.append(latent_shape(outline(), base.size_px, base.size_px))
        captions += 1
    channels, height, width = max(shapes, key=lambda shape: shape[-1] * shape[-2])
    return Demand(
        (channels, height, width), cached, _kept(captions, settings), images, live, encodes, (encode or Encode()).dtype,
        masks,
    )  # fmt: skip


def demand_of_version(version: Version, base: Base, captions: int = 0, sides: int = 0) -> Demand:
    """A version's demand as far as its settings tell it, before there are latents.

    Args:
        version: Its settings.
        base: Only its configs are read.
        captions: Distinct ones of its set, as far as they are known.
        sides: Its pictures, mirrored ones too, likewise.
    """
    model = choices.pick(choices.FAMILIES, base.family).outline(base, torch.device("cpu"))
    side = version.fit.size_px or base.size_px
    live = version.train.text_cache == "none"
    caches, shape = version.train.cache_latents, latent_shape(model, side, side)
    cached = sides * _latents_bytes(shape) if caches == "ram" else 0
    masks = sides * _mask_bytes(shape) if version.train.mask == "user" else 0
    if version.train.prior is not None:
        side = max(side, base.size_px)
        captions += 1
    return Demand(
        latent_shape(model, side, side), cached, _kept(captions, version.train), images=caches == "none", texts=live,
        encodes=caches == "ram", vae=version.encode.dtype, masks=masks,
    )  # fmt: skip


def latent_shape(model: ModelFamily, width_px: int, height_px: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of a picture's latents."""
    cell = model.pipeline.vae_scale_factor
    return int(model.pipeline.vae.config.latent_channels), height_px // cell, width_px // cell


def _latents_bytes(shape: tuple[int, ...]) -> int:
    """Of a picture's latents (C, h, w): mean and deviation, fp32."""
    return 2 * 4 * math.prod(shape)


def _mask_bytes(shape: tuple[int, ...]) -> int:
    """Of a picture's mask over its latents (C, h, w), fp32."""
    return 4 * math.prod(shape[1:])


def _kept(captions: int, settings: Train) -> int:
    """Of so many captions, those whose conditioning is in memory at once."""
    return {"none": 0, "disk": min(captions, OPEN), "ram": captions}[settings.text_cache]
