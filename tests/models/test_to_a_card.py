"""What a base takes of RAM on its way to a card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, environment
from shapes import MIDDLE_SDXL

from sdlora.models import architectures
from sdlora.models.sdxl import StableDiffusionXL


@pytest.mark.workflow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process has in RAM is read from /proc")
def test_a_base_passes_through_ram_one_tensor_at_a_time(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From files of its type it takes the pages of one network's; from others, what one tensor is converted in."""
    monkeypatch.setattr(StableDiffusionXL, "published", MIDDLE_SDXL)
    base = architectures.save_random("sdxl", tmp_path, "fp32", ROOT / "models/tiny-sd/tokenizer")
    bases = [base, base.model_copy(update={"dtype": "bf16", "vae": str(tmp_path / "vae")})]
    done = subprocess.run(
        [served, ROOT / "tests/measure_loading.py", json.dumps([base.model_dump(mode="json") for base in bases])],
        env={
            **environment(), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back at once, and is not counted
        },
        cwd=ROOT, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    plain, converted = json.loads(done.stdout.splitlines()[-1])
    assert plain["all"] > 500e6 and plain["own"] < 0.1 * plain["all"]
    assert plain["files"] < 1.2 * plain["largest"]
    assert converted["own"] < 0.25 * converted["all"]
