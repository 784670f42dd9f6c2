"""Optimizers: parameter groups and settings in, a torch optimizer out.

A group is {"params": [...], "lr": peak rate}; see `sdlora.lora.types.parameter_groups`.
"""

import sys
from typing import Any

from torch import Tensor, nn, optim
from torch.optim import Optimizer

from sdlora.config.train import Train

Groups = list[dict[str, Any]]


def adamw(groups: Groups, settings: Train) -> Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); one fused kernel a step."""
    return optim.AdamW(
        groups, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay, fused=True
    )


def bitsandbytes_optim() -> Any:
    """The module `bitsandbytes.optim`, whose import `sdlora` keeps to those that want it."""
    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]
    import bitsandbytes.optim

    return bitsandbytes.optim


def _without_waits() -> Any:
    """bitsandbytes without its wait for the GPU after every parameter: 256 a step on SD 1.5, 1,120 on SDXL.

    Only its optimizers with paged memory need it, which are not on the menu: other kernels run in the stream's order.
    """
    found = bitsandbytes_optim()
    found.optimizer.sync_gpu = lambda tensor: None
    return found


def adamw8bit(groups: Groups, settings: Train) -> Optimizer:
    """AdamW with block-wise 8-bit moments (Dettmers et al., arXiv 2110.02861), from bitsandbytes."""
    optimizer: Optimizer = _without_waits().AdamW8bit(
        groups, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay
    )
    return optimizer


def prodigy(groups: Groups, settings: Train) -> Optimizer:
    """Prodigy (Mishchenko and Defazio, arXiv 2306.06101): estimates its own rate d; use learning_rate 1.

    Bias correction and safeguarded warm-up are on, as its authors advise for diffusion models.
    """
    from sdlora.stages.train.prodigy import ForeachProdigy

    optimizer: Optimizer = ForeachProdigy(
        groups,
        lr=groups[0]["lr"],
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        d0=settings.value("d0"),
        d_coef=settings.value("d_coef"),
        use_bias_correction=True,
        safeguard_warmup=True,
    )
    return optimizer


def lion(groups: Groups, settings: Train) -> Optimizer:
    """Lion (Chen et al., arXiv 2302.06675), from bitsandbytes; wants about a tenth of AdamW's rate."""
    optimizer: Optimizer = _without_waits().Lion(groups, betas=settings.betas, weight_decay=settings.weight_decay)
    return optimizer


def adafactor(groups: Groups, settings: Train) -> Optimizer:
    """Adafactor (Shazeer and Stern, arXiv 1804.04235) with the given rate, from transformers."""
    from transformers.optimization import Adafactor

    optimizer: Optimizer = Adafactor(
        groups,
        lr=groups[0]["lr"],
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        weight_decay=settings.weight_decay,
    )
    return optimizer


def schedulefree_adamw(groups: Groups, settings: Train) -> Optimizer:
    """Schedule-free AdamW (Defazio et al., arXiv 2405.15682): averaging takes the schedule's place.

    The LoRA that is saved holds its averaged point x, not the point y that gradients are taken at.
    """
    from schedulefree import AdamWScheduleFree

    optimizer: Optimizer = AdamWScheduleFree(
        groups, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay, foreach=True
    )
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def point_to_save(optimizer: Any, parameters: list[nn.Parameter]) -> list[Tensor] | None:
    """Where the weights to save differ from those that are trained: schedule-free's average x; else None.

    A parameter that never had a gradient, as of a text encoder's last layer that nothing reads, has no average.
    """
    if "train_mode" not in optimizer.param_groups[0]:
        return None
    beta = optimizer.param_groups[0]["betas"][0]
    return [p.detach().lerp(optimizer.state[p].get("z", p.detach()), 1 - 1 / beta) for p in parameters]
