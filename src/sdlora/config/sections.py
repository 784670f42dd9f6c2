"""What every section of the settings is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sdlora.errors import suggest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Unit = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen, strict section: unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def on_menu(value: str, menu: dict[str, str]) -> str:
    """The value, if the menu has it; a ValueError with the nearest entry if not."""
    if value not in menu:
        raise ValueError(f"{value!r} is not on the menu{suggest(value, menu)}")
    return value
