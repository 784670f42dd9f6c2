"""One call lets `sdlora.cpu` in. Without the folder and that call everything works, and agrees to rounding."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, environment

# What leads to the folder, and what stands there without it: the only lines in the repository that know of it.
DOOR = {
    "from sdlora import choices, cpu\n": "from sdlora import choices\n",
    "self.speed: Speed = cpu.speed_up(device)\n": "self.speed = Speed()\n",
}
# Prints a training's losses and drawn pixels. Where the folder is, half of the steps are left to autograd.
USE = """
import contextlib, json, sys, tempfile
from pathlib import Path
import numpy, torch
torch.set_num_threads(1)
from helpers import TINY
from training import examples, settings
from sdlora.config.params import Flip
from sdlora.config.sample import Sample
from sdlora.lora.names import FILE_NAME
from sdlora.stages.sample.sample import Painter, Prompt
from sdlora.stages.train.loop import train_loop
from sdlora.stages.train.run import prepare, write_checkpoint

with contextlib.suppress(ImportError):
    from sdlora.cpu import replay
    replay.TRACED_AFTER = 12
run = prepare(settings(steps=24, checkpoint_every=24), Flip(), TINY, examples(1, side=8))
with tempfile.TemporaryDirectory() as folder:
    log = train_loop(run, None, lambda state: write_checkpoint(run, Path(folder)))
    painter = Painter(TINY, Sample(inference_steps=3), 64)
    painter.use(Path(folder) / FILE_NAME)
    (picture,) = painter.draw([Prompt("a", "captain", 1)])
fast = sorted({type(layer).__name__ for layer in run.model.denoiser.modules() if "cpu" in type(layer).__module__})
print(json.dumps({"losses": [row[1] for row in log], "pixels": numpy.asarray(picture).ravel().tolist(),
                  "fast": fast, "passes": type(run.passes).__name__}))
"""


def used(source: Path, python: Path) -> dict[str, Any]:
    """What `USE` prints with the package of a folder."""
    done = subprocess.run(
        [python, "-c", USE], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**environment(), "PYTHONPATH": f"{source}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.workflow
def test_without_the_folder_and_the_call_everything_agrees_to_rounding(served: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.rmtree(tmp_path / "src/sdlora/cpu")
    family = tmp_path / "src/sdlora/models/family.py"
    text = family.read_text("utf-8")
    for line, instead in DOOR.items():
        assert text.count(line) == 1
        text = text.replace(line, instead)
    family.write_text(text, encoding="utf-8")

    fast, plain = used(ROOT / "src", served), used(tmp_path / "src", served)
    assert fast["fast"] == ["PackedConv2d", "PackedLinear", "PackedLora"] and fast["passes"] == "Replay"
    assert plain["fast"] == [] and plain["passes"] == "NoneType"
    assert len(plain["losses"]) == 24
    np.testing.assert_allclose(fast["losses"], plain["losses"], rtol=1e-3)
    assert np.abs(np.subtract(fast["pixels"], plain["pixels"])).max() <= 2  # of 255


def test_nothing_else_knows_of_the_folder() -> None:
    knows = re.compile(r"sdlora\.cpu\b|from sdlora import .*\bcpu\b|\bspeed_up\b")
    found = {
        str(path.relative_to(ROOT)): [
            line.strip() for line in path.read_text("utf-8").splitlines() if knows.search(line)
        ]
        for folder in ("src", "tools", "benchmarks", "workflow")
        for path in (ROOT / folder).rglob("*.py")
        if ROOT / "src/sdlora/cpu" not in path.parents
    }
    assert {path: lines for path, lines in found.items() if lines} == {
        "src/sdlora/models/family.py": [line.strip() for line in DOOR]
    }
