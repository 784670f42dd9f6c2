"""One training on several processes: each computes its share of every step, and gradients are averaged.

A draw is a function of (seed, draw, id), so the processes need not talk about what they draw. Checkpoints, states and
the log are written by the first alone.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sdlora import records
from sdlora.config.train import Train
from sdlora.errors import DataError, Diverged, SdloraError
from sdlora.stages.train.recipe import TrainRecipe

PROGRAM = "sdlora.stages.train.run"  # what each process runs
ASKED = "asked.json"  # what the processes are to do, in the run's folder
DIVERGED = "diverged.txt"  # what a process says there whose training diverged
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What one process computes of a step: some of its batches where they divide evenly, else some rows of each."""

    number: int = 0  # of the process, 0-based
    count: int = 1
    accumulation: int = 1  # batches a step, of all processes

    @classmethod
    def of(cls, settings: Train, accelerator: Accelerator) -> "Share":
        """This process's share."""
        return cls(accelerator.process_index, accelerator.num_processes, settings.accumulation)

    @property
    def by_batches(self) -> bool:
        """Whether a process takes whole batches."""
        return self.accumulation % self.count == 0

    @property
    def batches(self) -> int:
        """How many batches of a step this process computes."""
        return self.accumulation // self.count if self.by_batches else self.accumulation

    def batch(self, index: int) -> int:
        """The training's number of this process's batch `index`, both from 0."""
        if not self.by_batches:
            return index
        step, place = divmod(index, self.batches)
        return step * self.accumulation + self.number * self.batches + place

    def rows(self, drawn: Sequence[T]) -> Sequence[T]:
        """Which of a batch's rows this process computes."""
        if self.by_batches:
            return drawn
        size = len(drawn) // self.count
        return drawn[self.number * size : (self.number + 1) * size]

    def noise_of(self, index: int) -> tuple[int, ...]:
        """What dropout's seed depends on beside seed and step."""
        part = self.batch(index) % self.accumulation
        return (part,) if self.by_batches else (part, self.number)


ALL = Share()  # of a training that is one process


def averaged(accelerator: Accelerator, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Give every process the mean gradients, in one exchange; returns the mean loss.

    Args:
        accelerator: Knows the other processes.
        parameters: Their gradients are of the mean over this process's share, and become those of the whole step's.
        loss: This process's, a scalar.
    """
    if accelerator.num_processes == 1:
        return loss
    for parameter in parameters:
        if parameter.grad is None:  # its share did not reach it; another process's may have
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([loss.reshape(1).float(), *(gradient.flatten().float() for gradient in gradients)])
    means: Tensor = accelerator.reduce(together, "mean")
    parts = torch.split(means[1:], [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))
    return means[0]


def launch(recipe: TrainRecipe, kept: Path, lock: int, until: int | None = None) -> None:
    """Train in as many processes as the recipe says (torchrun, as `accelerate launch` does it), and wait for them.

    Args:
        recipe: What is to be done.
        kept: The run's folder in the store.
        lock: The open file that holds it: the processes hold it, too, so that nobody else trains there while one lives.
        until: The checkpoint that they stop at; None is the last.

    Raises:
        Diverged: If the training diverged.
        DataError: If a process failed for another reason; torchrun has then ended the others.
    """
    asked, diverged = kept / ASKED, kept / DIVERGED
    records.write_text(asked, recipe.text)
    diverged.unlink(missing_ok=True)
    words = ["--standalone", f"--nproc-per-node={recipe.train.processes}", "-m", PROGRAM, str(asked), str(kept)]
    words += [] if until is None else [str(until)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(recipe.threads)}
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    with subprocess.Popen(command, env=environment, pass_fds=[lock]) as together:
        try:
            code = together.wait()
        except BaseException:
            together.terminate()
            raise
    if diverged.exists():
        raise Diverged(diverged.read_text("utf-8"))
    if code:
        raise DataError(f"one of the {recipe.train.processes} processes of this training failed; its error is above")
    asked.unlink()


def work(train: Callable[[TrainRecipe, Path, int | None], None]) -> None:
    """What each process does: read the recipe and train; only the first tells how far it is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("kept", type=Path)
    parser.add_argument("until", type=int, nargs="?")
    args = parser.parse_args()
    _die_with_parent()
    number = os.environ["RANK"]
    if number != "0":
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    try:
        train(TrainRecipe.read(args.recipe), args.kept, args.until)
    except SdloraError as error:
        if isinstance(error, Diverged):
            records.write_text(args.kept / DIVERGED, str(error))
        sys.exit(f"error in process {number}: {error}")


def _die_with_parent() -> None:
    """torchrun puts each process into a session of its own, so that a `kill -9` of everything else would spare it."""
    if sys.platform == "linux":
        set_parents_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parents_death_signal, signal.SIGKILL)
