"""The loop that trains a part of the embedded base: seeded, resumable after `kill -9`, with an ETA."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdlora import records, tensors
from sdlora.progress import Progress
from sdlora.stages.train.loop import holding

WARMUP_STEPS = 200
LARGER_EVERY = 4  # of the batches, one is of the larger pictures
FALL = 0.3  # of the steps, at the end, in which the rate falls to zero


def batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Which examples step `step` sees (0-based): shuffled epochs, a function of (seed, step) alone."""
    first = step * batch
    found = []
    for position in range(first, first + batch):
        epoch, place = divmod(position, count)
        found.append(int(_order(seed, epoch, count)[place]))
    return torch.tensor(found)


def sees_larger(step: int) -> bool:
    """Whether a step's batch is of the larger pictures; the first of them is step `LARGER_EVERY` - 1."""
    return step % LARGER_EVERY == LARGER_EVERY - 1


_orders: dict[tuple[int, int, int], Tensor] = {}


def _order(seed: int, epoch: int, count: int) -> Tensor:
    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        _orders[key] = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100003 + epoch))
    return _orders[key]


def autocast(device: str) -> torch.autocast:
    """Layers compute in bf16, except on a CPU without AVX-512, which emulates it: there fp32 is ten times as fast."""
    is_quick = device != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.autocast(device, torch.bfloat16, enabled=is_quick)


@dataclass(frozen=True)
class Part:
    """One of the equal shares that a batch is cut into; each is learnt from on a thread of its own.

    Two threads that each see half a batch wait for each other once a step. Two threads inside each operation wait at
    every one: a quarter more time in these small networks, and twice as much where others use the machine.
    """

    number: int = 0
    count: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """This part of a batch (B, ...)."""
        return batch[self.number :: self.count]


def part_generator(seed: int, step: int, part: Part) -> torch.Generator:
    """The only source of randomness of a part of a step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + part.number)


def learning_rate(step: int, steps: int, peak: float, warm_from: int = 0) -> float:
    """Linear warm-up, then the peak, then a half cosine to zero over the last `FALL` of the steps.

    Until the fall begins, nothing depends on how many steps there will be: a recipe can be made longer or
    shorter while it trains.

    Args:
        step: 0-based.
        steps: Of the whole training.
        peak: The rate between the two.
        warm_from: Where the optimizer began without knowing anything.
    """
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    falling = max(1, round(FALL * steps))
    rise = min(1.0, (step - warm_from + 1) / warmup)
    left = min(1.0, (steps - step) / falling)
    return peak * rise * 0.5 * (1 - math.cos(math.pi * left))


@dataclass
class _State:
    """What a training knows between two steps."""

    parameters: list[nn.Parameter]
    ema: list[Tensor]
    optimizer: Optimizer
    step: int = 0
    warm_from: int = 0  # where the optimizer began

    def take_step(self, rate: float, ema_decay: float) -> None:
        """Move the parameters by their gradients, and the average towards them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1

    def save(self, path: Path) -> None:
        """Write all of it."""
        buffer = io.BytesIO()
        raw = [p.detach() for p in self.parameters]
        known = {"optimizer": self.optimizer.state_dict(), "step": self.step, "warm_from": self.warm_from}
        torch.save({"parameters": raw, "ema": self.ema, **known}, buffer)
        records.write_bytes(path, buffer.getvalue())

    def resume(self, path: Path, begun: Path) -> None:
        """Go on from a saved state, else from the averaged weights of a training that began elsewhere."""
        if path.exists():
            known = torch.load(path, weights_only=True)
            _load(self.parameters, known["parameters"])
            self.ema[:] = known["ema"]
            self.optimizer.load_state_dict(known["optimizer"])
            self.step, self.warm_from = known["step"], known["warm_from"]
        elif begun.exists():
            weights = tensors.read(begun)
            self.step = self.warm_from = int(weights.pop("step"))
            _load(self.parameters, [weights[str(number)] for number in range(len(weights))])
            self.ema[:] = [p.detach().clone() for p in self.parameters]


def take_along(state: Path, begun: Path) -> None:
    """Write of a saved state what another machine can go on from: averaged weights as fp16, and the step.

    The optimizer's moments, six times as large, are learnt anew there in a warm-up.
    """
    known = torch.load(state, weights_only=True)
    write_begun(begun, known["ema"], known["step"])


def write_begun(begun: Path, weights: Iterable[Tensor], step: int) -> None:
    """Write what `_State.resume` goes on from: trained parameters as fp16, in their order, and the step."""
    numbered = {str(number): one.half() for number, one in enumerate(weights)}
    tensors.write(begun, {**numbered, "step": torch.tensor(step)})


def train(
    name: str,
    module: nn.Module,
    loss_of: Callable[[int, Part], Tensor],
    *,
    parts: int,
    steps: int,
    peak_learning_rate: float,
    ema_decay: float,
    save_every: int,
    folder: Path,
    on_save: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train `module` in place and leave it with its averaged weights.

    Args:
        name: What the progress lines and the state file are called.
        module: The trained parameters; on return they hold the average.
        loss_of: The loss of a part of step n (0-based); all randomness must come from the two.
        parts: How many threads learn at once, each from its part of a batch. The result depends on it.
        steps: Optimizer steps in all.
        peak_learning_rate: AdamW's rate between warm-up and fall.
        ema_decay: Highest decay of the average.
        save_every: Steps between saved states; at least two are saved, however few steps there are.
        folder: Where the state is kept; a run that was stopped goes on from there, and one that `take_along` brought.
        on_save: Called with the step after each saved state, `module` holding averaged weights.

    Returns:
        `module`.
    """
    save_every = min(save_every, max(1, steps // 2))
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_learning_rate, weight_decay=1e-2, fused=True)
    ema = [p.detach().clone() for p in parameters]
    state, state_path = _State(parameters, ema, optimizer), folder / f"{name}.state.pt"
    state.resume(state_path, folder / f"{name}.begun.safetensors")
    if state.step:
        print(f"{name}: resuming from step {state.step} of {steps}", flush=True)
    progress, recent, said = Progress(name, steps, state.step), [], ""
    with one_thread_each(parts) as pool:
        learn = _Learner(parameters, loss_of, [Part(number, parts) for number in range(parts)], pool)
        while (step := state.step) < steps:
            recent.append(learn(step))
            state.take_step(learning_rate(step, steps, peak_learning_rate, state.warm_from), ema_decay)
            done = state.step
            if len(recent) == 50 or done == steps:  # reading a loss waits for the device
                said = f"loss {float(torch.stack(recent).mean()):.4f}"
                recent.clear()
            progress.update(done, said)
            if done % save_every == 0 or done == steps:
                state.save(state_path)
                if on_save is not None and done != steps:
                    with holding(parameters, ema):
                        on_save(done)
    _load(parameters, ema)
    return module


@contextmanager
def one_thread_each(count: int) -> Iterator[ThreadPoolExecutor]:
    """`count` Python threads whose operations take one thread each; then torch has its own threads again."""
    before = torch.get_num_threads()
    if count > 1:
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Learner:
    """Gives each step's gradients to the parameters: the mean of its parts'."""

    parameters: list[nn.Parameter]
    loss_of: Callable[[int, Part], Tensor]
    parts: list[Part]
    pool: ThreadPoolExecutor

    def __call__(self, step: int) -> Tensor:
        """Set the gradients of a step and return its loss."""
        found = list(self.pool.map(lambda part: self._gradients(step, part), self.parts))
        for parameter, *gradients in zip(self.parameters, *(each for _, each in found), strict=True):
            known = [one for one in gradients if one is not None]  # none: the loss does not see this parameter
            parameter.grad = _laid_out_as(parameter, _mean(known)) if known else None
        return torch.stack([loss for loss, _ in found]).mean()

    def _gradients(self, step: int, part: Part) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = self.loss_of(step, part)
        return loss.detach(), torch.autograd.grad(loss, self.parameters, allow_unused=True)


def _laid_out_as(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """A gradient in its parameter's own order of numbers.

    A convolution of channels-last pictures gives its weight's gradient channels-last, and torch's fused AdamW reads it
    on a CPU as if it were in the weight's order: it moves every number by another one's gradient.
    """
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _mean(gradients: list[Tensor]) -> Tensor:
    """The mean of gradients of one parameter, in the memory of the first."""
    total = gradients[0]
    for other in gradients[1:]:
        total.add_(other)
    return total.div_(len(gradients)) if len(gradients) > 1 else total


@torch.no_grad()
def _load(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
