"""What a step sees: latents and captions, chosen by (seed, step, place in the batch)."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sdlora import records, tensors
from sdlora.errors import DataError
from sdlora.randomness import generator, uniform


@dataclass(frozen=True)
class Example:
    """One picture: its latents' mean and deviation (C, h, w) and caption, for both orientations."""

    id: str
    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]
    text: tuple[str, ...]


def load_examples(folder: Path, base_name: str) -> list[Example]:
    """Read `train/metadata.jsonl` and the latents of a base.

    Raises:
        DataError: If a latent file is damaged or the set is empty.
    """
    captions = {(r["id"], r["mirrored"]): r["text"] for r in records.read_jsonl(folder / "train" / "metadata.jsonl")}
    files = {
        (r["id"], r["mirrored"]): r["file"] for r in records.read_jsonl(folder / "latents" / f"index-{base_name}.jsonl")
    }
    if not files:
        raise DataError(f"{folder}: no latents to learn from")
    examples = []
    for picture in sorted({key[0] for key in files}):
        sides = [side for side in (False, True) if (picture, side) in files]
        loaded = [tensors.read(folder / "latents" / files[picture, side]) for side in sides]
        examples.append(
            Example(
                picture,
                tuple(item["mean"] for item in loaded),
                tuple(item["std"] for item in loaded),
                tuple(captions[picture, side] for side in sides),
            )
        )
    return examples


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(torch.randperm(count, generator=generator("order", seed, epoch)).tolist())


def chosen(seed: int, draw: int, count: int) -> int:
    """Which example draw number `draw` takes: every epoch sees each example once, shuffled."""
    epoch, place = divmod(draw, count)
    return _epoch_order(seed, epoch, count)[place]


def orientation(example: Example, probability: float, seed: int, draw: int) -> int:
    """0 as it is, 1 mirrored; decided by (seed, draw, id)."""
    if len(example.mean) == 1:
        return 0
    return int(uniform("flip", seed, draw, example.id) < probability)
