"""Every menu entry leads somewhere, and an unknown one names its neighbours."""

import pytest

from sdlora import choices
from sdlora.errors import ParamsError

MENUS = {name: menu for name, menu in vars(choices).items() if name.isupper() and isinstance(menu, dict)}


@pytest.mark.parametrize(("menu", "entry"), [(name, entry) for name, menu in MENUS.items() for entry in menu])
def test_entry_exists(menu: str, entry: str) -> None:
    found = choices.pick(MENUS[menu], entry)
    assert callable(found) or (menu == "TARGETS" and all(isinstance(name, str) for name in found))


def test_unknown_entry() -> None:
    with pytest.raises(ParamsError, match="did you mean adamw8bit"):
        choices.pick(choices.OPTIMIZERS, "adamw8bits")
