"""What every section of the settings is made of."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from sdlora.errors import suggest

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]
Unit = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen, strict section: unknown keys and wrong types are errors, and so is what JSON has no number for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ProblemAt(ValueError):
    """A mistake that the validator of a section finds further down: the message names that place, and its line.

    Args:
        place: The keys, from the section on.
        reason: What is wrong there.
    """

    def __init__(self, place: tuple[str | int, ...], reason: str) -> None:
        super().__init__(reason)
        self.place = place


def on_menu(value: str, menu: dict[str, str]) -> str:
    """The value, if the menu has it; a ValueError with the nearest entry if not."""
    if value not in menu:
        raise ValueError(f"{value!r} is not on the menu{suggest(value, menu)}")
    return value


def each_once(option: str, names: Sequence[str]) -> None:
    """Refuse a list that has an entry more than once; the ValueError names the option and the first such entry."""
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"{option} names {name!r} twice")


def merge(below: Any, above: Any) -> Any:
    """Settings over others: what both are sections of is merged, of the rest the upper one stands."""
    if isinstance(below, dict) and isinstance(above, dict):
        keys = [*below, *(key for key in above if key not in below)]
        return {key: merge(below[key], above[key]) if key in below and key in above else
                above.get(key, below.get(key)) for key in keys}  # fmt: skip
    return above
