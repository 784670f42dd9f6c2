"""The loop that trains a part of the embedded base: seeded, resumable after `kill -9`, with an ETA."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdlora import records
from sdlora.progress import Progress

EMA_DECAY = 0.999
WARMUP_STEPS = 100


def batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Which examples step `step` sees (0-based): shuffled epochs, a function of (seed, step) alone."""
    first = step * batch
    found = []
    for position in range(first, first + batch):
        epoch, place = divmod(position, count)
        found.append(int(_order(seed, epoch, count)[place]))
    return torch.tensor(found)


_orders: dict[tuple[int, int, int], Tensor] = {}


def _order(seed: int, epoch: int, count: int) -> Tensor:
    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        _orders[key] = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100003 + epoch))
    return _orders[key]


def step_generator(seed: int, step: int) -> torch.Generator:
    """The only source of randomness of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _save(path: Path, step: int, parameters: list[nn.Parameter], ema: list[Tensor], optimizer: Optimizer) -> None:
    buffer = io.BytesIO()
    raw = [p.detach() for p in parameters]
    torch.save({"parameters": raw, "ema": ema, "optimizer": optimizer.state_dict(), "step": step}, buffer)
    records.write_bytes(path, buffer.getvalue())


def _resume(path: Path, parameters: list[nn.Parameter], ema: list[Tensor], optimizer: Optimizer) -> int:
    """Put a saved state back and return its step; 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    _load(parameters, state["parameters"])
    ema[:] = state["ema"]
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train(
    name: str,
    module: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    peak_learning_rate: float,
    save_every: int,
    folder: Path,
    on_save: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train `module` in place and leave it with its averaged (EMA 0.999) weights.

    Args:
        name: What the progress lines and the state file are called.
        module: The trained parameters; on return they hold the average.
        loss_of_step: The loss of step n (0-based); all randomness must come from n.
        steps: Optimizer steps in all.
        peak_learning_rate: AdamW's rate after warm-up; cosine to zero.
        save_every: Steps between saved states.
        folder: Where the state is kept; a run that was stopped goes on from there.
        on_save: Called with the step after each saved state, `module` holding averaged weights.

    Returns:
        `module`.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_learning_rate, weight_decay=1e-2)
    ema = [p.detach().clone() for p in parameters]
    state_path = folder / f"{name}.state.pt"
    start = _resume(state_path, parameters, ema, optimizer)
    if start:
        print(f"{name}: resuming from step {start} of {steps}", flush=True)
    progress, recent, said = Progress(name, steps, start), [], ""
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_learning_rate)
        loss = loss_of_step(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - decay)
        recent.append(loss.detach())
        done = step + 1
        if len(recent) == 50 or done == steps:  # reading a loss waits for the device
            said = f"loss {float(torch.stack(recent).mean()):.4f}"
            recent.clear()
        progress.update(done, said)
        if done % save_every == 0 or done == steps:
            _save(state_path, done, parameters, ema, optimizer)
            if on_save is not None and done != steps:
                raw = [p.detach().clone() for p in parameters]
                _load(parameters, ema)
                on_save(done)
                _load(parameters, raw)
    _load(parameters, ema)
    return module


@torch.no_grad()
def _load(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
