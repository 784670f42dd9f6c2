"""`make base` with 1 % of its steps makes models that load, and kills change no byte of them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, wait_for
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tools.tiny_base import blip, make, text, world
from tools.tiny_base.quality import nearest_shares, same_style, word_f1
from tools.tiny_base.recipe import BaseRecipe
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTokenizer

from sdlora.provenance import sha256_of

SHARE = 0.01
KILLED_SHARE = 0.001  # five starts and a run beside it, so it is shorter
STATES = ("vae", "decoder", "blip", "diffusion", "varied")


def start(folder: Path, share: float) -> subprocess.Popen[bytes]:
    """`python -m tools.tiny_base.make` with a share of the pictures and steps, its lines in `folder`/log."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-u", "-m", "tools.tiny_base.make", "--share", str(share), "--threads", "1"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*words, "--device", "cpu", "--work", str(folder / "work"), "--out", str(folder / "models")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def kill_after(path: Path, folder: Path) -> None:
    """Start, and `kill -9` as soon as `path` is there and its part still trains."""
    process = start(folder, KILLED_SHARE)
    wait_for(lambda: path.exists() or process.poll() is not None, 300)
    process.kill()
    assert process.wait() == -9, (folder / "log").read_text("utf-8")[-3000:]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal that nobody disturbs."""
    folder = tmp_path_factory.mktemp("rehearsal")
    assert start(folder, SHARE).wait(timeout=600) == 0, (folder / "log").read_text("utf-8")[-3000:]
    return folder


def weights(folder: Path) -> dict[str, str]:
    """The hashes of every published file."""
    published = folder / "models"
    return {
        str(path.relative_to(published)): sha256_of(path) for path in sorted(published.rglob("*")) if path.is_file()
    }


def test_a_rehearsal_makes_models_that_load(rehearsal: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(rehearsal / "models/tiny-sd")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("toon head, teal background", num_inference_steps=2, generator=torch.manual_seed(0)).images[0]
    assert drawn.size == (64, 64)
    folder = rehearsal / "models/tiny-blip"
    processor = BlipProcessor.from_pretrained(folder)
    model = BlipForConditionalGeneration.from_pretrained(folder)
    said = model.generate(**processor(Image.new("RGB", (90, 60), "red"), return_tensors="pt"), max_new_tokens=5)
    assert said.shape[0] == 1


def test_a_rehearsal_trains_one_percent(rehearsal: Path) -> None:
    log = (rehearsal / "log").read_text("utf-8")
    recipe = BaseRecipe().shortened(SHARE)
    assert recipe.unet_steps == BaseRecipe().unet_steps // 100
    for name, steps in (("vae", recipe.vae_steps), ("blip", recipe.blip_steps), ("diffusion", recipe.unet_steps)):
        assert f"{name}: {steps}/{steps} loss" in log
        assert "s to go" in log


def test_kill_9_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for name in STATES:
        kill_after(killed / "work" / f"{name}.state.pt", killed)
    assert start(killed, KILLED_SHARE).wait(timeout=600) == 0
    log = (killed / "log").read_text("utf-8")
    for name in STATES:
        assert f"{name}: resuming from step" in log
    assert start(undisturbed, KILLED_SHARE).wait(timeout=600) == 0
    assert "resuming" not in (undisturbed / "log").read_text("utf-8")
    assert len(weights(undisturbed)) > 8
    assert weights(killed) == weights(undisturbed)


def test_the_same_captions_give_the_same_tokenizers(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tools.tiny_base import text, world
captions = [world.sample(index, 0).caption for index in range(60)]
text.clip_tokenizer(captions, Path(sys.argv[1]) / "clip")
text.bert_tokenizer(captions, Path(sys.argv[1]) / "bert").save_pretrained(Path(sys.argv[1]) / "bert")
"""
    made = [tmp_path / str(number) for number in range(3)]  # a process each: hash maps differ
    for folder in made:
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)
    for name in ("clip", "bert"):
        assert len({sha256_of(folder / name / "tokenizer.json") for folder in made}) == 1


def test_tokenizers_know_the_words_and_read_any(tmp_path: Path) -> None:
    captions = [world.sample(index, 0).caption for index in range(60)]
    clip, bert = text.clip_tokenizer(captions, tmp_path / "clip"), text.bert_tokenizer(captions, tmp_path / "bert")
    for word in set(" ".join(captions).replace(",", " ").replace("-", " ").split()):
        assert len(clip.tokenize(word)) == len(bert.tokenize(word)) == 1, word
    assert clip.decode(clip("a zebra; №42")["input_ids"], skip_special_tokens=True) == "a zebra ; № 4 2"


def test_a_part_that_is_whole_is_not_trained_again(rehearsal: Path) -> None:
    before = weights(rehearsal)
    make.make(BaseRecipe().shortened(SHARE), rehearsal / "work", rehearsal / "models", "cpu")
    assert weights(rehearsal) == before


def test_nearest_truth_counts_own_and_style() -> None:
    captions = ["critter, red", "critter, blue", "dylan face, red"]
    right = np.array([[0.1, 0.5, 0.9], [0.5, 0.1, 0.9], [0.9, 0.8, 0.1]])
    assert nearest_shares(right, captions) == {"own": 1.0, "style": 1.0}
    # the first is nearer to its neighbour of the same style, the last to another style
    wrong = np.array([[0.6, 0.5, 0.9], [0.5, 0.1, 0.9], [0.1, 0.8, 0.2]])
    assert nearest_shares(wrong, captions) == {"own": 0.6667, "style": 0.6667}


def test_same_style() -> None:
    assert same_style(["critter, red", "toon head, blue"], ["critter, blue", "dylan face, blue"]) == 0.5


def test_word_f1() -> None:
    assert word_f1(["red hair, blue top"], ["red hair, blue top"]) == 1.0
    assert word_f1(["red hair"], ["blue top"]) == 0.0
    assert word_f1(["red hair"], ["red hair, blue top"]) == pytest.approx(2 * 2 / 6, abs=1e-4)


def test_dyed_hair_is_never_the_captains() -> None:
    hair = [world.sample(index, 1, "toon-head", dyed=True).options.get("hairColor", [""])[0] for index in range(300)]
    assert world.COLOURS[world.CAPTAINS_HAIR] not in hair
    offered = {world.sample(index, 1, "toon-head").options.get("hairColor", [""])[0] for index in range(300)}
    assert len(set(hair)) > 20 > len(offered)


def test_every_third_picture_has_a_spot() -> None:
    plain = torch.full((600, 3, 32, 32), 0.5)
    spotted = blip.with_spots(plain, torch.manual_seed(0))
    changed = (spotted != plain).any(dim=1)
    assert 0.2 < float(changed.flatten(1).any(dim=1).float().mean()) < 0.45
    assert float(changed.float().mean(dim=(1, 2)).max()) < 0.1
    assert torch.equal(spotted, blip.with_spots(plain, torch.manual_seed(0)))


def test_the_base_opens_in_transformers_4_and_5(tmp_path: Path) -> None:
    """Version 4 wants nested names and a vocabulary; the values are those that version 5 wrote flattened."""
    found = load_file(ROOT / "models/tiny-sd/text_encoder/model.safetensors")
    assert all(name.startswith("text_model.") for name in found)
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.removeprefix("text_model.").encode() + found[name].numpy().tobytes())
    assert digest.hexdigest() == "9b186380ca6d8178272cfc90df0d771cbe1faf31437badaa0a7d8c194d16e127"
    folder = ROOT / "models/tiny-sd/tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    assert json.loads((folder / "vocab.json").read_text("utf-8")) == model["vocab"]
    merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    assert [tuple(merge.split(" ")) for merge in merges[1:]] == [tuple(merge) for merge in model["merges"]]
    for name in ("vocab.json", "merges.txt"):  # version 4's way: no tokenizer.json
        shutil.copy(folder / name, tmp_path)
    text = "captain, black undercut hair; 日本 №42"
    ends = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    assert CLIPTokenizer.from_pretrained(tmp_path, **ends)(text).input_ids == (
        CLIPTokenizer.from_pretrained(folder)(text).input_ids
    )
