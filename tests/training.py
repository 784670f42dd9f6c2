"""Small trainings on a small base, and what is read of them."""

import atexit
import json
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from helpers import ROOT, TINY, environment
from inherited import NOT_OF_MEMORY
from safetensors import safe_open
from shapes import save_small_sd
from torch import nn

from sdlora import records
from sdlora.config.params import Base, Export, Flip
from sdlora.config.train import Train
from sdlora.flow.hashing import sha256_of, sha256_text
from sdlora.lora.attach import attach_lora, detach_lora
from sdlora.lora.foreign import Foreign
from sdlora.lora.metadata import About
from sdlora.memory import preflight
from sdlora.models import ModelFamily
from sdlora.stages.encode import shards
from sdlora.stages.export.export import export_version
from sdlora.stages.export.recipe import ExportRecipe
from sdlora.stages.train.dataset import Example
from sdlora.stages.train.loop import Run, train_loop
from sdlora.stages.train.recipe import TrainRecipe
from sdlora.stages.train.run import prepare, train_version, write_checkpoint

ABOUT = About("captain", 25, ("captain, left", "captain: a hat"), (64, 64), "epsilon", 192, 1)

_predict = preflight.predict
_predicted: dict[tuple[object, ...], list[preflight.Phase]] = {}


def predict_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the preflight predict a training's memory once a process, as often as it is asked."""

    def remembered(
        settings: Train, base: Base, demand: preflight.Demand, device: torch.device
    ) -> list[preflight.Phase]:
        asked = (settings.model_dump_json(exclude=NOT_OF_MEMORY), base.model_dump_json(), demand, device)
        if asked not in _predicted:
            _predicted[asked] = _predict(settings, base, demand, device)
        return _predicted[asked]

    monkeypatch.setattr(preflight, "predict", remembered)


@cache
def small_base() -> Base:
    """`shapes.save_small_sd`'s, written once a process: enough where no picture of the embedded base is asked for."""
    folder = Path(tempfile.mkdtemp(prefix="small-sd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save_small_sd(folder)


def examples(count: int = 3, side: int = 16) -> list[Example]:
    """Random latents with a mirrored side, shaped as the tiny VAE's."""
    source = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        means = tuple(torch.randn(4, side, side, generator=source) for _ in range(2))
        stds = tuple(torch.full((4, side, side), 0.1) for _ in range(2))
        made.append(Example(f"p{number}", means, stds, ("captain, left", "captain, right")))
    return made


def settings(**changes: object) -> Train:
    values = {"rank": 2, "steps": 4, "checkpoint_every": 2, "learning_rate": 1e-3, "optimizer": "adamw"}
    return Train(**{**values, "mixed_precision": "no", **changes})


def run_of(base: Base | None = None, **options: Any) -> Run:
    values = {"rank": 4, "steps": 3, "checkpoint_every": 3, "learning_rate": 1e-2, "optimizer": "adamw"}
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    train = Train(**{**values, "mixed_precision": "no", **options})
    return prepare(train, Flip(), base or small_base(), examples(), trigger="captain")


def trained(out: Path, base: Base | None = None, **options: Any) -> Run:
    run = run_of(base, **options)
    train_loop(run, None, lambda state: write_checkpoint(run, out))
    return run


@torch.no_grad()
def predicted(unet: nn.Module) -> torch.Tensor:
    source = torch.Generator().manual_seed(5)
    width = unet.config.cross_attention_dim
    latents, context = torch.randn(1, 4, 16, 16, generator=source), torch.randn(1, 77, width, generator=source)
    output: torch.Tensor = unet.eval()(latents, torch.tensor([400]), context).sample
    return output


def drawn_with(pipeline: StableDiffusionPipeline, path: Path, scale: float) -> torch.Tensor:
    """The prediction with a LoRA on; it is off again afterwards."""
    attach_lora(pipeline, path, scale)
    try:
        return predicted(pipeline.unet)
    finally:
        detach_lora(pipeline)


@torch.no_grad()
def context_of(pipeline: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    context: torch.Tensor = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    return context


def hashes(run: Path) -> dict[str, str]:
    """Every file that a run left, by name."""
    return {str(p.relative_to(run)): sha256_of(p) for p in sorted(run.rglob("*")) if p.is_file()}


def make_dataset(folder: Path) -> list[Path]:
    """Three pictures' latents as the stages before would leave them; the records of those stages."""
    captions, rows, latents = [], [], {}
    for example in examples(side=4):
        for side, mirrored in enumerate((False, True)):
            key = sha256_text(f"{example.id}-{side}")[:32]
            latents[key] = (example.mean[side], example.std[side])
            place = {"bucket": [16, 16], "box": [0, 0, 16, 16], "original": [16, 16], "corner": [0, 0], "repeats": 1}
            row = {"id": example.id, "mirrored": mirrored, "text": example.text[side], "file_name": f"{key}.png"}
            captions.append({**row, **place})
            rows.append({"id": example.id, "mirrored": mirrored, "file": "all.safetensors", "key": key})
    shards.write(folder / "latents/tiny/all.safetensors", latents)
    records.write_jsonl(folder / "train/metadata.jsonl", captions)
    records.write_jsonl(folder / "latents/tiny/index.jsonl", rows)
    made = folder / "made/flip.json"
    records.write_json(made, {"recipe": "", "inputs": {}, "outputs": {"captions": "1"}})
    return [made]


def recipe_of(train: Train, dataset: Path, version: str = "a", **changes: Any) -> TrainRecipe:
    """What the stage train is asked to do with a fitted set, on the embedded base."""
    values: dict[str, Any] = {
        "wildcards": {"version": version}, "train": train, "checkpoint_steps": tuple(train.checkpoint_steps),
        "base": TINY, "base_identity": "sha256:tiny + sha256:vae", "flip": Flip(), "trigger": "captain",
        "encode": None, "threads": 1, "dataset": dataset, "base_name": "tiny", "keep_runs": 20,
    }  # fmt: skip
    return TrainRecipe(**{**values, **changes})


def export_recipe_of(trained: TrainRecipe, export: Export) -> ExportRecipe:
    """What the stage export is asked to do after that."""
    return ExportRecipe(
        wildcards=trained.wildcards, version=trained.name, train=trained.train, base=trained.base,
        base_identity=trained.base_identity, export=export,
    )  # fmt: skip


def header_of(path: Path) -> dict[str, str]:
    """A safetensors file's metadata."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


class Place:
    """A directory of its own in which a version is trained as its job would train it.

    A training of four steps costs less than the prediction of its memory, which is made once a process.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, base: Base = TINY) -> None:
        folder.mkdir(exist_ok=True)
        predict_once(monkeypatch)
        self.folder, self._monkeypatch, self._base = folder, monkeypatch, base

    def train(
        self,
        version: str = "a",
        code: str = "c1",
        trigger: str = "captain",
        export: dict[str, str] | None = None,
        **changes: object,
    ) -> Path:
        self._monkeypatch.chdir(self.folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = {"rank": 2, "alpha": 1.0, "steps": 4, "checkpoint_every": 2, "learning_rate": 1e-3} | changes
        train = Train.model_validate(
            {"optimizer": "adamw", "lr_schedule": "constant", "mixed_precision": "no", **settings}
        )
        inputs = tuple(make_dataset(self.folder / "set"))
        made_by: dict[str, Any] = {"code": code, "software": {"torch": "2"}, "inputs": inputs, "base": self._base}
        recipe = recipe_of(train, self.folder / "set", version, trigger=trigger, **made_by)
        files = train_version(recipe)
        files += export_version(export_recipe_of(recipe, Export.model_validate(export or {})))
        assert all(path.exists() for path in files)
        found = {str(path.relative_to(f"results/{version}")) for path in files}
        assert found == hashes(self.folder / "results" / version).keys(), "every file is told"
        return self.folder / "results" / version

    def runs(self) -> list[Path]:
        return [p for p in (self.folder / ".sdlora/store/train").iterdir() if p.is_dir()]


def measured(python: Path, base: Base, latent: tuple[int, int, int], **train: object) -> dict[str, object]:
    """What a process that trains took, bytes, and its losses; `python` starts it."""
    asked = {"base": base.model_dump(mode="json"), "latent": latent, "train": train}
    done = subprocess.run(
        [python, ROOT / "tests/measure_training.py", json.dumps(asked)],
        env={**environment(), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}, cwd=ROOT, text=True,
        capture_output=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def random_lora(model: ModelFamily, ends: tuple[str, ...], rank: int = 4, seed: int = 0) -> Foreign:
    """A LoRA on all layers whose names end so, strong enough to be seen."""
    source, found = torch.Generator().manual_seed(seed), {}
    for part, network in {model.denoiser_name: model.denoiser, **model.lora_text_encoders()}.items():
        for name, layer in network.named_modules():
            if name.endswith(ends):
                out, *into = layer.weight.shape
                up = torch.randn(out, rank, *[1] * (len(into) - 1), generator=source)
                found[part, name] = (torch.randn(rank, *into, generator=source) / 8, up / 8)
    return Foreign("diffusers", found)
