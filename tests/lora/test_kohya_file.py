"""Files for other tools: the same update after every conversion, read by the readers themselves."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from helpers import ROOT, TINY
from huggingface_hub import ModelCard
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from training import ABOUT, settings

from sdlora import tensors
from sdlora.config.params import Base
from sdlora.lora.card import card
from sdlora.lora.diffusers_file import read_lora
from sdlora.lora.kohya_file import module_name, to_kohya
from sdlora.lora.names import FILE_NAME
from sdlora.lora.tool_files import Trained, write_kohya
from sdlora.models.names import NoKohyaForm
from sdlora.models.sdxl import original_name

ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
ALL = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut",
       "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out"]  # fmt: skip
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
SAID = ("r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules")


def lora(part: nn.Module, config: Any) -> dict[str, Tensor]:
    """Add a LoRA of random, non-zero matrices; its tensors by diffusers' names."""
    torch.manual_seed(0)
    part.add_adapter(config)  # type: ignore[operator]
    return dict(convert_state_dict_to_diffusers(get_peft_model_state_dict(part)))


def write_native(folder: Path, pipeline: Any, configs: dict[str, LoraConfig]) -> Path:
    """diffusers' LoRA file of a pipeline with a random LoRA on each of the named parts."""
    found, said = {}, {}
    for name, config in configs.items():
        found |= {f"{name}.{key}": value for key, value in lora(getattr(pipeline, name), config).items()}
        values = {key: getattr(config, key) for key in SAID if hasattr(config, key)}
        values["target_modules"] = sorted(config.target_modules)
        said |= {f"{name}.{key}": value for key, value in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    (folder / FILE_NAME).write_bytes(b"".join(tensors.pieces(found, metadata)))
    return folder / FILE_NAME


def deltas(pipeline: Any, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Every layer's update as it is added to its weight: up @ down x alpha / r."""
    found = {}
    for part in parts:
        for name, module in getattr(pipeline, part).named_modules():
            if hasattr(module, "get_delta_weight"):
                (model,) = module.active_adapters
                found[f"{part}.{name}"] = module.get_delta_weight(model).detach()
    return found


def assert_read_alike(
    source: Any, reader: Any, lora_file: Path, base: Base, parts: tuple[str, ...]
) -> dict[str, Tensor]:
    """diffusers' loader must find the same update in kohya's file; the file's tensors."""
    path = write_kohya(Trained(lora_file, "name", 7, settings(rank=4, alpha=2.0), base, ABOUT))
    assert path is not None
    reader.load_lora_weights(path.parent, weight_name=path.name)
    ours, theirs = deltas(source, parts), deltas(reader, parts)
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        assert value.abs().max() > 0
        assert (value - theirs[name]).abs().max() <= 1e-6 * value.abs().max(), name
    return load_file(path)


def tiny() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(TINY.model, safety_checker=None, requires_safety_checker=False)


CONFIGS: dict[str, dict[str, LoraConfig]] = {
    "attention": {"unet": LoraConfig(r=4, lora_alpha=2, target_modules=ATTENTION, init_lora_weights=False)},
    "all layers, convolutions and the text encoder": {
        "unet": LoraConfig(r=4, lora_alpha=1, target_modules=ALL, init_lora_weights=False),
        "text_encoder": LoraConfig(r=3, lora_alpha=2, target_modules=TEXT, init_lora_weights=False),
    },
    "rank-stabilised": {
        "unet": LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=ATTENTION, init_lora_weights=False)
    },
    "ranks and alphas by layer": {
        "unet": LoraConfig(
            r=4, lora_alpha=2, target_modules=ATTENTION, init_lora_weights=False,
            rank_pattern={"attn2.to_q": 8, "attn1.to_k": 2}, alpha_pattern={"attn2.to_q": 3.0, "attn1.to_v": 5.0},
        ),
        "text_encoder": LoraConfig(
            r=4, lora_alpha=1, target_modules=TEXT, alpha_pattern={"fc1": 3.0}, init_lora_weights=False
        ),
    },
    "rank-stabilised, ranks by layer": {
        "unet": LoraConfig(
            r=4, lora_alpha=2, use_rslora=True, target_modules=ATTENTION, rank_pattern={"attn2.to_q": 9},
            init_lora_weights=False,
        )
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGS)
def test_diffusers_reads_sd_files_at_the_same_strength(tmp_path: Path, case: str) -> None:
    source, parts = tiny(), tuple(CONFIGS[case])
    found = assert_read_alike(source, tiny(), write_native(tmp_path, source, CONFIGS[case]), TINY, parts)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_encoder_layers_"}
    assert {name.split(".")[0] for name in found} == {name.removesuffix(".alpha") for name in found if "alpha" in name}
    for part, prefix in prefixes.items():
        assert any(name.startswith(prefix) for name in found) == (part in parts)
    down = found["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"]
    alpha = found["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha"]
    expected = {"attention": 2, "rank-stabilised": 4, "rank-stabilised, ranks by layer": 4}
    assert down.shape[0] == 4 and alpha.shape == () and alpha.item() == expected.get(case, alpha.item())


@pytest.mark.parametrize(
    "targets", [ATTENTION, [name for name in ALL if "." not in name or "net" in name or "to_" in name]]
)
def test_diffusers_reads_sdxl_files_at_the_same_strength(
    tmp_path: Path,
    small_sdxl: Base,
    targets: list[str],
) -> None:
    source, reader = (StableDiffusionXLPipeline.from_pretrained(small_sdxl.model) for _ in range(2))
    configs = {
        "unet": LoraConfig(r=4, lora_alpha=2, target_modules=targets, init_lora_weights=False),
        "text_encoder": LoraConfig(r=4, lora_alpha=3, target_modules=TEXT, init_lora_weights=False),
        "text_encoder_2": LoraConfig(r=2, lora_alpha=1, target_modules=TEXT, init_lora_weights=False),
    }
    found = assert_read_alike(source, reader, write_native(tmp_path, source, configs), small_sdxl, tuple(configs))
    assert {re.match(r"lora_[a-z]+\d?_", name)[0] for name in found} == {"lora_unet_", "lora_te1_", "lora_te2_"}  # type: ignore[index]
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in found
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in found
    assert not any("down_blocks" in name or "up_blocks" in name or "mid_block_" in name for name in found)


@pytest.fixture(scope="module")
def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's architecture with few channels: the same modules under the same names."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32, 64), layers_per_block=2, attention_head_dim=(2, 2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 2, 10),
        projection_class_embeddings_input_dim=8 * 6 + 32, cross_attention_dim=64,
    )  # fmt: skip


def test_sdxl_modules_have_the_original_names(sdxl_unet: UNet2DConditionModel) -> None:
    linear = [n for n, m in sdxl_unet.named_modules() if isinstance(m, nn.Linear) and ".attentions." in n]
    assert len(linear) == 722, "as many as kohya's own network for SDXL"
    # pairs as kohya's and Stability AI's code have them
    expected = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "down_blocks.2.attentions.1.proj_in": "input_blocks_8_1_proj_in",
        "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj":
            "middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0":
            "output_blocks_2_1_transformer_blocks_3_attn2_to_out_0",
        "up_blocks.1.attentions.0.proj_out": "output_blocks_3_1_proj_out",
        "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "down_blocks.2.resnets.0.conv_shortcut": "input_blocks_7_0_skip_connection",
        "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        "up_blocks.2.resnets.2.time_emb_proj": "output_blocks_8_0_emb_layers_1",
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
        "add_embedding.linear_2": "label_emb_0_2",
    }  # fmt: skip
    assert {name: module_name("unet", name, "sdxl", 2) for name in expected} == expected
    assert set(expected) <= {name for name, _ in sdxl_unet.named_modules()}


def test_diffusers_finds_every_sdxl_module_again(sdxl_unet: UNet2DConditionModel) -> None:
    names = [
        n for n, m in sdxl_unet.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and n.split(".")[0] in ("down_blocks", "mid_block", "up_blocks")
    ]  # fmt: skip
    down, up = torch.zeros(1, 2), torch.zeros(3, 1)
    found = {f"unet.{n}.lora_A.weight": down for n in names} | {f"unet.{n}.lora_B.weight": up for n in names}
    kohya = to_kohya(found, {"unet.lora_alpha": 2.0, "unet.r": 1}, "sdxl", 2)
    assert len(kohya) == 3 * len(names), "no two modules share a name"
    state, _ = StableDiffusionXLPipeline.lora_state_dict(dict(kohya), unet_config=sdxl_unet.config)
    ends = r"(\.lora|_lora)?\.down\.weight$"
    again = {re.sub(ends, "", key.removeprefix("unet.")).replace(".processor", "") for key in state if "down" in key}
    again = {re.sub(r"\.to_out$", ".to_out.0", name) for name in again if not name.endswith(".up.weight")}
    assert {name for name in again if ".up." not in name} >= set(names)


def test_a_module_without_a_name_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoKohyaForm, match=r"unet\.encoder_hid_proj"):
        original_name("encoder_hid_proj", 2)
    found = {"unet.mid_block.lora_B.bias": torch.zeros(1)}
    (tmp_path / FILE_NAME).write_bytes(b"".join(tensors.pieces(found)))
    assert write_kohya(Trained(tmp_path / FILE_NAME, "name", 7, settings(), TINY, ABOUT)) is None
    assert "only diffusers' file is written: unet.mid_block.lora_B.bias has no name" in capsys.readouterr().out
    with pytest.raises(NoKohyaForm, match="does not say its alpha"):
        to_kohya({"unet.a.lora_A.weight": torch.ones(1, 1), "unet.a.lora_B.weight": torch.ones(1, 1)}, {}, "sd", 2)


class Block(nn.Module):
    """A linear and a convolutional layer to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.conv1 = nn.Linear(12, 8), nn.Conv2d(8, 12, 3)


def read_lycoris(parts: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """The update as ComfyUI and LyCORIS compute it from LoHa's and LoKr's tensors."""
    alpha = parts["alpha"].item()
    if "hada_w1_a" in parts:
        whole = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return whole.reshape(shape) * (alpha / parts["hada_w1_b"].shape[0])
    rank = next((parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), None)
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    second = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    if len(shape) == 4 and second.dim() == 2:
        second = second.reshape(second.shape[0], -1, *shape[2:])
    first = first.reshape(*first.shape, *[1] * (second.dim() - 2))
    return torch.kron(first, second).reshape(shape) * (1.0 if rank is None else alpha / rank)


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=3, alpha=2, target_modules=["to_q", "conv1"], init_weights=False),
        LoKrConfig(r=2, alpha=3, target_modules=["to_q", "conv1"], init_weights=False),
        LoKrConfig(r=64, alpha=16, target_modules=["to_q", "conv1"], init_weights=False),
    ],
    ids=["LoHa", "LoKr", "LoKr of whole factors"],
)
def test_loha_and_lokr_have_lycoris_names(config: Any) -> None:
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    block = inject_adapter_in_model(config, Block())
    found = {f"unet.mid_block.{name}": value for name, value in get_peft_model_state_dict(block).items()}
    said = {"unet.r": config.r, "unet.alpha": config.alpha}
    kohya = to_kohya(found, said, "sd", 2)
    for name in ("to_q", "conv1"):
        prefix = f"lora_unet_mid_block_{name}."
        parts = {key.removeprefix(prefix): value for key, value in kohya.items() if key.startswith(prefix)}
        expected = getattr(block, name).get_delta_weight("default").detach()
        assert expected.abs().max() > 0
        assert torch.allclose(read_lycoris(parts, expected.shape), expected, rtol=1e-5, atol=1e-7)


def test_dora_has_lycoris_scale() -> None:
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=2, use_dora=True, target_modules=["to_q", "conv1"], init_lora_weights=False)
    block = inject_adapter_in_model(config, Block())
    for name in ("to_q", "conv1"):
        magnitude = getattr(block, name).lora_magnitude_vector["default"]
        magnitude.weight.data *= torch.rand_like(magnitude.weight) + 0.5
    found = {f"unet.mid_block.{name}": value for name, value in get_peft_model_state_dict(block).items()}
    kohya = to_kohya(found, {"unet.r": 3, "unet.lora_alpha": 2}, "sd", 2)
    for name in ("to_q", "conv1"):
        layer, prefix = getattr(block, name), f"lora_unet_mid_block_{name}."
        weight = layer.get_base_layer().weight.detach()
        scale = kohya[f"{prefix}dora_scale"]
        assert scale.shape == (len(weight), *[1] * (weight.dim() - 1))
        up, down = (kohya[f"{prefix}lora_{side}.weight"] for side in ("up", "down"))
        update = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * (kohya[f"{prefix}alpha"].item() / 3)
        moved = weight + update
        norm = moved.flatten(1).norm(dim=1).reshape(scale.shape)
        layer.merge()
        assert torch.allclose(moved * (scale / norm), layer.get_base_layer().weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_both_files_draw_the_same_picture(tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=2, target_modules=ATTENTION, init_lora_weights=False)
    text = LoraConfig(r=4, lora_alpha=2, target_modules=TEXT, init_lora_weights=False)
    native = write_native(tmp_path, tiny(), {"unet": config, "text_encoder": text})
    kohya = write_kohya(Trained(native, "name", 7, settings(rank=4, alpha=2.0), TINY, ABOUT))
    assert kohya is not None
    pictures = []
    for path in (None, native, kohya):
        pipeline = tiny()
        pipeline.set_progress_bar_config(disable=True)
        if path is not None:
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
        source = torch.Generator().manual_seed(1)
        picture = pipeline("captain", num_inference_steps=4, height=64, width=64, generator=source).images[0]
        pictures.append(np.asarray(picture).astype(int))
    without, ours, theirs = pictures
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - without).max() > 20


def test_the_header_tells_much_and_gives_nothing_away(tmp_path: Path, small_sdxl: Base) -> None:
    native = write_native(tmp_path, tiny(), CONFIGS["attention"])
    contents = set()
    for _ in range(2):
        path = write_kohya(Trained(native, "v1-step000007", 7, settings(rank=4, alpha=2.0, steps=9), TINY, ABOUT))
        assert path is not None
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    assert all(type(value) is str for value in said.values())
    expected = {
        "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_network_module": "networks.lora", "ss_v2": "False",
        "ss_base_model_version": "sd_v1", "ss_output_name": "v1-step000007", "ss_resolution": "(64, 64)",
        "ss_num_train_images": "25", "ss_seed": "42", "ss_learning_rate": "0.001", "ss_steps": "7",
        "ss_sd_model_name": "tiny-sd", "modelspec.sai_model_spec": "1.0.0", "modelspec.title": "v1-step000007",
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.trigger_phrase": "captain",
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert not [key for key in said if re.search(r"date|time|session|_at$|path|_dir$", key)]
    assert not any("/" in name for name in json.loads(said["ss_dataset_dirs"])), "names of folders, no places"
    assert str(ROOT.parent) not in json.dumps(said)
    # A1111's own way to a file's hash
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert said["sshs_model_hash"] == hashlib.sha256(raw[8 + length :]).hexdigest()
    xl = write_kohya_for_sdxl(tmp_path / "xl", small_sdxl)
    assert xl["ss_base_model_version"].startswith("sdxl_")
    assert xl["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def write_kohya_for_sdxl(folder: Path, base: Base) -> dict[str, str]:
    pipeline = StableDiffusionXLPipeline.from_pretrained(base.model)
    native = write_native(folder, pipeline, {"unet": CONFIGS["attention"]["unet"]})
    path = write_kohya(Trained(native, "name", 7, settings(), base, ABOUT))
    assert path is not None
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_the_files_are_safetensors_own(tmp_path: Path) -> None:
    found = {"b": torch.ones(3), "a": torch.ones(2, 2).half(), "c": torch.arange(3), "d": torch.tensor(2.0)}
    ours = b"".join(tensors.pieces(found, {"key": 'a "b" é'}))
    (tmp_path / "ours.safetensors").write_bytes(ours)
    again, said = load_file(tmp_path / "ours.safetensors"), {"key": 'a "b" é'}
    assert {n: (v.dtype, v.tolist()) for n, v in again.items()} == {n: (v.dtype, v.tolist()) for n, v in found.items()}
    assert ours == save(found, metadata=said)


@pytest.mark.parametrize("hub_id", [None, "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_the_card_is_one_the_hub_understands(tmp_path: Path, hub_id: str | None) -> None:
    text = card("v1", settings(rank=4, alpha=2.0), TINY, hub_id, ABOUT, {"trained numbers": "1,234"})
    assert text == card("v1", settings(rank=4, alpha=2.0), TINY, hub_id, ABOUT, {"trained numbers": "1,234"})
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    loaded = ModelCard.load(tmp_path / "README.md")
    data = loaded.data.to_dict()
    assert data.get("base_model") == hub_id
    assert data["instance_prompt"] == "captain" and {"lora", "template:sd-lora", "text-to-image"} <= set(data["tags"])
    assert data["widget"] == [{"text": "captain, left"}, {"text": "captain: a hat"}]
    assert "| rank, alpha | 4, 2 |" in text and "| trained numbers | 1,234 |" in text
    assert str(ROOT) not in text


def test_native_files_say_rank_and_alpha(tmp_path: Path) -> None:
    found, said = read_lora(write_native(tmp_path, tiny(), CONFIGS["attention"]))
    assert (said["unet.r"], said["unet.lora_alpha"]) == (4, 2) and all(name.startswith("unet.") for name in found)
