"""Run a script that wants `torchvision.transforms` where torchvision is not installed.

    python benchmarks/without_torchvision.py SCRIPT OPTIONS…

diffusers' training scripts use six transforms of it, once a picture. These do the same with Pillow and
torch; what they cost is nothing beside a step.
"""

import random
import runpy
import sys
import types
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Transform = Callable[[Any], Any]


class InterpolationMode(Enum):
    """torchvision's names of Pillow's filters."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


def compose(steps: list[Transform]) -> Transform:
    """One after the other."""

    def run(picture: Any) -> Any:
        for step in steps:
            picture = step(picture)
        return picture

    return run


def resize(side: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> Transform:
    """The shorter side becomes `side`."""

    def run(picture: Image.Image) -> Image.Image:
        factor = side / min(picture.size)
        return picture.resize((round(picture.width * factor), round(picture.height * factor)), interpolation.value)

    return run


def center_crop(side: int) -> Transform:
    """The middle square."""
    return lambda picture: crop(picture, (picture.height - side) // 2, (picture.width - side) // 2, side, side)


class RandomCrop:
    """A square from anywhere; SDXL's script asks for the place first."""

    def __init__(self, side: int) -> None:
        self.side = side

    @staticmethod
    def get_params(picture: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        height, width = size
        return random.randint(0, picture.height - height), random.randint(0, picture.width - width), height, width

    def __call__(self, picture: Image.Image) -> Image.Image:
        return crop(picture, *self.get_params(picture, (self.side, self.side)))


def crop(picture: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """A rectangle, as `torchvision.transforms.functional.crop`."""
    return picture.crop((left, top, left + width, top + height))


def random_horizontal_flip(p: float = 0.5) -> Transform:
    """Mirrored as often as not."""
    return lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < p else picture


def to_tensor() -> Transform:
    """(3, H, W) in [0, 1]."""
    return lambda picture: torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def normalize(mean: list[float], std: list[float]) -> Transform:
    """Less the mean, by the deviation."""

    def run(picture: Tensor) -> Tensor:
        return (picture - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    return run


def install() -> None:
    """Put the stand-in where `from torchvision import transforms` finds it."""
    for asks in ("datasets", "diffusers"):  # whether torchvision is there, and must hear no
        if find_spec(asks) is not None:
            import_module(asks)
    import transformers.utils

    transformers.utils.is_torchvision_available()
    transforms = types.ModuleType("torchvision.transforms")
    names: dict[str, Any] = {
        "InterpolationMode": InterpolationMode, "Compose": compose, "Resize": resize, "CenterCrop": center_crop,
        "RandomCrop": RandomCrop, "RandomHorizontalFlip": random_horizontal_flip, "ToTensor": to_tensor,
        "Normalize": normalize, "Lambda": lambda function: function,
    }  # fmt: skip
    vars(transforms).update(names)
    functional = types.ModuleType("torchvision.transforms.functional")
    vars(functional)["crop"] = crop
    package = types.ModuleType("torchvision")
    vars(package)["transforms"] = transforms
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms, functional.__name__: functional}


if __name__ == "__main__":
    if find_spec("torchvision") is None:
        install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
