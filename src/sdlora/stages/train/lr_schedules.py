"""Learning-rate schedules: the rate at a step is a function of the step alone."""

import math

from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sdlora.config.train import LrStage, Train


def from_diffusers(optimizer: Optimizer, settings: Train) -> LRScheduler:
    """A schedule of diffusers' set, over the run's optimizer steps."""
    schedule: LRScheduler = get_scheduler(
        settings.lr_schedule,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.steps,
        num_cycles=settings.lr_cycles,
    )
    return schedule


def staged_rate(stages: tuple[LrStage, ...], step: int) -> float:
    """Rate of a staged schedule at a step (0-based), before the base's multiplier."""
    start = 0
    for stage in stages:
        if step < stage.until_step:
            if stage.schedule == "constant":
                return stage.learning_rate
            share = (step - start) / (stage.until_step - start)
            return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        start = stage.until_step
    return 0.0


def staged(optimizer: Optimizer, settings: Train) -> LRScheduler:
    """Stretches with rates of their own: '1e-4 for 300 steps, then 3e-5, cosine, to 765'."""
    return LambdaLR(optimizer, lambda step: staged_rate(settings.lr_stages, step) / settings.learning_rate)
