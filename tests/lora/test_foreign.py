"""LoRA files from elsewhere: the same matrices whatever form they have, several as one, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY
from safetensors.torch import load_file, save_file
from torch import Tensor
from training import drawn_with, predicted, random_lora

from sdlora.config.params import Base
from sdlora.errors import DataError
from sdlora.lora.foreign import Foreign, check_own_form, lora_file, mixed, own_form, read_foreign, write_layers
from sdlora.lora.kohya_file import module_name
from sdlora.models import ModelFamily, load_model
from sdlora.models.sd import StableDiffusion
from sdlora.models.sdxl import StableDiffusionXL

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ALPHA, RANK = 2.0, 4


@pytest.fixture(scope="module")
def tiny() -> ModelFamily:
    return StableDiffusion.outline(TINY, torch.device("cpu"))


def kohya(lora: Foreign, model: ModelFamily) -> dict[str, Tensor]:
    """As kohya's trainer writes it, at an alpha that halves the strength, so `up` is twice as large."""
    assert model.kohya is not None
    tensors, per_block = {}, model.naming()["layers_per_block"]
    for (part, module), (down, up) in lora.layers.items():
        name = model.kohya.prefixes[part] + module_name(part, module, model.base.family, per_block)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up * RANK / ALPHA}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return {name: value.contiguous() for name, value in tensors.items()}


def written(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def same(one: Foreign, other: Foreign) -> bool:
    pairs = [(one.layers[place], other.layers.get(place)) for place in one.layers]
    return len(one.layers) == len(other.layers) and all(
        theirs is not None and all(torch.allclose(ours[side], theirs[side], atol=1e-6) for side in (0, 1))
        for ours, theirs in pairs
    )


@pytest.mark.parametrize("ends", [("to_q", "to_out.0"), ("conv1", "proj_in", "q_proj", "fc1")])
def test_kohyas_form_is_read_with_its_alpha(tmp_path: Path, tiny: ModelFamily, ends: tuple[str, ...]) -> None:
    lora = random_lora(tiny, ends)
    found = read_foreign(written(tmp_path / "a.safetensors", kohya(lora, tiny)), tiny)
    assert same(found, lora) and found.form == "kohya"


def test_sdxls_two_spellings(tmp_path: Path, small_sdxl: Base) -> None:
    model = StableDiffusionXL.outline(small_sdxl, torch.device("cpu"))
    lora = random_lora(model, ("to_q", "v_proj"))
    assert {part for part, _ in lora.layers} == {"unet", "text_encoder", "text_encoder_2"}
    assert same(read_foreign(written(tmp_path / "a.safetensors", kohya(lora, model)), model), lora)
    denoiser = {place: matrices for place, matrices in lora.layers.items() if place[0] == "unet"}
    as_diffusers = {
        f"lora_unet_{module.replace('.', '_')}.lora_{name}.weight": value.contiguous()
        for (_, module), matrices in denoiser.items()
        for name, value in zip(("down", "up"), matrices, strict=True)
    }
    found = read_foreign(written(tmp_path / "b.safetensors", as_diffusers), model)
    assert same(found, Foreign("kohya", denoiser))


def test_diffusers_and_pefts_forms(tmp_path: Path, tiny: ModelFamily) -> None:
    lora = random_lora(tiny, ("to_q", "to_v"))
    own = write_layers(tmp_path / "own" / "pytorch_lora_weights.safetensors", lora.layers, tiny)
    assert same(read_foreign(own, tiny), lora)
    plain = load_file(own)
    old = {name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value for name, value in plain.items()}
    assert same(read_foreign(written(tmp_path / "old.safetensors", old), tiny), lora), "no header: as it is"
    peft = {f"base_model.model.{name.removeprefix('unet.')}": value for name, value in plain.items()}
    written(tmp_path / "peft" / "adapter_model.safetensors", peft)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA, "x": None}))
    halved = {place: (down, up * ALPHA / RANK) for place, (down, up) in lora.layers.items()}
    found = read_foreign(lora_file(tmp_path / "peft"), tiny)
    assert same(found, Foreign("peft", halved)) and found.form == "peft"


def test_several_draw_as_set_adapters_does(tmp_path: Path, tiny: ModelFamily) -> None:
    """Of different ranks, on layers that they share and on others."""
    torch.set_num_threads(1)
    pipeline = load_model(TINY, "cpu").pipeline
    loras = [random_lora(tiny, ("to_q", "to_k"), 4, seed=1), random_lora(tiny, ("to_k", "to_v"), 2, seed=2)]
    for number, lora in enumerate(loras):
        file = write_layers(tmp_path / f"{number}.safetensors", lora.layers, tiny)
        pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=str(number))
    pipeline.set_adapters(["0", "1"], [0.5, 1.0])
    wanted = predicted(pipeline.unet)
    pipeline.unload_lora_weights()
    without = predicted(pipeline.unet)
    both = write_layers(tmp_path / "both.safetensors", mixed(zip(loras, (0.5, 1.0), strict=True)), tiny)
    assert float((wanted - without).abs().max()) > 0.01, "otherwise this shows nothing"
    assert float((drawn_with(pipeline, both, 1.0) - wanted).abs().max()) < 1e-5


def refused(path: Path, tensors: dict[str, Tensor], model: ModelFamily) -> str:
    with pytest.raises(DataError) as caught:
        read_foreign(written(path, tensors), model)
    return str(caught.value)


def test_what_lies_on_no_layer_is_named(tmp_path: Path, tiny: ModelFamily, small_sdxl: Base) -> None:
    path = tmp_path / "a.safetensors"
    own = kohya(random_lora(tiny, ("to_q",)), tiny)
    strange = {**own, "lora_unet_no_such_layer.lora_up.weight": torch.zeros(2, 2)}
    said = refused(path, strange, tiny)
    assert f"1 of {len(strange)} tensors lie on no layer" in said and "lora_unet_no_such_layer.lora_up.weight" in said
    name = next(iter(own)).rpartition(".lora_")[0]
    assert "it is a LoHa" in refused(path, {f"{name}.hada_w1_a": torch.zeros(2, 2)}, tiny)
    assert "it is a DoRA" in refused(path, {**own, f"{name}.dora_scale": torch.zeros(2, 1)}, tiny)
    assert "the file is empty" in refused(path, {}, tiny)
    assert "down and up are needed" in refused(path, {f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 48)}, tiny)
    wide = {f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 320), f"unet.{QUERY}.lora_B.weight": torch.zeros(320, 2)}
    assert f"it is for another base: on unet.{QUERY}" in refused(path, wide, tiny)


def test_a_loha_lokr_or_dora_of_another_base_is_refused(tmp_path: Path, tiny: ModelFamily) -> None:
    path, width = tmp_path / "a.safetensors", tiny.denoiser.get_submodule(QUERY).weight.shape[0]

    def forms(wide: int) -> list[dict[str, Tensor]]:
        down, up = torch.zeros(2, width), torch.zeros(wide, 2)
        return [
            {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down},
            {"lokr_w1": torch.zeros(4, 4), "lokr_w2_a": torch.zeros(wide // 4, 2), "lokr_w2_b": down[:, ::4]},
            {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": torch.zeros(wide)},
        ]

    def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in tensors.items()}  # a file holds no memory twice

    for fits, wide in zip(forms(width), forms(2 * width), strict=True):
        own = {f"unet.{QUERY}.{name}": value for name, value in fits.items()}
        check_own_form(written(path, apart(own)), tiny)
        with pytest.raises(DataError, match=rf"it is for another base: unet.{QUERY} is .* has {2 * width} rows"):
            check_own_form(written(path, apart({f"unet.{QUERY}.{name}": part for name, part in wide.items()})), tiny)
        with pytest.raises(DataError, match=r"1 of .* tensors lie on no layer of a base of family sd: unet\.elsewhere"):
            check_own_form(written(path, {**apart(own), "unet.elsewhere.lora_A.weight": torch.zeros(2, 2)}), tiny)


def test_a_file_or_the_folder_of_one(tmp_path: Path) -> None:
    def said(name: str) -> str:
        with pytest.raises(DataError) as caught:
            lora_file(tmp_path / name)
        return str(caught.value)

    assert "there is no LoRA" in said("x.safetensors")
    (tmp_path / "a.pt").write_bytes(b"pickle")
    assert "only .safetensors is read" in said("a.pt")
    (tmp_path / "two").mkdir()
    assert "no .safetensors file" in said("two")
    for name in ("a", "b"):
        (tmp_path / "two" / f"{name}.safetensors").touch()
    assert "a.safetensors, b.safetensors: name the file" in said("two")
    (tmp_path / "two/pytorch_lora_weights.safetensors").touch()
    assert lora_file(tmp_path / "two").name == "pytorch_lora_weights.safetensors"
    with pytest.raises(DataError, match=r"no \.safetensors file that can be read"):
        own_form(tmp_path / "two/a.safetensors")
    listed = written(tmp_path / "listed.safetensors", {"x": torch.zeros(1)}, {"lora_adapter_metadata": "[]"})
    with pytest.raises(DataError, match="lora_adapter_metadata is no object"):
        own_form(listed)


@pytest.mark.parametrize(
    ("header", "own"),
    [({"unet.peft_type": "LOHA"}, True), ({"unet.use_dora": True}, True), ({"unet.peft_type": "LORA"}, False)],
)
def test_other_types_of_diffusers_form_are_known(tmp_path: Path, header: dict[str, Any], own: bool) -> None:
    file = written(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"lora_adapter_metadata": json.dumps(header)})
    assert own_form(file) is own
