"""The training loop: draw, add noise, predict, step. The only one."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sdlora import choices
from sdlora.config.params import Flip
from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.lora.types import limit_norms
from sdlora.models import ModelFamily
from sdlora.models.objective import Objective
from sdlora.progress import Progress
from sdlora.randomness import seed_of
from sdlora.speed import Passes
from sdlora.stages.train import ema
from sdlora.stages.train.batch import Batch, draw_batch
from sdlora.stages.train.checkpoint import State
from sdlora.stages.train.dataset import BatchOrder, Example
from sdlora.stages.train.latents import LatentsOf
from sdlora.stages.train.losses import masked_mean
from sdlora.stages.train.texts import ConditioningOf


@dataclass
class Run:
    """Everything a run holds while it trains."""

    settings: Train
    flip: Flip
    model: ModelFamily
    examples: list[Example]
    order: BatchOrder
    latents_of: LatentsOf
    conditioning_of: ConditioningOf
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    lr_schedule: LRScheduler
    accelerator: Accelerator
    objective: Objective
    average: list[Tensor] | None = None  # the EMA of `parameters`
    prior: "Run | None" = None  # the same run over the prior's pictures
    trigger: str = ""
    initial: dict[str, Tensor] | None = None  # A and B at the start, where they were taken out of the base
    passes: Passes | None = None  # faster than autograd's, where the device has such


def loss_of(run: Run, batch: Batch) -> Tensor:
    """Mean over the batch of each picture's loss times its timestep's weight."""
    settings, objective = run.settings, run.objective
    noisy = objective.add_noise(batch.latents, batch.input_noise, batch.timesteps)
    target = objective.target(batch.latents, batch.noise, batch.timesteps)
    with run.accelerator.autocast():
        predicted = run.model.predict(noisy.to(run.model.dtype), batch.timesteps, batch.conditioning)
    snr = objective.snr(batch.timesteps)
    loss = choices.pick(choices.LOSSES, settings.loss)
    error = loss(predicted.float(), target.float(), snr, batch.timesteps, settings)
    weight = choices.pick(choices.WEIGHTINGS, settings.weighting)(snr, objective.name, settings)
    weighted: Tensor = masked_mean(error, batch.mask) * weight
    return weighted.mean()


def always_alike(run: Run) -> bool:
    """Whether a batch's passes are the same operations each time: without randomness or branches on values."""
    settings = run.settings
    changing = settings.dropout or settings.learns_text or run.prior is not None or settings.gradient_checkpointing
    return not changing and settings.lora_type in ("lora", "dora")  # peft's LoKr branches on values


def passes_of(run: Run, after: int | None = None) -> Passes | None:
    """A run's faster passes, where they are possible; `after` as in `Speed.passes`."""
    return run.model.speed.passes(run.model.denoiser, run.parameters, after) if always_alike(run) else None


def passed(run: Run, batch: Batch) -> Tensor | None:
    """A batch's share of a step's loss by the faster passes, its gradients added; None where autograd has to do it."""
    if run.passes is None:
        return None
    return run.passes.run(batch, lambda shown: loss_of(run, shown) / run.settings.accumulation)


def optimizer_step(run: Run, step: int) -> Tensor:
    """One optimizer step over all accumulated batches.

    Returns:
        The mean loss, still on the device.
    """
    settings = run.settings
    total = torch.zeros((), device=run.accelerator.device)
    for part in range(settings.accumulation):
        if settings.dropout:
            torch.manual_seed(seed_of("dropout", settings.seed, step, part))
        batch = draw_batch(run, step, part)
        loss = passed(run, batch)
        if loss is None:
            loss = loss_of(run, batch)
            if run.prior is not None and settings.prior is not None:
                loss = loss + settings.prior.weight * loss_of(run.prior, draw_batch(run.prior, step, part))
            loss = loss / settings.accumulation
            run.accelerator.backward(loss)
        total += loss.detach()
    run.accelerator.clip_grad_norm_(run.parameters, settings.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.lr_schedule.step()
    if settings.max_norm is not None:
        limit_norms(run.model.denoiser, settings.max_norm)
    if settings.ema is not None and run.average is not None:
        ema.update(settings.ema, run.average, run.parameters, step + 1)
    return total


def train_loop(run: Run, start: State | None, on_checkpoint: Callable[[State], None]) -> list[list[float]]:
    """Train from `start` (or from nothing) to the last step.

    Args:
        run: The run, its LoRA added and nothing trained yet.
        start: A state to go on from.
        on_checkpoint: Called with the state at every checkpoint step.

    Returns:
        The log: step, loss, learning rate and the optimizer's own factor on it (Prodigy's d, else 1) of every step.
    """
    first = restore(run, start) if start else 0
    log = list(start.log) if start else []
    waiting: list[tuple[int, Tensor, float, float]] = []
    progress = Progress("train", run.settings.steps, first)
    checkpoints = set(run.settings.checkpoint_steps)
    for step in range(first, run.settings.steps):
        rate = float(run.lr_schedule.get_last_lr()[0])
        loss = optimizer_step(run, step)
        waiting.append((step + 1, loss, rate, float(run.optimizer.param_groups[0].get("d", 1.0))))
        if len(waiting) >= 20 or step + 1 in checkpoints:
            # losses stay on the device until here: reading one waits for the device
            log += [[number, _finite(loss.item(), number), *rates] for number, loss, *rates in waiting]
            waiting.clear()
        if log:
            progress.update(step + 1, f"loss {sum(row[1] for row in log[-50:]) / len(log[-50:]):.4f}")
        if step + 1 in checkpoints:
            on_checkpoint(snapshot(run, step + 1, log))
    return log


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise DataError(f"the loss is {loss} at step {step}; a lower learning_rate or mixed_precision: bf16 may help")
    return loss


def snapshot(run: Run, step: int, log: list[list[float]]) -> State:
    """The state after `step` optimizer steps."""
    scaler = run.accelerator.scaler
    return State(
        step,
        [p.detach().cpu().clone() for p in run.parameters],
        run.optimizer.state_dict(),
        run.lr_schedule.state_dict(),
        scaler.state_dict() if scaler is not None else None,
        log,
        None if run.average is None else [a.detach().cpu().clone() for a in run.average],
    )


def restore(run: Run, state: State) -> int:
    """Put a state back and return its step."""
    with torch.no_grad():
        for parameter, saved in zip(run.parameters, state.parameters, strict=True):
            parameter.copy_(saved)
        for average, saved in zip(run.average or [], state.ema or [], strict=True):
            average.copy_(saved)
    run.optimizer.load_state_dict(state.optimizer)
    run.lr_schedule.load_state_dict(state.lr_schedule)
    if run.accelerator.scaler is not None and state.scaler is not None:
        run.accelerator.scaler.load_state_dict(state.scaler)
    return state.step


@contextmanager
@torch.no_grad()
def holding(parameters: Sequence[nn.Parameter], values: Sequence[Tensor] | None) -> Iterator[None]:
    """Let parameters hold other values for a while (None: their own), then exactly those they had."""
    if values is None:
        yield
        return
    kept = [p.detach().clone() for p in parameters]
    torch._foreach_copy_([p.data for p in parameters], list(values))
    try:
        yield
    finally:
        torch._foreach_copy_([p.data for p in parameters], kept)
