"""Stable Diffusion 1.5: its real architecture with random weights, external VAEs, precisions."""

import sys
from pathlib import Path

import measure_training
import pytest
import torch
from helpers import ROOT, TINY
from shapes import small_vae
from training import examples, measured, settings

from sdlora import choices
from sdlora.config.params import Flip
from sdlora.memory import preflight
from sdlora.models import ModelFamily, architectures, load_model
from sdlora.stages.train.loop import train_loop
from sdlora.stages.train.run import prepare

TOKENIZER = ROOT / "models/tiny-sd/tokenizer"
# as published: huggingface.co/stable-diffusion-v1-5, stabilityai/stable-diffusion-xl-base-1.0 and -3-medium
PARAMETERS = {
    ("sd", "unet"): 859_520_964, ("sd", "vae"): 83_653_863, ("sd", "text_encoder"): 123_060_480,
    ("sdxl", "unet"): 2_567_463_684, ("sdxl", "vae"): 83_653_863, ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840, ("sd3", "transformer"): 2_028_328_000, ("sd3", "vae"): 83_819_683,
    ("sd3", "text_encoder"): 123_650_304, ("sd3", "text_encoder_2"): 694_659_840,
    ("sd3", "text_encoder_3"): 4_762_310_656,
}  # fmt: skip


@pytest.mark.parametrize(("family", "part"), PARAMETERS)
def test_architectures_have_the_published_size(family: str, part: str) -> None:
    network = architectures.empty(choices.pick(choices.FAMILIES, family).published[part])
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[family, part]
    assert all(p.is_meta for p in network.parameters())


@pytest.mark.workflow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_sd15_trains_within_the_predicted_memory(served: Path, tmp_path: Path) -> None:
    """Frozen weights, LoRA, optimizer and activations of a whole step, against the process's own high-water mark."""
    base = architectures.save_random("sd", tmp_path / "sd15", "bf16", TOKENIZER).model_copy(update={"dtype": "fp32"})
    latent = (4, 32, 32)  # 256 px: a step is seconds; the second has the optimizer's state
    train = {"rank": 8, "steps": 2, "checkpoint_every": 2, "optimizer": "adamw", "mixed_precision": "no"}
    found = measured(served, base, latent, **train)
    losses = found["losses"]
    assert isinstance(losses, list) and len(losses) == 2
    assert all(0.5 < loss < 5 for loss in losses)  # a random network neither explodes nor dies
    phases = preflight.predict(settings(**train), base, preflight.Demand(latent), torch.device("cpu"))
    predicted = next(phase.total for phase in phases if phase.name == "train")
    peak = int(str(found["peak"])) - int(str(found["baseline"]))
    assert abs(predicted / peak - 1) < 0.15, f"predicted {predicted / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB"


def test_an_external_vae_replaces_the_bases_own(tmp_path: Path) -> None:
    small_vae(scaling_factor=0.5).save_pretrained(tmp_path)
    base = TINY.model_copy(update={"vae": str(tmp_path)})
    model, own = load_model(base, "cpu"), load_model(TINY, "cpu")
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = model.encode_images(picture)
    assert mean.shape == std.shape == (1, 4, 16, 16)
    assert not torch.allclose(mean, own.encode_images(picture)[0])
    posterior = small_vae(scaling_factor=0.5).eval().encode(picture).latent_dist
    assert torch.allclose(mean, posterior.mean * 0.5, atol=1e-5)
    drawn = model.pipeline("captain", num_inference_steps=1, height=64, width=64, output_type="pt").images
    assert drawn.shape == (1, 3, 64, 64)
    assert not any(p.requires_grad for p in model.pipeline.vae.parameters())
    outline = type(model).outline(base, torch.device("cpu"))
    shapes = [[p.shape for p in one.pipeline.vae.parameters()] for one in (outline, model)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("dtype", "kept"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)]
)
def test_weights_on_a_cpu(dtype: str, kept: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(TINY.model_copy(update={"dtype": dtype}), "cpu")
    assert {p.dtype for part in model.parts() for p in part.parameters()} == {kept}
    assert ("weights are kept in fp32, not fp16" in capsys.readouterr().out) == (dtype == "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_bf16_weights_train_an_fp32_lora(precision: str) -> None:
    run = prepare(settings(mixed_precision=precision), Flip(), TINY.model_copy(update={"dtype": "bf16"}), examples())
    assert {p.dtype for p in run.parameters} == {torch.float32}
    before = [p.detach().clone() for p in run.parameters]
    losses = [row[1] for row in train_loop(run, None, lambda state: None)]
    assert all(0 < loss < 10 for loss in losses)
    assert not all(torch.equal(one, other) for one, other in zip(before, run.parameters, strict=True))


def test_fp16_weights_are_read_from_fp16_files_where_there_are_some(tmp_path: Path) -> None:
    """Half the download; a folder with other files alone is read all the same."""
    both = tmp_path / "both"
    model = load_model(TINY, "cpu")
    model.pipeline.save_pretrained(both)
    with torch.no_grad():
        for parameter in model.pipeline.vae.parameters():
            parameter.zero_()
    model.pipeline.to(torch.float16).save_pretrained(both, variant="fp16")

    def largest(folder: Path | str, dtype: torch.dtype) -> float:
        model.base, model.dtype = TINY.model_copy(update={"model": str(folder)}), dtype
        vae = model._load(("vae",)).vae
        assert vae.dtype == dtype
        return max(float(p.detach().abs().max()) for p in vae.parameters())

    assert largest(both, torch.float16) == 0
    assert largest(both, torch.float32) == largest(TINY.model, torch.float32) > 0
    assert largest(both, torch.bfloat16) > 0
    assert largest(TINY.model, torch.float16) > 0


def test_captions_are_encoded_before_the_denoiser_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    there = []
    load = choices.pick(choices.FAMILIES, "sd").load

    def looked(model: ModelFamily, *kinds: str) -> None:
        there.append((kinds, [name for name, part in model.pipeline.components.items() if part in model.parts()]))
        load(model, *kinds)

    monkeypatch.setattr(ModelFamily, "load", looked)
    prepare(settings(), Flip(), TINY, examples())
    prepare(settings(cache_text="none"), Flip(), TINY, examples())
    assert there == [(("denoiser",), []), (("denoiser",), ["text_encoder"])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_on_a_gpu_half_weights_the_scaler_and_the_prediction(tmp_path: Path, dtype: str, checkpointing: bool) -> None:
    base = architectures.save_random("sd", tmp_path / "sd15", dtype, TOKENIZER)
    train = settings(mixed_precision=dtype, gradient_checkpointing=checkpointing, rank=8)
    shots = measure_training.examples((4, 64, 64))
    phases = preflight.predict(train, base, preflight.demand_of(shots, train, base), torch.device("cuda"))
    run = prepare(train, Flip(), base, shots)
    assert (run.accelerator.scaler is not None) == (dtype == "fp16")
    assert run.model.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    torch.cuda.reset_peak_memory_stats()
    train_loop(run, None, lambda state: None)
    assert abs(phases[-1].total / torch.cuda.max_memory_allocated() - 1) < 0.15
