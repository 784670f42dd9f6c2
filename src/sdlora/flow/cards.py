"""Each job that computes on a GPU has a card of its own, or several; the kernel takes it back when the process dies.

Imports no torch: a job sees its card alone, and its allocator knows what to do, from before CUDA starts.
"""

import fcntl
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sdlora.errors import DataError, ParamsError

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: How torch's allocator is told what to do, and the older name of it.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
LOOKED_S = 0.2  # between two looks for a card that became free
PATIENCE_S = 60  # with NVIDIA's tool, which waits for ever on some broken drivers
_DRIVERS_CARDS = Path("/proc/driver/nvidia/gpus")
_OF_AMD = Path("/dev/kfd")
_held: "list[Lease]" = []


@dataclass(frozen=True)
class Lease:
    """A card that no other job of this machine's user has."""

    card: str
    lock: IO[str]

    def give_back(self) -> None:
        """Let another job have it."""
        self.lock.close()


def of_this_machine() -> list[str]:
    """The cards that jobs may use, as `CUDA_VISIBLE_DEVICES` names them; none where NVIDIA's driver tells of none.

    Where the variable is set (by a user, by Slurm), it says which; of AMD's it alone does.

    Raises:
        DataError: If NVIDIA's tool does not answer.
    """
    said = os.environ.get(VISIBLE)
    if said is not None:
        return [card.strip() for card in said.split(",") if card.strip() not in ("", "-1")]
    if tool := shutil.which("nvidia-smi"):
        try:
            told = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=PATIENCE_S).stdout
        except subprocess.TimeoutExpired:
            raise DataError(
                f"{tool} -L does not answer in {PATIENCE_S} s: mend the driver, or say which cards there are, such as "
                f"{VISIBLE}=0 (nothing after the = for none)"
            ) from None
        return [str(number) for number in range(sum(line.startswith("GPU ") for line in told.splitlines()))]
    return [str(number) for number in range(len([*_DRIVERS_CARDS.glob("*")]))]


def folder() -> Path:
    """Where this user's locks lie, whatever the project: one a machine, and one a job of Slurm, which numbers anew."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name, job = socket.gethostname(), os.environ.get("SLURM_JOB_ID")
    return cache / "sdlora" / "cards" / (f"{name}-{job}" if job else name)


def lease(cards: Sequence[str], locks: Path, count: int = 1) -> list[Lease]:
    """Take cards that nobody has; wait until there are as many.

    Args:
        cards: Names, at least `count`.
        locks: A folder with one lock file a card.
        count: How many; who waits for more holds none, so that two that wait do not wait for each other.

    Raises:
        DataError: If the locks cannot be written.
    """
    waited = False
    while True:
        found: list[Lease] = []
        for card in random.sample(cards, len(cards)):
            try:
                locks.mkdir(parents=True, exist_ok=True)
                lock = (locks / f"{card.replace('/', '_')}.lock").open("w")
            except OSError as error:
                raise DataError(f"{locks}: {error.strerror}; who uses which GPU is kept there") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            found.append(Lease(card, lock))
            if len(found) == count:
                return sorted(found, key=lambda one: cards.index(one.card))
        for one in found:
            one.give_back()
        if not waited:
            print(f"waiting for {'a GPU' if count == 1 else f'{count} GPUs'}: other jobs use some", flush=True)
        waited = True
        time.sleep(LOOKED_S * random.uniform(0.5, 1.5))  # two that look at the same time do not do so for ever


def take(count: int) -> None:
    """Give this process cards of its own until it ends, where there are any. Called before CUDA starts.

    Raises:
        ParamsError: If this is one of several processes that were started for one job, or if there are fewer cards.
    """
    check_processes(os.environ.get("WORLD_SIZE", "1"))
    cards = of_this_machine()
    if not cards:
        if _OF_AMD.exists() and VISIBLE not in os.environ:
            print(
                f"AMD's GPUs are not counted, so jobs that run at once share the first: say which there are, "
                f"{VISIBLE}=0,1, and each job has its own",
                flush=True,
            )
        return
    if len(cards) < count:
        raise ParamsError(
            f"train.processes is {count}, one GPU each, but this machine has {len(cards)} ({', '.join(cards)})"
        )
    if VISIBLE not in os.environ:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver numbers them
    _held[:] = lease(cards, folder(), count)
    os.environ[VISIBLE] = ",".join(one.card for one in _held)
    if not any(name in os.environ for name in ALLOCATOR):  # pictures of many sizes would tear the card's memory apart
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    if len(cards) > 1:
        print(f"on GPU {os.environ[VISIBLE]} of {', '.join(cards)}", flush=True)


def check_processes(count: str) -> None:
    """Refuse what was started as one of several processes.

    Raises:
        ParamsError: If there is more than one.
    """
    if count not in ("", "1"):
        raise ParamsError(
            f"this was started as one of {count} processes (accelerate launch, torchrun), each of which would write "
            f"the same files: start it by `snakemake` alone. For one training on several GPUs say train.processes in "
            f"params.yaml; several trainings run beside each other (gpu in profiles/default/profile.yaml)"
        )
