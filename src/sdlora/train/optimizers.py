"""Optimizers: parameters and settings in, a torch optimizer out."""

from torch import nn, optim
from torch.optim import Optimizer

from sdlora.params import Train


def adamw(parameters: list[nn.Parameter], settings: Train, learning_rate: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101)."""
    return optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        foreach=True,
    )


def adamw8bit(parameters: list[nn.Parameter], settings: Train, learning_rate: float) -> Optimizer:
    """AdamW with block-wise 8-bit moments (Dettmers et al., arXiv 2110.02861), from bitsandbytes."""
    from bitsandbytes.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(
        parameters,
        lr=learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    return optimizer


def prodigy(parameters: list[nn.Parameter], settings: Train, learning_rate: float) -> Optimizer:
    """Prodigy (Mishchenko and Defazio, arXiv 2306.06101): estimates its own rate d; use learning_rate 1."""
    from prodigyopt import Prodigy

    optimizer: Optimizer = Prodigy(
        parameters,
        lr=learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
    return optimizer
