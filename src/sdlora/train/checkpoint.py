"""Saving and restoring the whole state of a run, so that stopping anywhere loses little and changes nothing."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora import provenance, records

KEPT_STATES = 2


@dataclass
class State:
    """What must survive: the step, the LoRA, optimizer, schedule and scaler, and the log so far."""

    step: int
    parameters: list[Tensor]
    optimizer: dict[str, Any]
    lr_schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    log: list[list[float]]
    ema: list[Tensor] | None = None


def _folder(run: Path, step: int) -> Path:
    return run / "state" / f"step-{step:06d}"


def save_state(run: Path, state: State) -> None:
    """Write a state: the file first, its hash last; older states beyond two are dropped."""
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    folder = _folder(run, state.step)
    records.write_bytes(folder / "state.pt", buffer.getvalue())
    records.write_json(folder / "state.json", {"sha256": provenance.sha256_of(folder / "state.pt")})
    for old in sorted((run / "state").glob("step-*"))[:-KEPT_STATES]:
        shutil.rmtree(old)


def newest_state(run: Path) -> State | None:
    """The newest undamaged state, or None for a run that has none."""
    for folder in sorted((run / "state").glob("step-*"), reverse=True):
        try:
            expected = records.read_json(folder / "state.json")["sha256"]
            if provenance.sha256_of(folder / "state.pt") != expected:
                raise ValueError("its content does not fit its checksum")
            return State(**torch.load(folder / "state.pt", weights_only=True))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            print(f"train: skipping the damaged state {folder.name}: {error}", flush=True)
    return None
