"""Predict the memory a training needs before it starts, and say what would make it fit.

sdlora preflight v8        # the phases of a version, from params.yaml
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sdlora.config.params import Base, Params
from sdlora.config.train import Train
from sdlora.errors import ResourceError
from sdlora.memory.meter import free_bytes
from sdlora.memory.prediction import (
    Demand,
    Phase,
    Unpredictable,
    demand_of,
    demand_of_version,
    draw_phase,
    encode_phase,
    predict,
)
from sdlora.models.family import default_device, quieten

__all__ = ["Demand", "Phase", "check", "demand_of", "predict", "table"]
MIB = 2**20
NEARLY_FULL = 0.85  # of what is free: allocators and libraries need some of the rest
Changes = dict[tuple[str, str], Any]  # (section, key) -> value


def check(
    settings: Train,
    base: Base,
    demand: Demand,
    free: int | None = None,
    device: str | None = None,
    phases: list[Phase] | None = None,
) -> None:
    """Refuse a run that would not fit, before anything is loaded; one whose need nobody can tell may start.

    Args:
        settings: The run's.
        base: Its base.
        demand: Its pictures and captions.
        free: Bytes to fit into; None = what the training device has free now.
        device: Where it trains; None = CUDA where there is one.
        phases: The prediction, if it is known already.

    Raises:
        ResourceError: With the prediction, what is free, and the changes that would make it fit.
    """
    where = torch.device(device or default_device())
    available = free_bytes(where) if free is None else free
    try:
        phases = phases or predict(settings, base, demand, where)
    except Unpredictable as reason:
        print(f"preflight: {reason}; {_gib(available)} are free, and the training starts unchecked", flush=True)
        return
    worst = max(phases, key=lambda phase: phase.total)
    place = "GPU memory" if where.type == "cuda" else "RAM"
    said = f"{_gib(worst.total)} of {place} at the worst moment ({worst.name}), {_gib(available)} are free"
    if worst.total <= available:
        nearly = worst.total > NEARLY_FULL * available
        print(f"preflight: {said}{'; that is close: other programs should be closed' if nearly else ''}", flush=True)
        return
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in _largest(worst))
    ways = [f"  {way}: {_gib(total)}" for way, total in _ways_to_fit(settings, base, demand, where, available)]
    advice = "\n".join(["any of these would fit:", *ways]) if ways else "no setting makes it fit: use a smaller base"
    raise ResourceError(f"the training needs {said}.\nIt is made of {parts}.\nOf what can be changed, {advice}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _largest(phase: Phase) -> list[tuple[str, int]]:
    return sorted(((n, s) for n, s in phase.parts.items() if s), key=lambda part: -part[1])[:4]


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
        yield {("base", "dtype"): "bf16", ("train", "mixed_precision"): "bf16"}
    if settings.rank > 4:
        yield {("train", "rank"): max(4, settings.rank // 4)}


def _total_with(changes: Changes, settings: Train, base: Base, demand: Demand, device: torch.device) -> int:
    train = settings.model_copy(update={key: value for (section, key), value in changes.items() if section == "train"})
    other = base.model_copy(update={key: value for (section, key), value in changes.items() if section == "base"})
    return max(phase.total for phase in predict(train, other, demand, device))


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def table(phases: Sequence[Phase], free: int) -> str:
    """The phases in Markdown, MiB."""
    names = list(dict.fromkeys(name for phase in phases for name in phase.parts))
    head = ["MiB", *(phase.name for phase in phases)]
    rows = [[name, *(f"{phase.parts.get(name, 0) / MIB:.1f}" for phase in phases)] for name in names]
    rows.append(["total", *(f"{phase.total / MIB:.1f}" for phase in phases)])
    lines = [head, ["---", *("---:" for _ in phases)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nfree now: {free / MIB:.1f} MiB"


def show(params: Params, name: str, device: str | None) -> None:
    """Print the table of one version, and whether it fits.

    Raises:
        ResourceError: If it does not fit.
    """
    quieten()
    version = params.versions[name]
    base, where = params.bases[version.base], device or default_device()
    demand = demand_of_version(version, base)
    phases = predict(version.train, base, demand, torch.device(where))
    around = [encode_phase(version, base, torch.device(where)), *phases, draw_phase(version, base, torch.device(where))]
    print(table(around, free_bytes(torch.device(where))))
    check(version.train, base, demand, device=where, phases=phases)
