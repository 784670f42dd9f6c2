"""Count what one training step asks of a GPU, without one: `python -m benchmarks.counts`.

The published architectures of SD 1.5 and SDXL, batch 1, bf16, a LoRA on attention. Copies from the CPU's memory, from
the draw to the loss, are counted on fake CUDA tensors. Operations, without views, are counted on fake CPU tensors: like
a GPU they have one kernel for attention; those of clipping and optimizer on real tensors of the LoRA's shapes. There
a wait is a number that is read, or a call of bitsandbytes' `sync_gpu`. No time is measured.
"""

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fake_card import CPU, CUDA, Reads, Traffic, cached_example, on_a_card, run_of, shapes_of, with_lora
from sdlora import choices
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.memory.prediction import _Shapes
from sdlora.models.loading import quieten
from sdlora.stages.train.batch import batch_of, draw_batch
from sdlora.stages.train.loop import READ_EVERY, loss_of, ready, rows_of
from sdlora.stages.train.optimizers import bitsandbytes_optim

#: Entry of choices.FAMILIES, side in px and rank of each.
BASES = {"SD 1.5": ("sd", 512, 8), "SDXL": ("sdxl", 1024, 16)}
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute or copy."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not (operation.is_view or operation.namespace in ("prim", "profiler"))
        return operation(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Passes:
    """What the passes of a step need."""

    copies: int  # from the CPU's memory, from draw to loss
    waits: int  # of the CPU for the card, likewise
    forward: int  # operations
    backward: int
    shapes: list[torch.Size]  # of the LoRA's parameters


def settings_of(rank: int, optimizer: str = "adamw") -> Train:
    """As `python -m benchmarks.counts` trains."""
    rate = 1.0 if optimizer == "prodigy" else 1e-4
    return Train(rank=rank, mixed_precision="bf16", optimizer=optimizer, learning_rate=rate, mask="padding")


def shapes_with_lora(family: str, train: Train, device: torch.device) -> _Shapes:
    """The published architecture in bf16, of shapes alone."""
    kind = choices.pick(choices.FAMILIES, family)
    base = Base(
        model="published.safetensors", family=family, size_px=kind.published_size_px, dtype="bf16", captioner="-"
    )
    shapes = shapes_of(train, base, device)
    name, config = kind.published_scheduler
    shapes.model.pipeline.scheduler = getattr(diffusers, name)(**{"prediction_type": "epsilon", **config})
    with_lora(train, shapes)
    return shapes


def passes_of(family: str, side_px: int, train: Train) -> Passes:
    """Count a second step: tables go to the card at their first use."""
    shapes = shapes_with_lora(family, train, CUDA)
    with on_a_card(), shapes.mode, torch.no_grad():
        run = run_of(train, shapes, cached_example(shapes, side_px, mask=True))
        loss_of(run, draw_batch(run, 0, 0))
        with Traffic() as traffic:
            loss_of(run, batch_of(run, ready(run, 1)()[0]))
    shapes = shapes_with_lora(family, train, CPU)
    with shapes.mode:
        run = run_of(train, shapes, cached_example(shapes, side_px, mask=True))
        batch = draw_batch(run, 1, 0)
        with Operations() as forward:
            loss = loss_of(run, batch)
        with Operations() as backward:
            torch.autograd.backward(loss)
    lora = [parameter.shape for parameter in run.parameters]
    return Passes(traffic.copies, traffic.waits, forward.count, backward.count, lora)


def optimizer_counts(train: Train, shapes: list[torch.Size]) -> tuple[int, int]:
    """Operations and waits of a step of clipping and optimizer."""
    waits: list[Tensor] = []
    bitsandbytes_optim().optimizer.sync_gpu = waits.append
    parameters = [nn.Parameter(torch.full(shape, number % 2 * 0.1)) for number, shape in enumerate(shapes)]
    optimizer = choices.pick(choices.OPTIMIZERS, train.optimizer)([{"params": parameters, "lr": 1.0}], train)
    for _ in range(2):  # the first makes the state
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        waits.clear()
        with Reads() as reads, Operations() as operations:
            nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
            optimizer.step()
    return operations.count, reads.count + len(waits)


def reads_of_losses() -> float:
    """How often a step's loss is read."""
    with Reads() as reads:
        rows_of([(step, torch.zeros(()), 1.0, 1.0) for step in range(READ_EVERY)])
    return reads.count / READ_EVERY


def table() -> str:
    """A row for each base and optimizer, in Markdown."""
    head = ["base", "optimizer", "copies", "waits", "operations: forward", "backward", "clipping and optimizer"]
    rows = [head, ["---", "---", *["---:"] * 5]]
    for name, (family, side_px, rank) in BASES.items():
        passes = passes_of(family, side_px, settings_of(rank))
        for optimizer in OPTIMIZERS:
            operations, waits = optimizer_counts(settings_of(rank, optimizer), passes.shapes)
            total = passes.waits + waits + reads_of_losses()
            rows.append(
                [
                    name, optimizer, str(passes.copies), f"{total:g}", f"{passes.forward:,}", f"{passes.backward:,}",
                    f"{operations:,}",
                ]
            )  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.filterwarnings("ignore")
    quieten()
    print(table())


if __name__ == "__main__":
    main()
