"""Predict the memory a training needs before it starts, and say what would make it fit.

sdlora preflight v8        # the phases of a version, from params.yaml
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from sdlora import gpu
from sdlora.config.params import Base, Params, Version
from sdlora.config.sample import Sample
from sdlora.config.train import Train
from sdlora.errors import ParamsError, ResourceError
from sdlora.memory import ram
from sdlora.memory.demand import Demand, demand_of
from sdlora.memory.meter import free_bytes
from sdlora.memory.prediction import (
    Phase,
    Unpredictable,
    draw_phase,
    encode_phase,
    predict,
)
from sdlora.models.family import default_device
from sdlora.models.loading import quieten
from sdlora.stages.sample.drawing import check_before_training

__all__ = ["Demand", "Phase", "check", "demand_of", "predict", "table"]
MIB, GIB = 2**20, 2**30
NEARLY_FULL = 0.85  # of what is free: allocators and libraries need some of the rest
Changes = dict[tuple[str, str], Any]  # (section, key) -> value


def check(
    settings: Train,
    base: Base,
    demand: Demand,
    free: int | None = None,
    device: str | None = None,
    phases: list[Phase] | None = None,
    drawing: tuple[Sample, int] | None = None,
    beside: int = 1,
) -> None:
    """Refuse a run that would not fit, before anything is loaded; one whose need nobody can tell may start.

    Args:
        settings: The run's.
        base: Its base.
        demand: Its pictures and captions.
        free: Bytes to fit into; None = what the training device has free now.
        device: Where it trains; None = CUDA where there is one.
        phases: The prediction, if it is known already.
        drawing: How will be drawn with the LoRA, and at which side in px: training would be for nothing if the
            base could not do it, or if it did not fit on a GPU.
        beside: Processes that train together. GPUs are one each; RAM is shared.

    Raises:
        ResourceError: With the prediction, what is free, and the changes that would make it fit.
        ParamsError: If the base does not have an option that it will be drawn with.
    """
    if drawing is not None:
        check_before_training(drawing[0], base, drawing[1])
    where = torch.device(device or default_device())
    sharing = 1 if where.type == "cuda" else beside
    available = (free_bytes(where) if free is None else free) // sharing
    try:
        phases = phases or predict(settings, base, demand, where)
        if drawing is not None and where.type == "cuda" and phases[-1].name != "draw":
            phases = [*phases, draw_phase(*drawing, base, where)]
    except Unpredictable as reason:
        print(f"preflight: {reason}; {_gib(available)} are free, and the training starts unchecked", flush=True)
        return
    worst = max(phases, key=lambda phase: phase.total)
    needed = _needed(worst.total, where)
    place = "GPU memory" if where.type == "cuda" else "RAM"
    said = f"{_gib(needed)} of {place} at the worst moment ({worst.name}), {_gib(available)} are free"
    said += f" for each of {sharing} processes" if sharing > 1 else ""
    if needed <= available:
        nearly = needed > NEARLY_FULL * available
        print(f"preflight: {said}{'; that is close: other programs should be closed' if nearly else ''}", flush=True)
        return
    parts = _parts(worst)
    if worst.name == "draw":
        lighter = _lighter_drawing(*drawing, base, where, available) if drawing else ""
        raise ResourceError(f"drawing with the trained LoRA needs {said}.\n{parts}\n{lighter}")
    advice = _advice(settings, base, demand, where, available, needed)
    raise ResourceError(f"the training needs {said}.\n{parts}\nOf what can be changed, {advice}")


def check_drawing(sample: Sample, side: int, base: Base, device: str | None = None, free: int | None = None) -> None:
    """Refuse pictures that would not fit on a GPU, before anything is loaded.

    Args:
        sample: How they are drawn.
        side: Theirs, px.
        base: What draws them.
        device: Where; None = CUDA where there is one.
        free: Bytes to fit into; None = what the device has free now.

    Raises:
        ResourceError: With the prediction, what is free, and what would take less.
    """
    where = torch.device(device or default_device())
    if where.type == "cpu":
        return
    available = free_bytes(where) if free is None else free
    try:
        phase = draw_phase(sample, side, base, where)
    except Unpredictable as reason:
        print(f"preflight: {reason}; {_gib(available)} are free, and drawing starts unchecked", flush=True)
        return
    needed = _needed(phase.total, where)
    if needed > available:
        raise ResourceError(
            f"drawing needs {_gib(needed)} of GPU memory, {_gib(available)} are free.\n{_parts(phase)}\n"
            f"{_lighter_drawing(sample, side, base, where, available)}"
        )


def _lighter_drawing(sample: Sample, side: int, base: Base, device: torch.device, available: int) -> str:
    """The changes, one at a time, with which drawing would fit."""
    changes: list[dict[str, Any]] = [{"hires": None}] if sample.hires is not None else []
    whole = {"decode": "whole"} if sample.decode == "sliced" else {}
    changes += [{"batch_size": 1, **whole}] if sample.batch_size > 1 else []
    changes += [{"decode": "sliced"}] if sample.batch_size > 1 and sample.decode == "whole" else []
    changes += [{"decode": "tiled"}, {"decode": "tiled", "batch_size": 1}] if sample.decode != "tiled" else []
    found = []
    for change in changes:
        with suppress(ParamsError):  # a picture that is no larger than a tile
            phase = draw_phase(sample.model_copy(update=change), side, base, device)
            if (total := _needed(phase.total, device)) <= available:
                said = ", ".join(f"sample.{key}: {'null' if value is None else value}" for key, value in change.items())
                found.append(f"  {said}: {_gib(total)}")
    if not found:
        return "No setting of sample makes it fit: use a smaller fit.size_px"
    return "\n".join(["Any of these would fit:", *found])


def _needed(total: int, device: torch.device) -> int:
    """Bytes that must be free: on a GPU, workspaces of kernels and torn free space come on top of what is counted."""
    return total if device.type == "cpu" else round(1.1 * total) + GIB // 2


def _advice(settings: Train, base: Base, demand: Demand, device: torch.device, available: int, needed: int) -> str:
    try:
        ways = [
            f"  {way}: {_gib(total)} ({_gib(needed - total)} less)"
            for way, total in _ways_to_fit(settings, base, demand, device, available)
        ]
    except Unpredictable as reason:
        return f"nothing can be said: {reason}"
    return "\n".join(["any of these would fit:", *ways]) if ways else "no setting makes it fit: use a smaller base"


def ways(settings: Train, base: Base, demand: Demand) -> str:
    """What takes less memory than a training that had too little of it."""
    where = torch.device(default_device())
    try:
        taken = _total_with({}, settings, base, demand, where)
    except Unpredictable as reason:
        return str(reason)
    return f"of what can be changed, {_advice(settings, base, demand, where, taken - 1, taken)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _parts(phase: Phase) -> str:
    largest = sorted(((name, size) for name, size in phase.parts.items() if size), key=lambda part: -part[1])[:4]
    return f"It is made of {', '.join(f'{name} {_gib(size)}' for name, size in largest)}."


def _ways_to_fit(
    settings: Train, base: Base, demand: Demand, device: torch.device, available: int
) -> Iterator[tuple[str, int]]:
    """Changes that bring the prediction below what is free: one at a time, and if none does, together."""
    together: Changes = {}
    alone = list(_changes(settings, base, device))
    fitting = False
    for change in alone:
        total = _total_with(change, settings, base, demand, device)
        if total <= available:
            fitting = True
            yield _said(change), total
    for change in alone:
        together |= change
        if fitting or together == change:
            continue
        total = _total_with(together, settings, base, demand, device)
        if total <= available:
            yield _said(together), total
            return


def _said(change: Changes) -> str:
    return ", ".join(f"{section}.{key}: {_yaml(value)}" for (section, key), value in change.items())


def _changes(settings: Train, base: Base, device: torch.device) -> Iterator[Changes]:
    """What a user can give up for memory, the cheapest first."""
    if settings.batch_size > 1:
        smaller = {("train", "batch_size"): 1}
        yield {**smaller, ("train", "accumulation"): min(512, settings.accumulation * settings.batch_size)}
    if not settings.gradient_checkpointing:
        yield {("train", "gradient_checkpointing"): True}
    if base.dtype == "fp32" or (base.dtype == "fp16" and device.type == "cpu"):
        # under autocast fp32 weights are cast anew for each layer and the copies are kept for the backward pass
        card = gpu.found() if device.type == "cuda" else None
        half = "bf16" if card is None or card.bf16 else "fp16"
        yield {("base", "dtype"): half, ("train", "mixed_precision"): half}
    if settings.rank > 4:
        yield {("train", "rank"): max(4, settings.rank // 4)}


def _total_with(changes: Changes, settings: Train, base: Base, demand: Demand, device: torch.device) -> int:
    train = settings.model_copy(update={key: value for (section, key), value in changes.items() if section == "train"})
    other = base.model_copy(update={key: value for (section, key), value in changes.items() if section == "base"})
    return _needed(max(phase.total for phase in predict(train, other, demand, device)), device)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def table(phases: Sequence[Phase], free: int | None) -> str:
    """The phases and the memory that is free, if that can be known, in Markdown, MiB."""
    names = list(dict.fromkeys(name for phase in phases for name in phase.parts))
    head = ["MiB", *(phase.name for phase in phases)]
    rows = [[name, *(f"{phase.parts.get(name, 0) / MIB:.1f}" for phase in phases)] for name in names]
    rows.append(["total", *(f"{phase.total / MIB:.1f}" for phase in phases)])
    lines = [head, ["---", *("---:" for _ in phases)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text if free is None else f"{text}\n\nfree now: {free / MIB:.1f} MiB"


def beside_a_card(version: Version, base: Base, kept: int = 0) -> str:
    """The RAM that is needed beside the card's memory, in a line; a training keeps so many bytes in it."""
    found = ram.beside_a_card(version, base, kept)
    said = ", ".join(f"{stage} {mib}" for stage, mib in found.items())
    return f"RAM beside the card, libraries included, MiB: {said}"


def show(params: Params, name: str, device: str | None) -> None:
    """Print the table of one version, and whether it fits; of a GPU that is not here, what it would take.

    Raises:
        ResourceError: If it does not fit, or if torch takes no step of it on tensors without numbers.
    """
    quieten()
    version = params.versions[name]
    base, where = params.bases[version.base], torch.device(device or default_device())
    missing = where.type == "cuda" and gpu.found() is None
    on = torch.device("cpu") if missing else None
    train, demand = version.train.of_one_process, ram.demand(params, name)
    try:
        phases = predict(train, base, demand, where, on)
    except Unpredictable as reason:
        raise ResourceError(f"{name}: {reason}") from None
    drawing = version.sample, version.fit.size_px or base.size_px
    phases.append(draw_phase(*drawing, base, where, on))
    print(table([encode_phase(version, base, where, on), *phases], None if missing else free_bytes(where)))
    if where.type == "cuda":
        print(beside_a_card(version, base, demand.in_ram))
    if missing:
        worst = max(phases, key=lambda phase: phase.total)
        print(
            f"preflight: {_gib(_needed(worst.total, where))} of GPU memory at the worst moment ({worst.name}); no GPU "
            f"is here, so this is counted in a GPU's types on the CPU"
        )
    else:
        check(train, base, demand, device=where.type, phases=phases, drawing=drawing, beside=train.processes)
