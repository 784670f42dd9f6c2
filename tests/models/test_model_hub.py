"""A base and its captioner by hub name and commit, from a small hub on loopback and from the hub's own cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from rig.hub import serving

COMMITS = {"somebody/tiny-sd": "a" * 40, "somebody/tiny-blip": "b" * 40}
PICKLED = {"elsewhere/tiny-sd": "d" * 40, "elsewhere/tiny-blip": "e" * 40}


def shipped(name: str) -> dict[str, bytes]:
    """The files of one of the repository's own models."""
    folder = ROOT / "models" / name.split("/")[1]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pickled(name: str) -> dict[str, bytes]:
    """The same with the weights of the VAE, or of the captioner, in a file that nobody may open."""
    weights = {"vae/diffusion_pytorch_model.safetensors": "vae/diffusion_pytorch_model.bin",
               "model.safetensors": "pytorch_model.bin"}  # fmt: skip
    return {weights.get(file, file): content for file, content in shipped(name).items()}


# Prints, for every four words, how the captioner describes a picture and what the base predicts, or what is wrong.
USE = """
import sys, torch
from PIL import Image
from sdlora.models import load_model
from sdlora.stages.caption.blip import Blip
from sdlora.errors import SdloraError
from sdlora.config.caption import Caption
from sdlora.config.params import Base
torch.set_num_threads(1)
words = [word or None for word in sys.argv[1:]]
def describe(model, revision, blip, blip_revision):
    return Blip(blip, blip_revision, Caption(), 1).captions([Image.new("RGB", (64, 64), "red")])[0]
def predict(model, revision, blip, blip_revision):
    family = load_model(Base(model=model, revision=revision, family="sd", size_px=64, captioner="-"), "cpu")
    noisy = torch.linspace(-1, 1, 1024).view(1, 4, 16, 16)
    with torch.inference_mode():
        return family.predict(noisy, torch.tensor([500]), family.encode_prompts(["a captain"])).sum().item()
while words:
    for work in (describe, predict):
        try:
            print(work(*words[:4]))
        except SdloraError as error:
            print(f"{type(error).__name__}: {error}")
    del words[:4]
"""


def use(cache: Path, *words: str, **env: str) -> list[list[str]]:
    """A pair of lines for every four words, in a process of its own: the hub's client reads settings on import."""
    settings = {**os.environ, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **env}
    command = [sys.executable, "-c", USE, *words]
    done = subprocess.run(command, env=settings, text=True, capture_output=True, check=True, timeout=300)
    lines = done.stdout.splitlines()
    return [lines[first : first + 2] for first in range(0, len(lines), 2)]


@pytest.mark.workflow
def test_weights_come_from_the_named_commit_once_or_it_is_told_how(tmp_path: Path) -> None:
    (sd, sd_commit), (blip, blip_commit) = COMMITS.items()
    named, another = (sd, sd_commit, blip, blip_commit), (sd, "c" * 40, blip, "c" * 40)
    hubs = {name: (commit, shipped(name)) for name, commit in COMMITS.items()}
    hubs |= {name: (commit, pickled(name)) for name, commit in PICKLED.items()}
    with serving(hubs) as hub:
        first, missing, refused = use(
            tmp_path, *named, *another, *(word for pair in PICKLED.items() for word in pair), **hub.env
        )
    assert not any(".bin" in path for path in hub.log)
    for said, (name, commit) in zip(reversed(refused), PICKLED.items(), strict=True):
        assert said.startswith(f"DataError: {name} has no weights in that format, and only .safetensors is read")
        assert f"`hf download {name} --revision {commit} --local-dir models/{name.split('/')[1]}`" in said
    here = (str(ROOT / "models/tiny-sd"), "", str(ROOT / "models/tiny-blip"), "")
    again, still_missing, local = use(tmp_path, *named, *another, *here)
    assert len(local) == 2 and "Error" not in local[0] + local[1]
    assert first == local
    assert again == local, "the next time without a network"
    for captioner, base in (missing, still_missing):  # not the cached commit, with the hub at hand and without
        assert captioner.startswith("MissingError") and f"`hf download {blip} --revision {'c' * 40}`" in captioner
        assert base.startswith("MissingError") and f"`hf download {sd} --revision {'c' * 40}`" in base
