"""How many heads of a character a picture shows: where its drawn head correlates with the picture.

It answers for heads of this character alone: those of others correlate at 0.5 or so, and are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from tools.tiny_base import world
from tools.tiny_base.pictures import Pixels
from tools.tiny_base.world import Picture

SCALES = tuple(0.58 + 0.07 * step for step in range(11))
THRESHOLD = 0.55  # drawn heads of one character correlate at 0.59 and more, what else is in its pictures below 0.5
APART = 0.5  # heads' middles are farther apart than this share of a head's height
# To follow a head: also smaller ones, which correlate by chance the more, the fewer pixels they have.
SMALLER, CHANCE = (0.44, 0.51), 0.15
LEAST = 0.42  # a head as a network draws it correlates at 0.5 and more with one of its kind


@dataclass(frozen=True)
class Head:
    """A drawn head to look for: its pixels, and which of them are the head's."""

    pixels: Tensor  # (3, h, w) in [0, 1]
    mask: Tensor  # (1, h, w), 1 inside
    middle: tuple[float, float]  # x, y of the box in its picture, px


@dataclass(frozen=True)
class Place:
    """Where a head was found, and how large it is there."""

    plainness: float  # its correlation, less what small heads have by chance
    x: float  # of its middle, px
    y: float
    scale: float  # its size over that of the head that was looked for


def head_of(picture: Picture, size_px: int) -> Head:
    """The head of a picture, as it is drawn in a square of `size_px`: an oval around its face box."""
    left, top, right, bottom = world.face_box(picture, size_px)
    around = round(0.08 * (right - left))  # hair at the sides
    left, right, top = max(0, left - around), min(size_px, right + around), max(0, top)
    pixels = np.asarray(world.draw(picture, size_px), np.float32)[top:bottom, left:right] / 255
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = ((y + 0.5) / height * 2 - 1) ** 4 + ((x + 0.5) / width * 2 - 1) ** 4 < 1
    mask = torch.from_numpy(inside.astype(np.float32))[None]
    return Head(torch.from_numpy(pixels.copy()).permute(2, 0, 1), mask, (left + width / 2, top + height / 2))


def correlation(image: Tensor, looks: Sequence[Head]) -> Tensor:
    """Masked correlation coefficients of heads with each place of a picture.

    Args:
        image: (3, H, W) in [0, 1].
        looks: Heads of one mask; their mean colours inside it are taken out, as are the picture's at each place.

    Returns:
        (heads, H, W) in [-1, 1], by where a head's middle is.
    """
    one = looks[0].mask
    height, width = one.shape[1:]
    edges = (width // 2, width - 1 - width // 2, height // 2, height - 1 - height // 2)
    around = pad(image[None], edges, mode="replicate")
    count = one.sum()
    mask = one.expand(3, -1, -1)[:, None]  # a filter for each channel
    pixels = torch.stack([head.pixels for head in looks])
    templates = (pixels - (pixels * one).sum((2, 3), keepdim=True) / count) * one
    sums = conv2d(around, mask, groups=3)
    squares = conv2d(around.square(), mask, groups=3)
    variance = (squares - sums.square() / count).sum(1).clamp(min=0)
    product = conv2d(around, templates)[0]
    norm = templates.square().sum((1, 2, 3))[:, None, None] * variance
    return product / norm.clamp(min=1e-6).sqrt() * (variance > 1e-3 * count)


def _scaled(head: Head, scale: float) -> Head:
    size = [max(4, round(side * scale)) for side in head.mask.shape[1:]]
    pixels = interpolate(head.pixels[None], size, mode="bilinear", antialias=True)[0]
    return Head(pixels.clamp(0, 1), interpolate(head.mask[None], size, mode="nearest")[0], head.middle)


def _pixels(image: Pixels | Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


def find(image: Pixels | Image.Image, looks: Sequence[Head]) -> Place | None:
    """The plainest head in a picture, which may look in several ways; None where there is none.

    Args:
        image: (H, W, 3) uint8.
        looks: The heads to look for, which lie in pictures of the same size at the same place.
    """
    pixels = _pixels(image)
    found = []
    for scale in (*SMALLER, *SCALES):
        scaled = [_scaled(head, scale) for head in looks]
        score = correlation(pixels, scaled).amax(dim=0)
        y, x = divmod(int(score.argmax()), score.shape[1])
        height, width = scaled[0].mask.shape[1:]
        plain = float(score[y, x]) * scale**CHANCE
        found.append((plain, x - width // 2 + width / 2, y - height // 2 + height / 2, scale))
    best = Place(*max(found))
    return best if best.plainness >= LEAST else None


def places(image: Pixels | Image.Image, head: Head) -> list[tuple[int, int, float]]:
    """(x, y, correlation) of each head in a picture, the plainest first.

    Args:
        image: (H, W, 3) uint8.
        head: Of a picture of the same size.
    """
    pixels = _pixels(image)
    found: list[tuple[float, int, int, float]] = []
    for scale in SCALES:
        one = _scaled(head, scale)
        score: NDArray[np.float32] = correlation(pixels, [one])[0].numpy()
        for y, x in np.argwhere(score > THRESHOLD):
            found.append((float(score[y, x]), int(x), int(y), APART * one.mask.shape[1]))
    kept: list[tuple[float, int, int, float]] = []
    for value, x, y, reach in sorted(found, reverse=True):
        if all((x - a) ** 2 + (y - b) ** 2 > max(reach, other) ** 2 for _, a, b, other in kept):
            kept.append((value, x, y, reach))
    return [(x, y, value) for value, x, y, _ in kept]


def count(image: Pixels | Image.Image, head: Head) -> int:
    """How many heads a picture shows."""
    return len(places(image, head))
