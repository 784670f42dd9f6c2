"""Killing a run at any moment changes no byte. Damage and full disks: `test_checkpoint.py`; more: `test_run.py`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, environment
from training import hashes

# What is on while a run is killed; a new thing that has state belongs in one of these.
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0},
}
KILLS, STEPS = 20, 24


@pytest.fixture(scope="module")
def killed_runs(served: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every case trained straight and with kills, and what the server says about the kills."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [served, ROOT / "tests/fork_server.py", str(folder), json.dumps(CASES)],
        env={**environment(), "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return folder, {row["case"]: row for row in rows}


@pytest.mark.parametrize("case", CASES)
def test_twenty_kills_change_no_byte(killed_runs: tuple[Path, dict[str, Any]], case: str) -> None:
    folder, seen = killed_runs
    kills = seen[case]["kills"]
    assert [kill["code"] for kill in kills] == [-9] * KILLS, "every process was killed before it had finished"
    assert len({kill["resumed"] for kill in kills}) > 5, "they went on from different states"
    straight, killed = (hashes(folder / case / name) for name in ("straight", "killed"))
    last = f"step-{STEPS:06d}"
    assert {f"state/{last}/tensors.safetensors", f"state/{last}/state.json"} <= straight.keys()
    assert sum(name.startswith("checkpoints/") for name in straight) == STEPS  # raw and averaged, every second step
    assert straight == killed
