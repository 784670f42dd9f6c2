"""From a fitted picture's file to its latents: one way for the stage `encode` and for training."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdlora.images.pictures import read_rgb
from sdlora.models import ModelFamily


def posterior_of(model: ModelFamily, picture: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C, h, w) of a fitted picture's latents, fp32, on the CPU.

    One picture at a time, so that its latents do not depend on its batch mates.
    """
    pixels = np.asarray(read_rgb(picture)).astype(np.float32)
    mean, std = model.encode_images(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    return mean[0].cpu(), std[0].cpu()
