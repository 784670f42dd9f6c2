"""Latents and masks of the examples: from the cache, made now, or made at each draw; the same bits each way."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdlora.config.params import Base, Encode
from sdlora.errors import DataError
from sdlora.images import masks
from sdlora.models import ModelFamily, load_model
from sdlora.progress import Progress
from sdlora.stages.encode.posterior import posterior_of
from sdlora.stages.train.dataset import Example

#: (example, side) in, mean and deviation (C, h, w) of its latents out, fp32 on the CPU.
LatentsOf = Callable[[Example, int], tuple[Tensor, Tensor]]
Box = tuple[int, int, int, int]  # left, top, width, height, px
Size = tuple[int, int]  # width, height, px


def encoder_for(base: Base, encode: Encode, model: ModelFamily) -> ModelFamily:
    """A model whose VAE runs in `encode.dtype`: the given one, or another of which the VAE alone is loaded."""
    if encode.dtype == base.dtype or model.device.type == "cpu":
        return model
    return load_model(base.model_copy(update={"dtype": encode.dtype}), model.device.type, ("vae",))


def cached(example: Example, side: int) -> tuple[Tensor, Tensor]:
    """What the example holds."""
    return example.mean[side], example.std[side]


def live(encoder: ModelFamily) -> LatentsOf:
    """Encode the picture's file at each call."""
    return lambda example, side: posterior_of(encoder, example.files[side])


def encoded(examples: list[Example], encoder: ModelFamily) -> list[Example]:
    """Every example with the latents of all its orientations."""
    progress = Progress("encode", len(examples))
    done = []
    for number, example in enumerate(examples, start=1):
        pairs = [posterior_of(encoder, file) for file in example.files]
        done.append(replace(example, mean=tuple(mean for mean, _ in pairs), std=tuple(std for _, std in pairs)))
        progress.update(number)
    return done


def sizes_of(example: Example, cell_px: int) -> list[tuple[int, int]]:
    """Height and width of the latents of each orientation, cached or not."""
    if example.mean:
        return [(mean.shape[-2], mean.shape[-1]) for mean in example.mean]
    return [(place.size[1] // cell_px, place.size[0] // cell_px) for place in example.geometry]


def with_masks(examples: list[Example], kind: str, cell_px: int, floor: float = 0.0) -> list[Example]:
    """Every example with the weights that its loss has in each latent cell.

    Args:
        examples: With geometry, and for `user` with mask files.
        kind: `none`, `padding` or `user` (which leaves the padding out as well).
        cell_px: Side of a latent cell, px.
        floor: What a cell weighs at least, 0 to 1.

    Raises:
        DataError: If a user's mask is missing.
    """
    if kind == "none":
        return examples

    @cache  # a large set has far fewer places than pictures: those that lie alike share a mask
    def of_padding(box: Box, size: Size) -> Tensor | None:
        return _weights(masks.coverage(box, size, (size[1] // cell_px, size[0] // cell_px)), floor)

    def mask_of(example: Example, side: int) -> Tensor | None:
        place = example.geometry[side]
        return of_padding(place.box, place.size) if kind == "padding" else _users(example, side, cell_px, floor)

    return [
        replace(example, mask=tuple(mask_of(example, side) for side in range(len(example.text))))
        if example.geometry
        else example
        for example in examples
    ]


def _users(example: Example, side: int, cell_px: int, floor: float) -> Tensor | None:
    """The mask of a user's file."""
    width, height = example.geometry[side].size
    file = example.mask_files[side]
    if file is None:
        raise DataError(f"{example.files[side]}: train.mask is user, but this picture was fitted without a mask")
    at_latents = masks.at_latents(masks.read_fitted(file), (height // cell_px, width // cell_px))
    return _weights(at_latents, floor)  # black on the padding already


def _weights(weights: NDArray[np.float32], floor: float) -> Tensor | None:
    """(1, h, w) in [floor, 1], or None where everything is learnt."""
    weights = np.maximum(weights, np.float32(floor))
    return None if weights.min() == 1 else torch.from_numpy(weights)[None]
