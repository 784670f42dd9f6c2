"""The training loop: draw, add noise, predict, step. The only one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sdlora.adapters import Adapter
from sdlora.errors import DataError
from sdlora.params import Flip, Train
from sdlora.progress import Progress
from sdlora.train.batch import Batch, draw_batch
from sdlora.train.checkpoint import State
from sdlora.train.dataset import BatchOrder, Example
from sdlora.train.latents import LatentsOf
from sdlora.train.losses import masked_mean
from sdlora.train.texts import ConditioningOf


@dataclass
class Run:
    """Everything a run holds while it trains."""

    settings: Train
    flip: Flip
    adapter: Adapter
    examples: list[Example]
    order: BatchOrder
    latents_of: LatentsOf
    conditioning_of: ConditioningOf
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    lr_schedule: LRScheduler
    accelerator: Accelerator
    noising: DDPMScheduler


def loss_of(run: Run, batch: Batch) -> Tensor:
    """Mean squared error of the prediction: of the noise, or of the velocity for a v-prediction base."""
    noisy = run.noising.add_noise(batch.latents, batch.noise, batch.timesteps)
    kind = run.noising.config.prediction_type
    target = batch.noise if kind == "epsilon" else run.noising.get_velocity(batch.latents, batch.noise, batch.timesteps)
    with run.accelerator.autocast():
        predicted = run.adapter.predict(noisy.to(run.adapter.dtype), batch.timesteps, batch.conditioning)
    error = nn.functional.mse_loss(predicted.float(), target.float(), reduction="none")
    return masked_mean(error, batch.mask).mean()


def optimizer_step(run: Run, step: int) -> Tensor:
    """One optimizer step over all accumulated batches.

    Returns:
        The mean loss, still on the device.
    """
    total = torch.zeros((), device=run.accelerator.device)
    for part in range(run.settings.accumulation):
        loss = loss_of(run, draw_batch(run, step, part)) / run.settings.accumulation
        run.accelerator.backward(loss)
        total += loss.detach()
    run.accelerator.clip_grad_norm_(run.parameters, run.settings.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.lr_schedule.step()
    return total


def train_loop(run: Run, start: State | None, on_checkpoint: Callable[[State], None]) -> list[list[float]]:
    """Train from `start` (or from nothing) to the last step.

    Args:
        run: The run, its LoRA added and nothing trained yet.
        start: A state to go on from.
        on_checkpoint: Called with the state at every checkpoint step.

    Returns:
        The log: step, loss, learning rate of every step.
    """
    first = restore(run, start) if start else 0
    log = list(start.log) if start else []
    waiting: list[tuple[int, Tensor, float]] = []
    progress = Progress("train", run.settings.steps, first)
    checkpoints = set(run.settings.checkpoint_steps)
    for step in range(first, run.settings.steps):
        rate = float(run.lr_schedule.get_last_lr()[0])
        waiting.append((step + 1, optimizer_step(run, step), rate))
        if len(waiting) >= 20 or step + 1 in checkpoints:
            # losses stay on the device until here: reading one waits for the device
            log += [[number, _finite(loss.item(), number), lr] for number, loss, lr in waiting]
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
    )


def restore(run: Run, state: State) -> int:
    """Put a state back and return its step."""
    with torch.no_grad():
        for parameter, saved in zip(run.parameters, state.parameters, strict=True):
            parameter.copy_(saved)
    run.optimizer.load_state_dict(state.optimizer)
    run.lr_schedule.load_state_dict(state.lr_schedule)
    if run.accelerator.scaler is not None and state.scaler is not None:
        run.accelerator.scaler.load_state_dict(state.scaler)
    return state.step
