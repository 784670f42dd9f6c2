"""`make base` with few of its steps makes models that load, and kills change no byte of them."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from helpers import ROOT, wait_for
from PIL import Image
from safetensors.torch import load_file, save_file
from stage_server import Job
from tools.tiny_base import begin, blip, diffusion, loop, make, readers, text, vae, world
from tools.tiny_base.diffusion import Noising
from tools.tiny_base.recipe import BaseRecipe
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer

from sdlora import records
from sdlora.flow.hashing import sha256_of

SHARE = 0.00012  # 12 pictures, and five steps of the UNet: one more than the least
STATES = ("vae", "diffusion", "decoder", "blip")  # in the order they are trained


def start(python: Path, folder: Path) -> Job:
    """`tools/tiny_base/make.py` with a share of the pictures and steps, its lines in `folder`/log."""
    folder.mkdir(exist_ok=True)
    words = ["--share", str(SHARE), "--threads", "1", "--device", "cpu"]
    places = ["--work", str(folder / "work"), "--out", str(folder / "models")]
    return Job.start(python, ROOT / "tools/tiny_base/make.py", *words, *places, folder=ROOT, log=folder / "log")


def kill_after(path: Path, python: Path, folder: Path) -> None:
    """Start, and `kill -9` as soon as `path` is there and its part still trains."""
    job = start(python, folder)
    wait_for(lambda: path.exists() or job.ended(), 300)
    job.kill()
    assert job.wait() == 128 + signal.SIGKILL, (folder / "log").read_text("utf-8")[-3000:]


@pytest.fixture(scope="module")
def rehearsal(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal that nobody disturbs."""
    folder = tmp_path_factory.mktemp("rehearsal")
    assert start(served, folder).wait() == 0, (folder / "log").read_text("utf-8")[-3000:]
    return folder


def weights(folder: Path) -> dict[str, str]:
    """The hashes of every published file."""
    published = folder / "models"
    return {
        str(path.relative_to(published)): sha256_of(path) for path in sorted(published.rglob("*")) if path.is_file()
    }


@pytest.mark.workflow
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


@pytest.mark.workflow
def test_a_rehearsal_trains_its_share(rehearsal: Path) -> None:
    log = (rehearsal / "log").read_text("utf-8")
    recipe = BaseRecipe().shortened(SHARE)
    assert recipe.unet_steps == round(BaseRecipe().unet_steps * SHARE)
    for name, steps in (("vae", recipe.vae_steps), ("blip", recipe.blip_steps), ("diffusion", recipe.unet_steps)):
        assert f"{name}: {steps}/{steps} loss" in log
        assert "s to go" in log


@pytest.mark.workflow
def test_kill_9_and_again_gives_the_same_bytes(served: Path, rehearsal: Path, tmp_path: Path) -> None:
    for name in STATES:
        kill_after(tmp_path / "work" / f"{name}.state.pt", served, tmp_path)
    assert start(served, tmp_path).wait() == 0
    log = (tmp_path / "log").read_text("utf-8")
    for name in STATES:
        assert f"{name}: resuming from step" in log
    assert "resuming" not in (rehearsal / "log").read_text("utf-8")
    assert len(weights(rehearsal)) > 8
    assert weights(tmp_path) == weights(rehearsal)


@pytest.mark.workflow
def test_the_same_captions_give_the_same_tokenizers(tmp_path: Path) -> None:
    code = """
import json
import sys
from pathlib import Path
from tools.tiny_base import text
captions = json.loads(sys.argv[2])
text.clip_tokenizer(captions, Path(sys.argv[1]) / "clip")
text.bert_tokenizer(captions, Path(sys.argv[1]) / "bert").save_pretrained(Path(sys.argv[1]) / "bert")
"""
    captions = json.dumps([world.sample(index, 0).caption for index in range(60)])
    made = [tmp_path / str(number) for number in range(3)]  # a process each: hash maps differ
    for folder in made:
        subprocess.run([sys.executable, "-c", code, str(folder), captions], check=True, cwd=ROOT)
    for name in ("clip", "bert"):
        assert len({sha256_of(folder / name / "tokenizer.json") for folder in made}) == 1


@pytest.mark.slow
def test_tokenizers_know_the_words_and_read_any(tmp_path: Path) -> None:
    captions = [world.sample(index, 0).caption for index in range(60)]
    clip, bert = text.clip_tokenizer(captions, tmp_path / "clip"), text.bert_tokenizer(captions, tmp_path / "bert")
    for word in set(" ".join(captions).replace(",", " ").replace("-", " ").split()):
        assert len(clip.tokenize(word)) == len(bert.tokenize(word)) == 1, word
    assert clip.decode(clip("a zebra; №42")["input_ids"], skip_special_tokens=True) == "a zebra ; № 4 2"


@pytest.mark.workflow
def test_a_part_that_is_whole_is_not_trained_again(rehearsal: Path) -> None:
    before = weights(rehearsal)
    make.make(BaseRecipe().shortened(SHARE), rehearsal / "work", rehearsal / "models", "cpu")
    assert weights(rehearsal) == before


@pytest.mark.parametrize("parts", [1, 2])
def test_a_gradient_that_lies_otherwise_moves_its_own_weights(tmp_path: Path, parts: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3)
    pictures = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    before = network.weight.detach().clone()
    gradient, _ = torch.autograd.grad(network(pictures).square().mean(), [*network.parameters()])
    assert gradient.stride() != before.stride()
    loop.train(
        "conv", network, lambda step, part: network(part.of(pictures)).square().mean(), parts=parts, steps=1,
        peak_learning_rate=1e-2, ema_decay=0.0, save_every=1, folder=tmp_path,
    )  # fmt: skip
    assert torch.equal((network.weight - before).sign(), -gradient.sign()), "AdamW's first step is the gradient's sign"


@pytest.mark.parametrize(("capability", "kind"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_a_cpu_without_bf16_learns_in_fp32(monkeypatch: pytest.MonkeyPatch, capability: str, kind: torch.dtype) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with loop.autocast("cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == kind


def test_a_training_goes_on_elsewhere_from_its_averaged_weights(tmp_path: Path) -> None:
    here, begun, there = tmp_path / "here", tmp_path / "begun", tmp_path / "there"
    first, ended = train_line(here, 20)
    assert first == 0
    (here / "vae").mkdir()
    (here / "vae/config.json").write_text("{}", "utf-8")
    make.take_along(here, begun)
    there.mkdir()
    make.take_up(begun, there)
    assert make.is_whole(there / "vae")
    passed_on = tmp_path / "passed on"
    make.take_along(there, passed_on)
    assert {path.name for path in passed_on.iterdir()} == {"vae", "diffusion.begun.safetensors"}
    first, after = train_line(there, 21)
    assert first == 20
    assert 0 < abs(after - ended) < 0.03, "one step of the warm-up from the average, which fp16 rounds"
    assert train_line(there, 21) == (-1, after), "its own state comes first"


def train_line(folder: Path, steps: int) -> tuple[int, float]:
    """Fit one weight to 1; the first step taken (-1: none), and the weight at the end."""
    line, taken = torch.nn.Linear(1, 1, bias=False), []
    torch.nn.init.zeros_(line.weight)

    def loss_of(step: int, part: loop.Part) -> torch.Tensor:
        taken.append(step)
        return (line(torch.ones(1, 1)) - 1).square().mean()

    numbers = {"parts": 1, "steps": steps, "peak_learning_rate": 0.1, "ema_decay": 0.5, "save_every": 10}
    loop.train("diffusion", line, loss_of, folder=folder, **numbers)  # type: ignore[arg-type]
    return (taken[0] if taken else -1), float(line.weight.detach())


def test_every_third_picture_has_a_spot() -> None:
    plain = torch.full((600, 3, 32, 32), 0.5)
    spotted = blip.with_spots(plain, torch.manual_seed(0))
    changed = (spotted != plain).any(dim=1)
    assert 0.2 < float(changed.flatten(1).any(dim=1).float().mean()) < 0.45
    assert float(changed.float().mean(dim=(1, 2)).max()) < 0.1
    places = changed.float().mean(0)
    assert float(places[5:17, 10:22].mean()) > 1.5 * float(places.mean()), "more often where faces are"
    assert torch.equal(spotted, blip.with_spots(plain, torch.manual_seed(0)))


def test_the_base_opens_in_transformers_4_and_5(tmp_path: Path) -> None:
    """Version 4 wants nested names and a vocabulary; the values are those that version 5 wrote flattened."""
    ours, written = ROOT / "models/tiny-sd/text_encoder/model.safetensors", tmp_path / "model.safetensors"
    found = load_file(ours)
    assert all(name.startswith("text_model.") for name in found)
    save_file({name.removeprefix("text_model."): value for name, value in found.items()}, written)
    readers.name_as_before(written)
    assert written.read_bytes() == ours.read_bytes()
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


def test_a_portrait_repeats_its_edges_and_keeps_its_middle() -> None:
    pictures = torch.rand(40, 3, 8, 64, generator=torch.manual_seed(0))
    found = blip.as_portraits(pictures, torch.manual_seed(1), [True] * 39 + [False])
    assert torch.equal(found[39], pictures[39])
    assert torch.equal(found[..., 14:50], pictures[..., 14:50]), "at least 0.6 of the width stays"
    assert torch.equal(found[:39, ..., :6], found[:39, ..., 6:7].expand(-1, -1, -1, 6)), "at most 0.8 of it"
    assert torch.equal(found[:39, ..., 58:], found[:39, ..., 57:58].expand(-1, -1, -1, 6))


def test_noisy_steps_weigh_more_and_none_without_end() -> None:
    noising = Noising.of(BaseRecipe())
    snr = noising.scheduler.alphas_cumprod / (1 - noising.scheduler.alphas_cumprod)
    weights = noising.weights
    assert float(weights[0]) == pytest.approx(float(6 / snr[0])), "clean: gamma + 1 over its SNR"
    assert float(weights[450]) == pytest.approx(float((snr[450] + 1) / snr[450]))
    assert float(weights[-1]) == float(weights.max()) == 1000.0
    assert bool((weights.diff() >= 0).all())


def test_rates_do_not_depend_on_the_length_until_they_fall() -> None:
    short, long = ([loop.learning_rate(step, steps, 2.0) for step in range(steps)] for steps in (4_000, 10_000))
    assert short[:2_800] == long[:2_800]
    assert long[0] < long[100] < long[199] == long[6_999] == 2.0
    assert all(a > b for a, b in pairwise(long[7_000:])) and 0 < long[-1] < 1e-4


@pytest.mark.workflow
def test_a_part_killed_while_it_is_saved_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, saving = BaseRecipe().shortened(SHARE), vae.train

    def killed(*inputs: Any, **options: Any) -> None:
        out = next(one for one in inputs if isinstance(one, Path) and one.name.startswith("vae"))
        records.write_json(out / "config.json", {})
        raise KeyboardInterrupt

    monkeypatch.setattr(vae, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        make.make(recipe, tmp_path, tmp_path / "models", "cpu", ("vae",))
    monkeypatch.setattr(vae, "train", saving)
    make.make(recipe, tmp_path, tmp_path / "models", "cpu", ("vae",))
    assert (tmp_path / "vae/diffusion_pytorch_model.safetensors").exists()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads an operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_of_a_batch_learn_what_the_batch_does(tmp_path: Path, two_threads: None) -> None:
    learnt, threads = [], {1: set(), 2: set()}
    for parts in (1, 2):
        torch.manual_seed(0)
        layer, data = torch.nn.Linear(4, 3), torch.randn(16, 4)
        begun = layer.weight.detach().clone()

        def loss_of(
            step: int, part: loop.Part, layer: torch.nn.Linear = layer, data: torch.Tensor = data
        ) -> torch.Tensor:
            threads[part.count].add(torch.get_num_threads())
            return layer(part.of(data)).square().mean()

        options = {"steps": 5, "peak_learning_rate": 0.1, "ema_decay": 0.9, "save_every": 5}
        loop.train("layer", layer, loss_of, parts=parts, folder=tmp_path / str(parts), **options)
        learnt.append(layer.weight.detach())
        assert (learnt[-1] - begun).abs().min() > 0.01
    assert torch.allclose(*learnt, atol=1e-6)
    assert threads == {1: {2}, 2: {1}} and torch.get_num_threads() == 2


def test_a_preview_leaves_the_networks_that_are_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile compiles anew, on both threads at once, what has another configuration than it had."""

    def trained(_: str, networks: torch.nn.ModuleDict, *__: object, on_save: Callable[[int], None], **___: Any) -> None:
        def state() -> list[tuple[str, bool]]:
            return [(str(network.config), network.training) for network in networks.values()]

        before = state()
        on_save(diffusion.PREVIEW_EVERY)
        assert (tmp_path / "preview/unet/config.json").exists()
        assert state() == before and all(training for _, training in before)

    monkeypatch.setattr(loop, "train", trained)
    captions = [world.sample(index, 0).caption for index in range(20)]
    examples, recipe = diffusion.Examples(torch.zeros(20, 4, 8, 8), captions), BaseRecipe().shortened(SHARE)
    diffusion.train(examples, examples, vae.build(16), recipe, tmp_path, tmp_path / "out", "cpu", parts=1)


def test_threads_encode_what_one_does() -> None:
    torch.manual_seed(0)
    autoencoder = vae.build(16)
    drawn = torch.randint(0, 256, (150, 16, 16, 3), dtype=torch.uint8).numpy()
    one, two = (vae.encode(autoencoder, drawn, "cpu", parts) for parts in (1, 2))
    assert torch.equal(one, two) and one.shape == (150, 4, 4, 4)


def test_wordings_leave_out_and_add_as_often_as_they_say() -> None:
    caption, rng = "toon head, red hair, smile mouth, white background", random.Random(0)
    wording = text.Wording(caption_dropout=0.1, tag_dropout=0.1, foreign_words=0.2)
    found = [wording.of(caption, rng) for _ in range(6_000)]
    said = [one for one in found if "toon head" in one]
    assert len(said) / len(found) == pytest.approx(0.9, abs=0.015)
    assert found.count("") / len(found) == pytest.approx(0.05, abs=0.01)
    assert sum("red hair" in one for one in said) / len(said) == pytest.approx(0.9, abs=0.015)
    assert sum(not one.startswith("toon head") for one in said) / len(said) == pytest.approx(0.2, abs=0.02)
    plain = text.Wording(0.0, 0.0, 0.0)
    assert {plain.of(caption, rng) for _ in range(50)} == {caption}


@pytest.mark.slow
def test_foreign_words_are_no_words_of_the_world() -> None:
    captions = " ".join(world.sample(index, 0).caption for index in range(800))
    known = set(captions.replace(",", " ").replace("-", " ").split()) - {"eyes"}
    rng = random.Random(0)
    said = {word for _ in range(300) for word in text.foreign_words(rng, 1, 20).replace(",", " ").split()}
    assert len(said) > 500 and not said & known


def test_blip_begins_from_another_that_has_its_words(tmp_path: Path) -> None:
    captions = ["toon head, black hair", "critter, red body"]
    torch.manual_seed(0)
    tokenizer = text.bert_tokenizer(captions, tmp_path / "words")
    model = blip.build(tokenizer, 16)
    model.save_pretrained(tmp_path / "blip")
    blip.processor(tokenizer, 16).save_pretrained(tmp_path / "blip")
    assert begin.begin_blip(tmp_path / "blip", captions, tmp_path)
    weights = [p.detach().half() for p in model.parameters()]
    begun = load_file(tmp_path / "blip.begun.safetensors")
    assert begun["step"] == 0 and len(begun) == len(weights) + 1
    assert all(torch.equal(begun[str(place)], one) for place, one in enumerate(weights))
    (tmp_path / "other").mkdir()
    assert not begin.begin_blip(tmp_path / "blip", ["toon head, zzyzx"], tmp_path / "other")
    assert not (tmp_path / "other/blip.begun.safetensors").exists()


def test_a_base_begins_from_another(tmp_path: Path) -> None:
    base, captions = ROOT / "models/tiny-sd", ["toon head, black hair", "a zzyzx of toon head"]
    make._begin(base, captions, 3, tmp_path)
    begun = tmp_path / "diffusion.begun.safetensors"
    written = begun.stat().st_mtime_ns
    make._begin(base, captions, 3, tmp_path)
    assert begun.stat().st_mtime_ns == written, "what has begun is not begun again"
    known = begin.begin_from(base, captions, 3, tmp_path)
    tokenizer = text.clip_tokenizer(captions, tmp_path / "clip-tokenizer")
    theirs = CLIPTokenizer.from_pretrained(base / "tokenizer").get_vocab()
    both = {token: place for token, place in tokenizer.get_vocab().items() if token in theirs}
    assert known == len(both) and "toon</w>" in both and known < len(tokenizer)
    torch.manual_seed(7)
    networks = diffusion.build_networks(tokenizer, 16)
    loop.train(
        "diffusion", networks, lambda step, part: torch.zeros(()), parts=1, steps=0, peak_learning_rate=1.0,
        ema_decay=0.9, save_every=1, folder=tmp_path,
    )  # fmt: skip
    unet = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32)
    assert all(map(torch.equal, networks["unet"].parameters(), unet.parameters()))
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", torch_dtype=torch.float32)
    ours, old = (one.get_input_embeddings().weight for one in (networks["text_encoder"], text_encoder))
    assert torch.equal(ours[both["toon</w>"]], old[theirs["toon</w>"]])
    (new,) = (place for token, place in tokenizer.get_vocab().items() if token == "zzyzx</w>")
    assert "zzyzx</w>" not in theirs and ours[new].abs().sum() > 0
    autoencoder = vae.build(64)
    loop.train(
        "vae", autoencoder, lambda step, part: torch.zeros(()), parts=1, steps=0, peak_learning_rate=1.0,
        ema_decay=0.9, save_every=1, folder=tmp_path,
    )  # fmt: skip
    kept = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in autoencoder.state_dict().items())
