"""What is added to a sample's gaussian noise before it is mixed in; the result is also the target.

Each takes one sample's noise (C, h, w) and its own generator, so a sample never depends on its batch.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from sdlora import choices
from sdlora.config.train import Train


def shaped(gaussian: Tensor, generator: Generator, settings: Train) -> tuple[Tensor, Tensor]:
    """The noise of one sample as the options want it.

    Args:
        gaussian: (C, h, w), unit variance.
        generator: The options' own source.
        settings: `noise` is applied in order; `input_perturbation` (Ning et al., arXiv 2301.11706)
            adds noise to the input alone.

    Returns:
        The target's noise and the input's noise.
    """
    noise = gaussian
    for name in settings.noise:
        noise = choices.pick(choices.NOISES, name)(noise, generator, settings)
    if not settings.input_perturbation:
        return noise, noise
    return noise, noise + settings.input_perturbation * torch.randn(noise.shape, generator=generator)


def offset(noise: Tensor, generator: Generator, settings: Train) -> Tensor:
    """Offset noise (crosslabs.org, "Diffusion with offset noise"): one normal number a channel, times
    `noise_offset`. The variance becomes 1 + s^2 and is not rescaled."""
    strength: float = settings.value("noise_offset")
    return noise + strength * torch.randn(len(noise), 1, 1, generator=generator)


def pyramid(noise: Tensor, generator: Generator, settings: Train) -> Tensor:
    """Multi-resolution noise (J. Whitaker, "Multi-resolution noise for diffusion model training").

    Adds ever coarser noise, enlarged bilinearly: the side shrinks by r ~ U(2, 4) each time and the
    weight by `pyramid_discount`, until a side is 1 or `pyramid_iterations` are added. Divided by its
    own deviation, so each sample has unit variance.
    """
    height, width = noise.shape[-2:]
    total, scale, weight = noise, 1.0, 1.0
    for _ in range(settings.value("pyramid_iterations")):
        scale *= 2 + 2 * float(torch.rand((), generator=generator))
        weight *= settings.value("pyramid_discount")
        side = (max(1, int(height / scale)), max(1, int(width / scale)))
        coarse = torch.randn(1, len(noise), *side, generator=generator)
        total = total + weight * interpolate(coarse, (height, width), mode="bilinear")[0]
        if 1 in side:
            break
    return total / total.std()
