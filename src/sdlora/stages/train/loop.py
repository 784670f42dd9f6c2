"""The training loop: draw, add noise, predict, step. The only one."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sdlora import choices
from sdlora.config.params import Flip
from sdlora.config.train import Train
from sdlora.errors import Diverged
from sdlora.lora.types import limit_norms
from sdlora.models import ModelFamily
from sdlora.models.objective import Objective
from sdlora.progress import Progress
from sdlora.randomness import seed_of
from sdlora.speed import Passes
from sdlora.stages.train import ema
from sdlora.stages.train.ahead import Ahead
from sdlora.stages.train.batch import Batch, Drawn, batch_of, drawn, to_device
from sdlora.stages.train.checkpoint import State
from sdlora.stages.train.dataset import BatchOrder, Example
from sdlora.stages.train.latents import LatentsOf
from sdlora.stages.train.losses import masked_mean
from sdlora.stages.train.processes import ALL, Share, averaged
from sdlora.stages.train.texts import ConditioningOf

READ_EVERY = 20  # steps between two readings of losses


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
    share: Share = ALL  # what of each step this process computes
    initial: dict[str, Tensor] | None = None  # A and B at the start, where they were taken out of the base
    passes: Passes | None = None  # faster than autograd's, where the device has such
    ahead: Callable[[int], Callable[[], list[Drawn]]] | None = None  # batches that wait to be sent to the device


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
    changing = changing or settings.compile != "none"  # compiled blocks are no operations to trace
    return not changing and settings.lora_type in ("lora", "dora")  # peft's LoKr branches on values


def passes_of(run: Run, after: int | None = None) -> Passes | None:
    """A run's faster passes, where they are possible; `after` as in `Speed.passes`."""
    return run.model.speed.passes(run.model.denoiser, run.parameters, after) if always_alike(run) else None


def passed(run: Run, batch: Batch) -> Tensor | None:
    """A batch's share of a step's loss by the faster passes, its gradients added; None where autograd has to do it."""
    if run.passes is None:
        return None
    return run.passes.run(batch, lambda shown: loss_of(run, shown) / run.share.batches)


def backward(run: Run, batch: Batch, weight: float = 1.0) -> Tensor:
    """Add a batch's gradients to the parameters', and return its share of a step's loss."""
    loss = weight * loss_of(run, batch) / run.share.batches
    run.accelerator.backward(loss)
    return loss.detach()


def draws(run: Run, index: int) -> list[Drawn]:
    """This process's batch `index` of the run and, with prior preservation, of its prior."""
    if run.ahead is not None:
        return run.ahead(index)()
    return [drawn(one, run.share.batch(index)) for one in (run, run.prior) if one is not None]


@contextmanager
def drawing_ahead(run: Run, first: int) -> Iterator[None]:
    """From step `first` on draw in a thread where a GPU would wait for it; on a CPU it would take the work's own time.

    Latents that are made live ask for a network at each draw, and stay where they are.
    """
    if run.accelerator.device.type == "cpu" or run.settings.cache_latents == "none":
        yield
        return
    parts = run.share.batches
    with Ahead(lambda index: ready(run, index), first * parts, run.settings.steps * parts) as run.ahead:
        try:
            yield
        finally:
            run.ahead = None


def ready(run: Run, index: int) -> Callable[[], list[Drawn]]:
    """This process's batch `index`, drawn and packed; calling it sends it."""
    return to_device(draws(replace(run, ahead=None), index), run.accelerator.device)


def optimizer_step(run: Run, step: int) -> Tensor:
    """One optimizer step over all accumulated batches, and those of the other processes.

    Returns:
        The mean loss, still on the device.
    """
    settings = run.settings
    total = torch.zeros((), device=run.accelerator.device)
    for index in range(step * run.share.batches, (step + 1) * run.share.batches):
        if settings.dropout:
            torch.manual_seed(seed_of("dropout", settings.seed, step, *run.share.noise_of(index)))
        shown, *prior = draws(run, index)
        batch = batch_of(run, shown)
        loss = passed(run, batch)
        total += backward(run, batch) if loss is None else loss.detach()
        if run.prior is not None and settings.prior is not None:  # its activations come when the others are gone
            total += backward(run.prior, batch_of(run.prior, prior[0]), settings.prior.weight)
    total = averaged(run.accelerator, run.parameters, total)
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
    scale = _scale_of(run)
    progress = Progress("train", run.settings.steps, first)
    checkpoints = set(run.settings.checkpoint_steps)
    with drawing_ahead(run, first):
        for step in range(first, run.settings.steps):
            rate = float(run.lr_schedule.get_last_lr()[0])
            loss = optimizer_step(run, step)
            waiting.append((step + 1, loss, rate, float(run.optimizer.param_groups[0].get("d", 1.0))))
            if len(waiting) >= READ_EVERY or step + 1 in checkpoints:
                log += rows_of(waiting)
                waiting.clear()
                scale = told_of_overflow(run, scale, step + 1)
            if log and run.accelerator.is_main_process:
                progress.update(step + 1, f"loss {sum(row[1] for row in log[-50:]) / len(log[-50:]):.4f}")
            if step + 1 in checkpoints:
                on_checkpoint(_sound(snapshot(run, step + 1, log)))
    return log


def rows_of(waiting: Sequence[tuple[int, Tensor, float, float]]) -> list[list[float]]:
    """The log's rows of some steps: their losses, which lie on the device, are read at once, because it is waited for.

    Raises:
        Diverged: If a loss is no number.
    """
    losses = torch.stack([loss for _, loss, *_ in waiting]).tolist()
    return [[row[0], _finite(loss, row[0]), *row[2:]] for row, loss in zip(waiting, losses, strict=True)]


def _scale_of(run: Run) -> float:
    return 1.0 if run.accelerator.scaler is None else float(run.accelerator.scaler.get_scale())


def told_of_overflow(run: Run, before: float, step: int) -> float:
    """Say where fp16 gradients overflowed: the scaler then skips the step and halves its scale. Returns the scale."""
    scale = _scale_of(run)
    if scale < before:
        skipped = round(math.log2(before / scale))
        print(
            f"train: fp16 gradients overflowed before step {step}, at least {skipped} steps changed nothing (scale "
            f"{before:g} -> {scale:g}); a few at the start are usual",
            flush=True,
        )
    return scale


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {step}; a lower learning_rate or mixed_precision: bf16 may help")
    return loss


def _sound(state: State) -> State:
    """A state that may be kept: numbers that are none would be all that is left of the run."""
    if not all(torch.isfinite(value).all() for value in (*state.parameters, *(state.ema or ()))):
        raise Diverged(f"the LoRA is no longer finite at step {state.step}; a lower learning_rate may help")
    return state


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
