"""LoRAs of every kind on a small base of Stable Diffusion 1.5's shape, written by the package as it publishes them.

The values are functions of nothing but torch's seed, so that what other tools read from the files can be written down.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from helpers import ROOT
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from shapes import small_vae
from tools.tiny_base import readers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdlora.config.params import Base, Export
from sdlora.config.train import TextEncoder, Train
from sdlora.lora import types
from sdlora.lora.diffusers_file import write_lora
from sdlora.lora.metadata import About
from sdlora.lora.names import FILE_NAME
from sdlora.lora.tool_files import Trained, write_for_tools
from sdlora.models import ModelFamily, load_model

ABOUT = About("captain", 25, ("captain, left",), (64, 64), "epsilon", 32, 2)
TEXT = TextEncoder(rank=3, alpha=2.0)
CASES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 2.0},
    "lora, all layers": {"rank": 4, "alpha": 1.0, "targets": "all"},
    "lora, text encoder": {"rank": 4, "alpha": 2.0, "text_encoder": TEXT},
    "rslora": {"rank": 4, "alpha": 2.0, "rslora": True},
    "ranks and alphas by layer": {
        "rank": 4, "alpha": 2.0, "rank_pattern": {"attn2.to_q": 8}, "alpha_pattern": {"attn1.to_v": 5.0},
    },
    "pissa": {"rank": 4, "alpha": 3.0, "init": "pissa"},
    "dora": {"rank": 4, "alpha": 2.0, "lora_type": "dora"},
    "dora, all layers": {"rank": 4, "alpha": 2.0, "lora_type": "dora", "targets": "all"},
    "loha": {"rank": 4, "alpha": 2.0, "lora_type": "loha"},
    "loha, all layers": {"rank": 4, "alpha": 2.0, "lora_type": "loha", "targets": "all"},
    "lokr": {"rank": 2, "alpha": 3.0, "lora_type": "lokr"},
    "lokr, all layers": {"rank": 2, "alpha": 3.0, "lora_type": "lokr", "targets": "all"},
}  # fmt: skip


def save_base(folder: Path) -> Base:
    """A pipeline with SD 1.5's blocks and few channels, as transformers 4 and 5 read it."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 64, 64), layers_per_block=2, attention_head_dim=8,
        cross_attention_dim=32, norm_num_groups=16,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=small_vae(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    readers.open_to_both(folder)
    return Base(model=str(folder), family="sd", size_px=64, captioner="-")


def write_case(base: Base, name: str, out: Path, dtype: str = "fp32") -> dict[str, np.ndarray]:
    """Publish one case's files below `out`, and its updates: what must be added to each weight."""
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = Train(**{"steps": 7, "checkpoint_every": 7, **CASES[name]})
    model = load_model(base, "cpu")
    types.add_lora(model, settings)
    initial = types.initial_tensors(model.denoiser, settings)
    _learn(model, settings)
    write_lora(out, model, settings, initial)
    unet = load_model(base, "cpu").denoiser
    write_for_tools(
        Trained(out / FILE_NAME, "case", 7, settings, base, ABOUT), Export.model_validate({"dtype": dtype}), unet
    )
    return _updates(model, initial)


@torch.no_grad()
def _learn(model: ModelFamily, settings: Train) -> None:
    """Move all that is trained a little, without training."""
    source = torch.Generator().manual_seed(1)
    for part in (model.denoiser, *model.text_encoders().values()):
        for name, parameter in sorted(part.named_parameters()):
            if parameter.requires_grad and "magnitude" in name:
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=source))
            elif parameter.requires_grad:
                strength = 0.3 if settings.lora_type in ("loha", "lokr") else 0.1
                parameter.add_(strength * torch.randn(parameter.shape, generator=source))


@torch.no_grad()
def _updates(model: ModelFamily, initial: Mapping[str, torch.Tensor] | None) -> dict[str, np.ndarray]:
    """Each layer's update by its definition, in float64; none of the code that writes files is used."""
    found = {}
    for part, network in (("unet", model.denoiser), *model.text_encoders().items()):
        for name, layer in network.named_modules():
            if isinstance(layer, LoraLayer | LycorisLayer) and hasattr(layer, "get_delta_weight"):
                update = layer.get_delta_weight("default").double()
                if initial is not None and part == "unet":
                    up, down = (initial[f"{name}.lora_{side}.weight"].double() for side in ("B", "A"))
                    update = update - up @ down * layer.scaling["default"]
                if "default" in getattr(layer, "lora_magnitude_vector", {}):
                    update = _of_dora(layer, update)
                nested = name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"
                found[f"{part}.{nested}"] = update.numpy()
    return found


def _of_dora(layer: nn.Module, update: torch.Tensor) -> torch.Tensor:
    """What peft's own merge adds to the weight."""
    base = layer.get_base_layer()  # type: ignore[operator]
    before = base.weight.detach().clone()
    layer.merge()  # type: ignore[operator]
    after = base.weight.detach().double()
    layer.unmerge()  # type: ignore[operator]
    base.weight.copy_(before)
    return after - before.double()


def weights_of(base: Base) -> dict[str, Any]:
    """The UNet's config, for readers that need the sizes."""
    return dict(json.loads((Path(base.model) / "unet/config.json").read_text("utf-8")))
