"""What is compared: one row for each option that could cost time or memory, read from the schema and the menus.

Nothing is listed by hand: a new menu entry, switch or choice of the section `train` becomes a row by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from sdlora import choices
from sdlora.config.train import Train

BATCH_SIZES = (1, 2, 4, 8)
# Rate schedules cost nothing measurable; seeds and the like are no options of speed.
LEFT_OUT = ("lr_schedule",)
# What an entry may need beside its name, tried in turn until the schema accepts it.
COMPANIONS: tuple[dict[str, Any], ...] = (
    {}, {"learning_rate": 1.0}, {"mixed_precision": "bf16"}, {"loss": "huber"},
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One setting against the baseline; `note` says why it cannot be measured."""

    group: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def rows(baseline: Train) -> list[Row]:
    """Every row, the baseline first."""
    found = [Row("baseline", "baseline")]
    found += [_row(baseline, "batch_size", size) for size in BATCH_SIZES if size != baseline.batch_size]
    for key, info in Train.model_fields.items():
        if key not in LEFT_OUT:
            found += [_row(baseline, key, value) for value in _values(baseline, key, info.annotation)]
    return found


def _values(baseline: Train, key: str, annotation: Any) -> Iterator[Any]:
    """The values of a field that are worth a row: all of a menu, a choice or a switch but the baseline's own."""
    kinds = [annotation, *get_args(annotation)]
    menu = menu_of(key)
    if menu is not None:
        offered: list[Any] = [(name,) for name in menu] if get_origin(annotation) is tuple else [*menu]
    elif any(get_origin(kind) is Literal for kind in kinds):
        offered = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    elif annotation is bool:
        offered = [False, True]
    elif key == "ema":
        offered = [None] if baseline.ema else [{}]
    else:
        return
    current = getattr(baseline, key)
    yield from (value for value in offered if value != current)


def menu_of(key: str) -> dict[str, str] | None:
    """The menu whose entries a field names: `optimizer` and OPTIMIZERS, `loss` and LOSSES."""
    menus = {name.lower(): menu for name, menu in vars(choices).items() if name.isupper() and isinstance(menu, dict)}
    return menus.get(key) or menus.get(f"{key}s") or menus.get(f"{key}es")


def _row(baseline: Train, key: str, value: Any) -> Row:
    reasons = []
    for companion in COMPANIONS:
        changes = {key: value, **companion}
        try:
            changed(baseline, changes)
        except ValidationError as error:
            reasons.append(error.errors()[0]["msg"])
            continue
        return Row(key, str(value), changes)
    return Row(key, str(value), {}, f"not measured: {reasons[0]}")


def changed(baseline: Train, changes: dict[str, Any]) -> Train:
    """The baseline with changes, validated.

    Raises:
        ValidationError: If the schema forbids the combination.
    """
    return Train.model_validate({**baseline.model_dump(), **changes}, strict=False)
