"""Exponential moving average of the trained parameters."""

import torch
from torch import Tensor, nn

from sdlora.config.train import Ema


def decay_at(settings: Ema, update: int) -> float:
    """Decay of update number `update` (0-based): min(decay, (1 + n) / (10 + n)), with n in steps.

    The warm-up lets the average follow a run of a few hundred steps; a fixed 0.9999 would still hold
    most of the starting weights at its end.
    """
    steps = update * settings.update_every
    return float(min(settings.decay, (1 + steps) / (10 + steps)) ** settings.update_every)


@torch.no_grad()
def update(settings: Ema, average: list[Tensor], parameters: list[nn.Parameter], step: int) -> None:
    """Move `average` in place after optimizer step `step` (1-based), where an update is due."""
    if step % settings.update_every == 0:
        decay = decay_at(settings, step // settings.update_every - 1)
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
