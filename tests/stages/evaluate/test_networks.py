"""Metrics by pretrained networks: agreement with transformers, what they promise, and what must be there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedders import SIDE_PX, save_small_clip, save_small_dinov2
from helpers import ROOT
from PIL import Image
from rig.hub import serving
from safetensors.torch import load_file, save_file
from small_set import edited
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

from sdlora import choices
from sdlora.config.evaluate import Evaluate
from sdlora.errors import DataError, MissingError, SdloraError
from sdlora.flow import plan
from sdlora.flow.hashing import FileHashes
from sdlora.flow.networks import networks_of
from sdlora.flow.recipe import Recipe
from sdlora.stages.evaluate import embedding, weights
from sdlora.stages.evaluate.embedding import Clip, Dinov2
from sdlora.stages.evaluate.metric import Floats, Metric, Pixels
from sdlora.stages.evaluate.recipe import EvaluateRecipe, Network

PROMPTS = ["captain, red hat", "captain, teal background, small", "a", "captain, grey hair"]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small network for every setting."""
    folder = tmp_path_factory.mktemp("networks")
    clip = save_small_clip(folder / "clip")
    return {"clip_model": clip, "dinov2_model": save_small_dinov2(folder / "dinov2"), "cmmd_model": clip}


@pytest.fixture(scope="module")
def networks(folders: dict[str, Path]) -> dict[str, Any]:
    """The same, loaded."""
    clip = Clip(folders["clip_model"], 1)
    return {"clip_model": clip, "dinov2_model": Dinov2(folders["dinov2_model"], 1), "cmmd_model": clip}


def metric(name: str) -> Metric:
    found: Metric = choices.pick(choices.METRICS, name)
    return found


def pictures(split: str, count: int = 4) -> list[Pixels]:
    """Embedded pictures at the embedded base's size."""
    paths = sorted((ROOT / "data/embedded/captain" / split).glob("*.png"))[:count]
    return [np.asarray(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)) for path in paths]


SAMPLES, REFERENCES = pictures("train"), pictures("references")


def prepared(of: list[Pixels], side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Resized, cropped to the middle and normalised, by Pillow and numpy."""
    edge = (side - SIDE_PX) // 2
    found = []
    for picture in of:
        resized = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
        cropped = resized[edge : edge + SIDE_PX, edge : edge + SIDE_PX] / 255
        found.append(((cropped - mean) / std).transpose(2, 0, 1))
    return torch.tensor(np.array(found), dtype=torch.float32)


@torch.no_grad()
def test_clip_t_and_clip_i_are_clips_own_cosines(folders: dict[str, Path], networks: dict[str, Any]) -> None:
    model = CLIPModel.from_pretrained(folders["clip_model"]).eval()
    tokens = CLIPTokenizer.from_pretrained(folders["clip_model"])(PROMPTS, padding=True, return_tensors="pt")
    own, true = (
        model(**tokens, pixel_values=prepared(of, SIDE_PX, CLIP_MEAN, CLIP_STD)) for of in (SAMPLES, REFERENCES)
    )
    cosines = (own.logits_per_image / model.logit_scale.exp()).diagonal().numpy()
    found = metric("clip_t")(SAMPLES, REFERENCES, PROMPTS, **networks)
    assert found == pytest.approx(cosines, abs=1e-5) and np.ptp(found) > 0.01
    expected = torch.nn.functional.cosine_similarity(own.image_embeds, true.image_embeds).numpy()
    assert metric("clip_i")(SAMPLES, REFERENCES, PROMPTS, **networks) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_dinov2_is_the_cosine_of_class_tokens(folders: dict[str, Path], networks: dict[str, Any]) -> None:
    model = Dinov2Model.from_pretrained(folders["dinov2_model"]).eval()
    own, true = (
        model(prepared(of, 36, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).pooler_output
        for of in (SAMPLES, REFERENCES)
    )
    expected = torch.nn.functional.cosine_similarity(own, true).numpy()
    found = metric("dinov2")(SAMPLES, REFERENCES, PROMPTS, **networks)
    assert found == pytest.approx(expected, abs=1e-5) and np.ptp(found) > 0.01


def mmd(x: Floats, y: Floats) -> float:
    """The paper's distance, pair by pair."""

    def mean_kernel(a: Floats, b: Floats) -> float:
        return float(np.mean([np.exp(-np.sum((one - other) ** 2) / 200) for one in a for other in b]))

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def test_the_mean_of_cmmd_is_the_papers_distance(networks: dict[str, Any]) -> None:
    clip, cmmd = networks["cmmd_model"], metric("cmmd")
    found = cmmd(SAMPLES, REFERENCES, PROMPTS, **networks)
    expected = mmd(clip.pictures(SAMPLES), clip.pictures(REFERENCES))
    assert found.mean() == pytest.approx(expected, abs=1e-5) and expected > 0.01
    # two seeds of each prompt: each reference is there twice, which changes nothing
    seeds, twice = [*SAMPLES, *(picture[::-1] for picture in SAMPLES)], [*REFERENCES, *REFERENCES]
    expected = mmd(clip.pictures(seeds), clip.pictures(REFERENCES))
    assert cmmd(seeds, twice, PROMPTS * 2, **networks).mean() == pytest.approx(expected, abs=1e-5)


def test_the_spread_of_cmmds_shares_is_the_distances_own() -> None:
    """Against the jackknife: 30 pairs of vectors, each left out once."""
    source = np.random.default_rng(0)
    x, y = (embedding.unit(torch.tensor(source.normal(shift, 1, (30, 8)))) for shift in (0.3, 0.0))
    vectors = {id(x): x, id(y): y}

    class Fixed:
        def pictures(self, of: Floats) -> Floats:
            return vectors[id(of)]

    shares = metric("cmmd").measure(x, y, [], Fixed())
    left_out = [mmd(np.delete(x, n, axis=0), np.delete(y, n, axis=0)) for n in range(30)]
    jackknife = np.sqrt(29 / 30 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert shares.std(ddof=1) / np.sqrt(30) == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize(
    ("name", "equal", "low", "high"), [("clip_i", 1, -1, 1), ("dinov2", 1, -1, 1), ("cmmd", 0, 0, 40)]
)
def test_identity_symmetry_and_range(
    name: str, equal: float, low: float, high: float, networks: dict[str, Any]
) -> None:
    measure = metric(name)
    found = measure(SAMPLES, REFERENCES, PROMPTS, **networks)
    assert measure(SAMPLES, SAMPLES, PROMPTS, **networks) == pytest.approx([equal] * 4, abs=1e-9)
    assert found == pytest.approx(measure(REFERENCES, SAMPLES, PROMPTS, **networks), abs=1e-9)
    assert low <= found.mean() <= high
    assert (found.mean() < equal) == measure.higher_is_better


def test_a_prompt_is_read_alone_and_up_to_77_tokens(networks: dict[str, Any]) -> None:
    clip_t, long = metric("clip_t"), "captain, " + "red hat, " * 60
    found = clip_t([SAMPLES[0]] * 3, [SAMPLES[0]] * 3, [long, f"{long} grey hair", PROMPTS[0]], **networks)
    assert found[0] == found[1] != found[2]
    assert clip_t(SAMPLES[:1], SAMPLES[:1], PROMPTS[:1], **networks)[0] == found[2]


def test_a_picture_is_looked_at_once_alone_or_among_others(
    folders: dict[str, Path], networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batches of three, as a GPU has them of sixteen: the last one is filled up."""
    monkeypatch.setattr(embedding, "BATCH", {"cpu": 3, "cuda": 3})
    asked: list[int] = []
    look = Clip._look
    monkeypatch.setattr(Clip, "_look", lambda clip, of: asked.append(len(of)) or look(clip, of))
    several = Clip(folders["clip_model"], 1)
    found = several.pictures([*SAMPLES, SAMPLES[0]])
    assert asked == [3, 3] and found[0].tolist() == found[4].tolist()
    assert found[:4] == pytest.approx(networks["clip_model"].pictures(SAMPLES), abs=1e-5)
    assert several.pictures(SAMPLES).tolist() == found[:4].tolist() and asked == [3, 3]
    again = Clip(folders["clip_model"], 1)
    assert again.pictures(SAMPLES).tolist() == found[:4].tolist(), "the same bytes in another process"


def network(model: Path | str, revision: str | None = None) -> Network:
    return Network(model=str(model), revision=revision, identity="-", threads=1)


def reported(setting: str, asked: Network) -> str:
    with pytest.raises(SdloraError) as caught:
        weights.check(setting, asked)
    return str(caught.value)


def test_what_is_missing_is_reported_by_its_name(folders: dict[str, Path], tmp_path: Path) -> None:
    for setting, folder in folders.items():
        weights.check(setting, network(folder))
        assert weights.folder_of(setting, network(folder)) == folder
    said = reported("clip_model", network("somebody/clip", "v1"))
    assert "evaluate.clip_model: 'somebody/clip' is neither a folder nor to be had from the hub at v1." in said
    assert "`hf download somebody/clip --revision v1`, or set evaluate.clip_model to a folder with config.json" in said
    assert "there is no folder './clip'" in reported("clip_model", network("./clip"))
    assert "is a file" in reported("cmmd_model", network(folders["cmmd_model"] / "config.json"))
    assert "of model_type 'dinov2', where 'clip' is wanted" in reported("cmmd_model", network(folders["dinov2_model"]))
    assert "lacks tokenizer.json" in reported("clip_model", network(folders["dinov2_model"]))
    copy = tmp_path / "clip"
    copy.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (copy / name).write_bytes((folders["clip_model"] / name).read_bytes())
    (copy / "pytorch_model.bin").write_bytes(b"pickled")
    assert "lacks model.safetensors; pytorch_model.bin is not read" in reported("cmmd_model", network(copy))
    (copy / "model.safetensors").write_bytes(b"no weights")
    weights.check("cmmd_model", network(copy))
    with pytest.raises(DataError, match="its weights cannot be read"):
        Clip(copy, 1)
    (copy / "config.json").write_text("{", encoding="utf-8")
    assert "config.json cannot be read" in reported("cmmd_model", network(copy))


def test_weights_that_are_not_whole_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers would go on with random numbers in the place of what is missing."""
    folder = save_small_dinov2(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"not whole: 1 tensors are missing, such as layernorm\.weight"):
        Dinov2(folder, 1)


# Prints what is wrong with a network of the hub, or where it lies once it was got.
USE = """
import sys
from sdlora.errors import SdloraError
from sdlora.stages.evaluate import weights
from sdlora.stages.evaluate.recipe import Network
network = Network(model=sys.argv[1], revision=sys.argv[2], identity="-", threads=1)
for ask in (weights.check, weights.folder_of):
    try:
        print(sorted(path.name for path in ask("cmmd_model", network).iterdir()) if ask is weights.folder_of
              else ask("cmmd_model", network))
    except SdloraError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.workflow
def test_a_network_of_the_hub_is_asked_for_before_and_got_when_it_is_needed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Safetensors alone; what is in the hub's cache needs no hub."""
    files = {path.name: path.read_bytes() for path in folders["clip_model"].iterdir()} | {"pytorch_model.bin": b"no"}
    pickled = {name: content for name, content in files.items() if name != "model.safetensors"}
    commit = "a" * 40

    def use(model: str, **env: str) -> list[str]:
        settings = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), **env}
        done = subprocess.run(
            [sys.executable, "-c", USE, model, commit], env=settings, text=True, capture_output=True, check=True
        )
        return done.stdout.splitlines()

    with serving({"some/clip": (commit, files), "some/pickle": (commit, pickled)}) as hub:
        before, _ = use("some/clip", HF_HUB_OFFLINE="1")
        assert before.startswith("MissingError: evaluate.cmmd_model: 'some/clip' is neither a folder nor")
        refused, _ = use("some/pickle", **hub.env)
        assert "DataError: evaluate.cmmd_model: 'some/pickle' lacks model.safetensors; pytorch_model.bin" in refused
        there, got = use("some/clip", **hub.env)
        assert there == "None" and got == str(sorted({*files} - {"pytorch_model.bin"}))
        assert not [path for path in hub.log if path.endswith(".bin")]
    assert use("some/clip", HF_HUB_OFFLINE="1") == [there, got]


def jobs(folder: Path, evaluate: str) -> dict[str, Recipe]:
    """The jobs of the tests' small version by stage, with some settings in its section `evaluate`."""
    params = edited(folder, ("evaluate: {", f"evaluate: {{{evaluate}, "))
    return {job.stage: job for job in plan.jobs(params) if job.name == "a"}


def test_other_weights_make_what_they_measured_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_small_clip(tmp_path / "clip")
    measured = "metrics: [psnr_db, clip_t], choose_by: psnr_db, clip_model: clip"
    before = jobs(tmp_path, measured)
    evaluate = before["evaluate"]
    assert isinstance(evaluate, EvaluateRecipe) and [*evaluate.networks] == ["clip_model"] and evaluate.cards == 1
    weights.check("clip_model", evaluate.networks["clip_model"])

    def stale(after: dict[str, Recipe]) -> set[str]:
        return {stage for stage, job in after.items() if job.digest() != before[stage].digest()}

    assert stale(jobs(tmp_path, measured)) == set()
    save_small_clip(tmp_path / "clip", seed=1)
    assert stale(jobs(tmp_path, measured)) == {"evaluate"}, "what chose did not ask it"
    assert stale(jobs(tmp_path, measured.replace("choose_by: psnr_db", "choose_by: clip_t"))) == {"choose", "evaluate"}


def test_networks_that_nobody_asks_make_nothing_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, named = jobs(tmp_path, "validation: 0.5"), jobs(tmp_path, "clip_model: x/y, cmmd_revision: main")
    assert {job.digest() for job in plain.values()} == {job.digest() for job in named.values()}
    said = json.dumps([job.identity() for job in plain.values()])
    assert "clip_model" not in said and "networks" not in said, "results of before there were networks stay fresh"


@pytest.mark.parametrize(
    ("said", "identity"),
    [
        ({"clip_revision": None}, "hub:openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"),
        ({"clip_revision": "main"}, "hub:openai/clip-vit-large-patch14@main"),
        ({"clip_model": "my/clip"}, "hub:my/clip@main"),
        ({"clip_model": "my/clip", "clip_revision": "v1"}, "hub:my/clip@v1"),
        ({"dinov2_revision": None}, "hub:facebook/dinov2-base@f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
        ({"dinov2_model": "my/dino", "dinov2_revision": "v2"}, "hub:my/dino@v2"),
        ({"cmmd_model": "my/clip", "cmmd_revision": "v3"}, "hub:my/clip@v3"),
    ],
)
def test_which_weights_a_network_is(said: dict[str, str], identity: str, tmp_path: Path) -> None:
    setting = f"{next(iter(said)).partition('_')[0]}_model"
    hashes = FileHashes(tmp_path / "hashes.json")
    (asked,) = networks_of(Evaluate.model_validate(said), {setting}, 1, hashes).values()
    assert asked.identity == identity
    (asked,) = networks_of(Evaluate(**{setting: str(tmp_path)}), {setting}, 1, hashes).values()
    assert asked.identity.startswith("sha256:")


def test_a_network_that_is_not_there_is_reported_by_the_stage() -> None:
    recipe = EvaluateRecipe.model_construct(networks={"dinov2_model": network("my/dino")})
    prepare = metric("dinov2").prepare
    assert prepare is not None
    with pytest.raises(MissingError, match=r"evaluate\.dinov2_model: 'my/dino' is neither a folder"):
        prepare(recipe)
