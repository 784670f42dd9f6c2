"""Every attack of `tests/hostile/` once: nothing may get through. `cd tests && python -m hostile` counts them."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from helpers import ROOT
from helpers import environment as plain_environment
from hostile import ATTACKS, Attack
from hostile.__main__ import GROUPS

for _group in GROUPS:
    import_module(f"hostile.{_group}")


# What a decoder may use is measured in a process of its own: a child begins with the peak of the one that started it.
CHOSEN = [one for one in ATTACKS if one.in_suite and one.group != "decode"]


def attack_of(one: Attack) -> ParameterSet:
    """A browser is a process."""
    marks = [pytest.mark.workflow] if one.group == "browser" else []
    return pytest.param(one, marks=marks, id=f"{one.group}: {one.name}")


@pytest.mark.parametrize("attack", [attack_of(one) for one in CHOSEN])
def test_nothing_gets_through(attack: Attack, tmp_path: Path) -> None:
    assert attack.run(tmp_path / "scratch") is None


@pytest.mark.workflow
def test_no_picture_takes_the_decoder_beyond_its_limits() -> None:
    words = [sys.executable, "-m", "hostile", "decode"]
    done = subprocess.run(
        words,
        cwd=ROOT / "tests",
        env={**plain_environment(), "PYTHONPATH": str(ROOT / "src")},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"decode: {sum(one.group == 'decode' for one in ATTACKS)} attacks, 0 got through" in done.stdout
