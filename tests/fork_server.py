"""Trains in forks of one process that has imported everything, so that twenty kills do not cost twenty imports.

    python tests/fork_server.py FOLDER '{"adamw": {"optimizer": "adamw"}}'

For every case it trains once without a stop, then once more with kills at random moments, and prints what it saw.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from shapes import save_small_sd
from training import examples

from sdlora.config.params import Flip
from sdlora.config.train import Ema, Train
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.checkpoint import State, clear_leftovers, newest_manifest, newest_state, save_state
from sdlora.stages.train.loop import Run, backward, train_loop
from sdlora.stages.train.run import prepare, write_checkpoint

STEPS, KILLS = 24, 20
SHARED: dict[str, Any] = {
    "rank": 4, "alpha": 2.0, "steps": STEPS, "checkpoint_every": 2, "learning_rate": 1e-3, "mixed_precision": "no",
    "lr_schedule": "cosine", "accumulation": 2, "ema": Ema(decay=0.9), "dropout": 0.1,
    "shuffle_tags": True, "caption_dropout": 0.1,
}  # fmt: skip
CAPTIONS = ("captain, red hair, blue shirt, on the left", "captain, red hair, blue shirt, on the right")


def start(run: Run, folder: Path, identity: dict[str, Any]) -> tuple[int, int]:
    """Train in a fork, from the newest state; the process, and a pipe that gets one byte a step."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        os.close(reader)
        run.optimizer.optimizer.register_step_post_hook(lambda *_: os.write(writer, b"."))

        def on_checkpoint(state: State) -> None:
            write_checkpoint(run, folder / "checkpoints" / f"step-{state.step:06d}")
            save_state(folder, state, identity)

        clear_leftovers(folder)
        train_loop(run, newest_state(folder, identity), on_checkpoint)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def finish(run: Run, folder: Path, identity: dict[str, Any]) -> float:
    """Train to the end; seconds a step."""
    child, reader = start(run, folder, identity)
    began, steps = time.monotonic(), 0
    while os.read(reader, 1):
        steps += 1
    os.close(reader)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise RuntimeError("the training failed")
    return (time.monotonic() - began) / max(steps, 1)


def kill_at(moment: float, step_s: float, run: Run, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Train until `moment` (steps, with a fraction), then SIGKILL; what was found afterwards."""
    manifest = newest_manifest(folder)
    resumed = done = manifest.step if manifest else 0
    child, reader = start(run, folder, identity)
    while done < int(moment) and os.read(reader, 1):
        done += 1
    time.sleep(moment % 1 * step_s)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reader)
    in_save = any((folder / "state").glob(".*"))
    return {"moment": moment, "resumed": resumed, "code": code, "in_save": in_save}


def main(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # a fork's collections pass over what it inherits
    base = save_small_sd(folder / "base")
    for name, changes in cases.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = Train.model_validate({**SHARED, **changes})
        run = prepare(settings, Flip(), base, [replace(e, text=CAPTIONS) for e in examples(side=4)])
        backward(run, draw_batch(run, 1, 0))  # layers lay out their weights and find their kernels once for all forks
        run.optimizer.zero_grad()
        identity = {"train.seed": settings.seed, "train.optimizer": settings.optimizer}
        step_s = finish(run, folder / name / "straight", identity)
        draws = random.Random(name)
        moments = sorted(draws.uniform(0, STEPS - 1) for _ in range(KILLS))
        killed = folder / name / "killed"
        kills = [kill_at(moment, step_s, run, killed, identity) for moment in moments]
        finish(run, killed, identity)
        print(json.dumps({"case": name, "step_s": step_s, "kills": kills}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
