"""Every attack of `tests/hostile/` once: nothing may get through. `cd tests && python -m hostile` counts them."""

import os
from importlib import import_module
from pathlib import Path

import pytest
from hostile import ATTACKS, Attack
from hostile.__main__ import GROUPS

os.environ["HF_HUB_OFFLINE"] = "1"
for _group in GROUPS:
    import_module(f"hostile.{_group}")


CHOSEN = [one for one in ATTACKS if one.in_suite]


@pytest.mark.parametrize("attack", CHOSEN, ids=lambda one: f"{one.group}: {one.name}")
def test_nothing_gets_through(attack: Attack, tmp_path: Path) -> None:
    assert attack.run(tmp_path / "scratch") is None
