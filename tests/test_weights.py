"""Weights that are no safetensors: which file is named, and that what is said converts them."""

import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY
from safetensors.torch import save_file

from sdlora import records, weights
from sdlora.errors import DataError


def with_files(folder: Path, *names: str, index: bool = False) -> Path:
    for name in names:
        records.write_text(folder / name, "x")
    if index:
        parts = {"unet": ["diffusers", "A"], "vae": ["diffusers", "B"], "safety_checker": ["stable_diffusion", "C"]}
        records.write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})
    return folder


@pytest.mark.parametrize(
    ("names", "index", "named"),
    [
        (("unet/a.safetensors", "vae/b.bin"), True, "vae/b.bin"),
        (("unet/a.pt", "unet/a.safetensors", "vae/b.ckpt"), True, "vae/b.ckpt"),
        (("pytorch_model.bin", "config.json"), False, "pytorch_model.bin"),
        (("unet/a.safetensors", "vae/b.safetensors", "vae/b.bin", "safety_checker/c.bin", "more/d.bin"), True, None),
        (("model.safetensors", "pytorch_model.bin"), False, None),
        ((), False, None),
    ],
)
def test_the_file_is_named(names: tuple[str, ...], index: bool, named: str | None, tmp_path: Path) -> None:
    folder = with_files(tmp_path / "base", *names, index=index)
    (folder / "config.json").unlink(missing_ok=True)
    if named is None:
        weights.refuse_others(str(folder))
        return
    with pytest.raises(DataError, match=rf"^{re.escape(str(folder / named))}: only \.safetensors is read.*`python -c"):
        weights.refuse_others(str(folder))


def test_a_damaged_config_is_left_to_who_loads_it(tmp_path: Path) -> None:
    with_files(tmp_path, "model_index.json", "config.json", "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin: only .*DiffusionPipeline"):
        weights.refuse_others(str(tmp_path))


def test_one_file_and_what_is_not_here(tmp_path: Path) -> None:
    with_files(tmp_path, "one.ckpt", "one.safetensors")
    with pytest.raises(DataError, match=r"one\.ckpt: only .*StableDiffusionPipeline\.from_single_file\('.*one\.ckpt'"):
        weights.refuse_others(str(tmp_path / "one.ckpt"))
    weights.refuse_others(str(tmp_path / "one.safetensors"))
    weights.refuse_others("somebody/something")


@pytest.mark.parametrize(("config", "kind"), [
    ({"_class_name": "AutoencoderKL"}, "diffusers.AutoencoderKL"),
    ({"architectures": ["BlipForConditionalGeneration"]}, "transformers.BlipForConditionalGeneration"),
])  # fmt: skip
def test_one_network_is_converted_by_its_class(config: dict[str, object], kind: str, tmp_path: Path) -> None:
    records.write_json(tmp_path / "config.json", config)
    assert f"; {kind}.from_pretrained('{tmp_path}').save" in weights.conversion(tmp_path)


def test_what_is_said_converts_a_base(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from sdlora.models import load_model

    folder = tmp_path / "base"
    shutil.copytree(TINY.model, folder)
    safe = folder / "vae/diffusion_pytorch_model.safetensors"
    before = load_file(safe)
    torch.save(before, safe.with_suffix(".bin"))
    safe.unlink()
    base = TINY.model_copy(update={"model": str(folder)})
    with pytest.raises(DataError, match=r"vae/diffusion_pytorch_model\.bin: only") as refused:
        load_model(base, "cpu", ("vae",))
    said = re.search(r'`python -c "(.*)"`', str(refused.value))
    assert said is not None
    exec(said[1], {})
    after = load_file(safe)
    assert after.keys() == before.keys() and all(after[name].equal(before[name]) for name in before)
    assert load_model(base, "cpu", ("vae",)).pipeline.vae is not None


def test_a_captioner_is_refused_likewise(tmp_path: Path) -> None:
    from PIL import Image

    from sdlora.config.caption import Caption
    from sdlora.stages.caption.blip import Blip

    shutil.copytree(ROOT / "models/tiny-blip", tmp_path / "blip")
    (tmp_path / "blip/model.safetensors").rename(tmp_path / "blip/pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin: only .*transformers\.BlipForConditionalGeneration"):
        Blip(str(tmp_path / "blip"), None, Caption(), 1).captions([Image.new("RGB", (64, 64))])


@pytest.mark.parametrize(("width", "metadata"), [
    (1024, None), (1024, {"modelspec.prediction_type": "epsilon"}), (1024, {"modelspec.prediction_type": "v"}),
    (768, None),
])  # fmt: skip
def test_a_single_file_of_stable_diffusion_2_does_not_say_what_it_learns(
    tmp_path: Path, width: int, metadata: dict[str, str] | None
) -> None:
    """diffusers takes each for one that predicts velocity, also the base at 512 px."""
    file = tmp_path / "512-base-ema.safetensors"
    save_file({weights.KEY_OF_SD: torch.zeros(2, width)}, file, metadata)
    said = pytest.raises(DataError, match=r"velocity \(768 px\) or noise \(512 px.*to v_prediction or epsilon in its")
    with said if width == 1024 else nullcontext():
        weights.refuse_others(str(file))


def test_a_base_of_zero_terminal_snr_is_told_both_settings(tmp_path: Path) -> None:
    save_file({"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, tmp_path / "noob.safetensors")
    with pytest.raises(DataError, match=r"to v_prediction \(and rescale_betas_zero_snr to true.* in its scheduler"):
        weights.refuse_others(str(tmp_path / "noob.safetensors"))


@pytest.mark.parametrize(("mark", "metadata", "is_velocity"), [
    ("v_pred", None, True), ("ztsnr", None, False), ("w", {"modelspec.prediction_type": "v"}, True),
    ("w", {"modelspec.prediction_type": "epsilon"}, False), ("w", None, False),
])  # fmt: skip
def test_a_single_file_that_predicts_velocity_is_refused(
    tmp_path: Path, mark: str, metadata: dict[str, str] | None, is_velocity: bool
) -> None:
    file = tmp_path / "noob.safetensors"
    save_file({mark: torch.zeros(1)}, file, metadata)
    with pytest.raises(DataError, match=r"predicts velocity.*set prediction_type") if is_velocity else nullcontext():
        weights.refuse_others(str(file))
