"""Saving and restoring the whole state of a run, so that stopping anywhere loses little and changes nothing.

A state is a folder `state/step-000100` of three files: `tensors.safetensors`, `state.json` (everything that is no
tensor) and `manifest.json` (the run's identity, the hash of both, and those of the checkpoints up to it: who goes on
from a state makes none of them again). Equal states give equal bytes. There is no random number generator in it: all
randomness is a function of (seed, step, example), see `sdlora.randomness`.
"""

import errno
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdlora import records, tensors
from sdlora.errors import DataError
from sdlora.flow import hashing
from sdlora.flow.identity import Identity, differing, told
from sdlora.stages.train import canonical

KEPT_STATES = 2
CHECKPOINTS = "checkpoints"
FORMAT = 1
TENSORS, TREE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class State:
    """What must survive: the step, the LoRA, optimizer, schedule and scaler, EMA, and the log so far."""

    step: int
    parameters: list[Tensor]
    optimizer: dict[str, Any]
    lr_schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    log: list[list[float]]
    ema: list[Tensor] | None = None


@dataclass(frozen=True)
class Manifest:
    """What a saved state says about itself."""

    folder: Path
    step: int
    identity: Identity
    device: str
    files: dict[str, str]
    checkpoints: dict[str, str] | None  # of the run's files up to its step; None in those of older versions


def device_name() -> str:
    """The device that computes: the last digits depend on it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})"


def save_state(run: Path, state: State, identity: Identity | None = None) -> None:
    """Write a state beside the older ones, whole or not at all, and drop all but the newest two.

    States of later steps were refused as damaged, or training would have gone on from them: they go first.

    Raises:
        DataError: If the disk is full; the state before stays whole.
    """
    text, found = canonical.flatten(vars(state))
    folder = run / "state" / f"step-{state.step:06d}"
    with told_when_full(run), records.new_folder(folder) as part:
        files = {
            TENSORS: records.write_pieces(part / TENSORS, tensors.pieces(found)),
            TREE: records.write_pieces(part / TREE, [text.encode()]),
        }
        manifest = {"format": FORMAT, "step": state.step, "files": files, "device": device_name()}
        manifest |= {"identity": identity or {}, "checkpoints": _checkpoints(run, state.step)}
        sealed = {**manifest, "seal": hashing.sha256_text(records.canonical_json(manifest))}
        records.write_pieces(part / MANIFEST, [records.canonical_json(sealed).encode()])
    for later in (one for one in (run / "state").glob("step-*") if one.name > folder.name):
        shutil.rmtree(later)
    keep_states(run, KEPT_STATES)


def _checkpoints(run: Path, step: int) -> dict[str, str]:
    """The hash of every file of the checkpoints up to a step, by its path in the run; known ones are not read again."""
    before = newest_manifest(run)
    known = (before.checkpoints or {}) if before and before.step < step else {}
    found = {}
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        if int(folder.name.removeprefix("step-")) <= step:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(run).as_posix()
                found[name] = known.get(name) or hashing.sha256_of(path)
    return found


def keep_states(run: Path, count: int) -> None:
    """Drop all but the newest states of a run."""
    for old in sorted((run / "state").glob("step-*"))[:-count]:
        shutil.rmtree(old)


def clear_leftovers(run: Path) -> None:
    """Remove half-written files of a process that was killed; only the owner of the run may call this."""
    for left in [*run.rglob("*.part")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextmanager
def told_when_full(run: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(run).free / 2**20
        raise DataError(
            f"{run}: cannot write ({error.strerror}; {free:.1f} MiB are free), but {what_is_kept(run)}: free some "
            f"space and start again, and training goes on from there"
        ) from error


def manifests(run: Path) -> Iterator[Manifest]:
    """The undamaged manifests of a run's states, newest first; what lacks one is no state."""
    for folder in sorted((run / "state").glob("step-*"), reverse=True):
        try:
            rows = records.read_json(folder / MANIFEST)
            seal = rows.pop("seal")
            if seal != hashing.sha256_text(records.canonical_json(rows)):
                raise ValueError("its manifest does not fit its seal")
            if rows["format"] != FORMAT:
                raise ValueError(f"its format is {rows['format']}, not {FORMAT}")
            checkpoints = rows.get("checkpoints")
            yield Manifest(folder, rows["step"], rows["identity"], rows["device"], rows["files"], checkpoints)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            _skip(folder, error)


def newest_manifest(run: Path) -> Manifest | None:
    """The newest undamaged manifest, without a look at its state's files."""
    return next(manifests(run), None)


def what_is_kept(run: Path) -> str:
    """The last good state of a run that broke down, in words."""
    last = newest_manifest(run)
    return f"the state after step {last.step} is whole ({last.folder})" if last else "nothing was saved before"


def newest_state(run: Path, identity: Identity | None = None) -> State | None:
    """The newest undamaged state, or None for a run that has none.

    Args:
        run: The run's folder.
        identity: What the run is now; None takes whatever there is.

    Raises:
        DataError: If the state was saved by another run; names what differs, with both values.
    """
    for manifest in manifests(run):
        names = differing(manifest.identity, identity) if identity is not None else []
        if names:
            raise DataError(
                f"{manifest.folder} is no state of this run: {told(names, manifest.identity, identity or {})}; "
                f"set that back, or delete {run / 'state'} to train anew"
            )
        state = read_state(manifest)
        if state is not None:
            if manifest.device != device_name():
                print(
                    f"train: this state was made on {manifest.device} and goes on on {device_name()}: "
                    f"the last digits will differ from those of a run on one device",
                    flush=True,
                )
            return state
    return None


def reseal(manifest: Manifest, identity: Identity) -> None:
    """Make a state another run's, whose results are to be taken for the same (`sdlora.flow.accept`)."""
    rows = records.read_json(manifest.folder / MANIFEST) | {"identity": identity}
    rows.pop("seal")
    records.write_json(manifest.folder / MANIFEST, {**rows, "seal": hashing.sha256_text(records.canonical_json(rows))})


def read_state(manifest: Manifest) -> State | None:
    """The state of a manifest, or None (and a line that says why) if its files are damaged."""
    try:
        for name, digest in manifest.files.items():
            if hashing.sha256_of(manifest.folder / name) != digest:
                raise ValueError(f"the content of {name} does not fit its checksum")
        if not hashing.are_whole(manifest.folder.parents[1], manifest.checkpoints or {}):
            raise ValueError("a checkpoint of a step up to it is damaged or gone")
        found = load_file(manifest.folder / TENSORS)
        return State(**canonical.unflatten((manifest.folder / TREE).read_text("utf-8"), found))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        _skip(manifest.folder, error)
        return None


def _skip(folder: Path, error: Exception) -> None:
    print(f"train: skipping the damaged state {folder.name}: {type(error).__name__}: {error}", flush=True)
