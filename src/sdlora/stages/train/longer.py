"""Going on with a finished run when its version is given more steps, or with one by another number of processes."""

from pathlib import Path

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from sdlora import choices, records
from sdlora.config.train import Train
from sdlora.errors import DataError
from sdlora.flow import hashing, store
from sdlora.flow.identity import UPDATED, Identity, differing, is_update, section, told
from sdlora.stages.train.checkpoint import Manifest, State, newest_manifest, read_state, save_state
from sdlora.stages.train.recipe import DONE

#: Names that may differ between a run and a longer one. The schedule is compared rate by rate instead.
LENGTH = {"train.steps", "train.checkpoint_every", "train.lr_stages", "checkpoint_steps"}
#: The name of what changes no draw: by how many processes a step is computed.
PROCESSES = "train.processes"
#: Names that change under a run without anybody editing its settings.
SURROUNDINGS = (*UPDATED, "base_identity", "threads", "dataset.")


def go_on(kept: Path, identity: Identity, settings: Train) -> State | None:
    """The last state of the longest run that is this one but for its length or its processes, made this run's own.

    Its checkpoints are copied, too. A run whose learning rates were others, such as a cosine over another total, is
    named and left alone.

    Args:
        kept: This run's folder in the store.
        identity: What this run is.
        settings: Its training section.

    Returns:
        The state to go on from, or None to train from the start.
    """
    found = [(folder, newest_manifest(folder)) for folder in store.entries("train") if folder != kept]
    known = [(folder, manifest) for folder, manifest in found if manifest is not None]
    said = []
    for folder, manifest in sorted(known, key=lambda row: row[1].step, reverse=True):
        names = differing(manifest.identity, identity)
        run, done = f"run {folder.name[:12]}", (folder / DONE).exists()
        longer = done and set(names) <= LENGTH and manifest.step < settings.steps
        if longer or (not done and names == [PROCESSES]):
            try:
                with store.sole_use(folder):
                    return _taken_over(folder, manifest, kept, identity, settings)
            except DataError as reason:  # in use, damaged, or with other rates
                said.append(f"{run} differs only in its length ({manifest.step} steps), but {reason}")
        elif not done and all(name.startswith(SURROUNDINGS) for name in names):
            changes = told(names, manifest.identity, identity)
            way = "; to resume it all the same, say `sdlora accept VERSION`" if is_update(names) else ""
            said.append(
                f"{run} stopped at step {manifest.step}, but to resume it would mix two trainings: {changes}{way}"
            )
    for line in said:
        print(f"train: {line}; training from the start", flush=True)
    return None


def is_undamaged(run: Path) -> bool:
    """Whether all files of a finished run are as they were."""
    outputs = hashing.read_regular(run / DONE)
    return isinstance(outputs, dict) and hashing.are_whole(run, outputs)


def _taken_over(folder: Path, manifest: Manifest, kept: Path, identity: Identity, settings: Train) -> State:
    """The state of `folder`, saved in `kept` with the checkpoints before it.

    Raises:
        DataError: With the reason why it cannot be gone on from.
    """
    before = Train.model_validate_json(records.canonical_json(section(manifest.identity, "train")))
    missing = {step for step in settings.checkpoint_steps if step <= manifest.step} - set(before.checkpoint_steps)
    if missing:
        raise DataError(f"it kept no checkpoint at step {min(missing)}")
    if ((folder / DONE).exists() and not is_undamaged(folder)) or (state := read_state(manifest)) is None:
        raise DataError("its files are damaged")
    _set_schedule(state, before, settings)
    for step in settings.checkpoint_steps:
        if step <= state.step:
            name = f"checkpoints/step-{step:06d}"
            records.publish_folder(folder / name, kept / name)
    save_state(kept, state, identity)
    shared_out_anew = differing(manifest.identity, identity) == [PROCESSES]
    what = "number of processes" if shared_out_anew else "length"
    print(f"train: only the {what} differs: resuming from step {state.step} of run {folder.name[:12]}", flush=True)
    if shared_out_anew:
        print("train: the last digits will differ from those of a training with as many from the start", flush=True)
    return state


def _set_schedule(state: State, before: Train, settings: Train) -> None:
    """Put the longer run's schedule into a state, as it is after the same number of steps.

    Raises:
        DataError: If it gives another rate at a step already taken.
    """
    groups = state.optimizer["param_groups"]
    peaks = [float(group.get("initial_lr", group["lr"])) for group in groups]
    (old, _), (new, schedule) = (_rates(each, peaks, state.step) for each in (before, settings))
    for step, (was, would_be) in enumerate(zip(old, new, strict=True)):
        if step < state.step and was != would_be:
            raise DataError(
                f"lr_schedule {settings.lr_schedule} depends on the total: the rate of step {step + 1} was "
                f"{was[0]:.6g} and would be {would_be[0]:.6g}"
            )
    state.lr_schedule = schedule.state_dict()
    for group, rate in zip(groups, new[-1], strict=True):
        group["lr"] = rate


def _rates(settings: Train, peaks: list[float], steps: int) -> tuple[list[list[float]], LRScheduler]:
    """Each parameter group's rate at steps 0 … `steps`, by the schedule itself, and the schedule then."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    optimizer = optim.SGD(groups)
    schedule: LRScheduler = choices.pick(choices.LR_SCHEDULES, settings.lr_schedule)(optimizer, settings)
    rates = [[float(rate) for rate in schedule.get_last_lr()]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append([float(rate) for rate in schedule.get_last_lr()])
    return rates, schedule
