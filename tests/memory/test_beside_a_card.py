"""The RAM that a base takes on its way to a card, and whether SDXL fits a free T4: 12 GiB of RAM, 15 GiB of its own."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from benchmarks.fake_card import CPU, CUDA
from helpers import ROOT
from shapes import MIDDLE_SDXL

from sdlora.config.load import load
from sdlora.config.params import Base, Version
from sdlora.memory import preflight, ram
from sdlora.memory.demand import demand_of_version
from sdlora.memory.prediction import draw_phase, encode_phase, predict
from sdlora.models import architectures
from sdlora.models.sd import StableDiffusion
from sdlora.models.sdxl import StableDiffusionXL

pytestmark = pytest.mark.slow

MIB, T4 = 2**20, 14.5 * 2**30  # bytes; what a T4's driver leaves of 15 GiB


def known(networks: dict[str, tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these networks' configs be what the hub says of SDXL."""
    name, settings = StableDiffusionXL.published_scheduler or ("", {})
    scheduler = getattr(diffusers, name)(**settings, prediction_type="epsilon")
    monkeypatch.setattr(architectures, "_configs_of", lambda *_: (networks, scheduler))


def on_sdxl(name: str) -> tuple[Version, Base]:
    params = load(ROOT / "params.yaml")
    version = params.versions[name]
    return version, params.bases[version.base]


def test_sdxl_takes_less_than_12_gib_of_ram_beside_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    known(StableDiffusionXL.published, monkeypatch)
    version, base = on_sdxl("naruto-256")
    found = ram.beside_a_card(version, base)
    unet = 2 * 2_567_463_684 / MIB
    assert found["train"] == found["draw"] == pytest.approx(4096 + 1.1 * unet, abs=100)
    assert all(mib < 12 * 1024 for mib in found.values())
    assert found["encode"] == pytest.approx(4096 + 1.1 * 319, abs=100), "the VAE alone, in fp32"
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    params = load(ROOT / "params.yaml")
    assert ram.training_mib(params, "naruto-1024") == ram.drawing_mib(params, "naruto-1024") == found["train"]


def test_what_else_takes_ram_beside_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    known(MIDDLE_SDXL, monkeypatch)
    version, base = on_sdxl("naruto-256")
    half = ram.beside_a_card(version, base)
    assert preflight.beside_a_card(version, base).endswith(f"train {half['train']}, draw {half['draw']}")
    monkeypatch.setattr(StableDiffusionXL, "published", MIDDLE_SDXL)
    monkeypatch.setattr(torch.version, "cuda", None)
    params = load(ROOT / "params.yaml")
    of_many = version.sample.model_copy(update={"batch_size": version.sample.batch_size + 1})
    more = params.model_copy(update={"versions": {"naruto-256": version.model_copy(update={"sample": of_many})}})
    one, several = (ram.drawing_mib(found, "naruto-256") for found in (params, more))
    assert 2048 + 1.1 * 133.1e6 / MIB < one < several, "in RAM, with the networks and what is drawn at once"
    file = ram.beside_a_card(version, base.model_copy(update={"model": "mine.safetensors", "revision": None}))
    assert file["train"] == pytest.approx(4096 + 2.2 * 2 * 133.1e6 / MIB, abs=100), "all networks, converted in RAM"
    train = version.train.model_copy(update={"rank": 512, "optimizer": "adamw", "processes": 2})
    larger = ram.beside_a_card(version.model_copy(update={"train": train}), base)
    numbers = preflight.predict(train, base, preflight.Demand((4, 8, 8)), CPU)[-1].parts["lora"] / MIB
    assert larger["train"] == pytest.approx(2 * (4096 + 1.1 * (2 + 2) * numbers), rel=0.02), "two copies, two moments"
    assert larger["draw"] == half["draw"]


def test_sdxl_fits_a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the CPU in the types that a card would have, as `sdlora preflight --device cuda` does without one."""
    known(StableDiffusionXL.published, monkeypatch)
    version, base = on_sdxl("naruto-1024")
    phases = [encode_phase(version, base, CUDA, CPU)]
    phases += predict(version.train, base, replace(demand_of_version(version, base), captions=1222), CUDA, CPU)
    phases.append(draw_phase(version.sample, version.fit.size_px or base.size_px, base, CUDA, CPU))
    assert [phase.name for phase in phases] == ["encode", "load", "captions", "train", "draw"]
    for phase in phases:
        assert preflight._needed(phase.total, CUDA) < T4, phase
    unet = 2 * 2_567_463_684
    assert phases[3].parts["unet"] == phases[4].parts["unet"] == unet


def test_what_the_notebook_draws_fits_a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """v8 on SD 1.5, five pictures at once with hires fix: by the fused attention that a card has."""
    known(StableDiffusion.published, monkeypatch)
    params = load(ROOT / "params.yaml")
    base = params.bases["sd15"].model_copy(update={"vae": None, "vae_revision": None})
    phase = draw_phase(params.versions["v8"].sample, 512, base, CUDA, CPU)
    assert 2**30 < phase.parts["activations"] < 5 * 2**30
    assert preflight._needed(phase.total, CUDA) < T4
