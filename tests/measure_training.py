"""Train in a process of its own and print what it took: `python tests/measure_training.py <json>`.

Not a test: `training.measured` starts it, and tests compare its numbers with the preflight's.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from sdlora.config.params import Base, Flip
from sdlora.config.train import Train
from sdlora.randomness import generator
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import train_loop
from sdlora.stages.train.run import prepare


def memory(row: str) -> int:
    """A row of this process's status, bytes: VmRSS now, VmHWM at most."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{row}:")[1].split()[0]) * 1024


def examples(latent: tuple[int, int, int], count: int = 2) -> list[Example]:
    """Random latents."""
    source = generator("measured")
    drawn = [torch.randn(latent, generator=source) for _ in range(count)]
    return [Example(f"p{n}", (mean,), (torch.full(latent, 0.1),), ("captain",)) for n, mean in enumerate(drawn)]


def give_back() -> None:
    """Return freed memory to the kernel."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def train(base: Base, settings: Train, latent: tuple[int, int, int]) -> dict[str, object]:
    """Bytes at rest with the base loaded and at the worst moment of the training, and the losses."""
    run = prepare(settings, Flip(), base, examples(latent))
    give_back()
    resting = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    log = train_loop(run, None, lambda state: None)
    return {"resting": resting, "peak": memory("VmHWM"), "losses": [row[1] for row in log]}


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    # libraries load and start while the embedded base trains, so that they are in the baseline
    tiny = Base(model=str(Path(__file__).parents[1] / "models/tiny-sd"), family="sd", size_px=64, captioner="-")
    settings = Train(**asked["train"])
    train(tiny, settings.model_copy(update={"batch_size": 1}), (4, 16, 16))
    give_back()
    baseline = memory("VmRSS")
    found = train(Base(**asked["base"]), settings, tuple(asked["latent"]))
    print(json.dumps({"baseline": baseline, **found}))


if __name__ == "__main__":
    main()
