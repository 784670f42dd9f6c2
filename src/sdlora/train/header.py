"""What a LoRA file says about itself: kohya's `ss_*` keys and Stability AI's `modelspec.*`.

There is no time, no session id and no path in it, so that identical runs give identical files, and nothing that depends
on the length of the run, so that a checkpoint is the same file in a longer one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from torch import Tensor

from sdlora import tensors
from sdlora.params import Base
from sdlora.train_section import Train

_ARCHITECTURES = {
    "sd_v1": ("stable-diffusion-v1/lora", "diffusers"),
    "sd_v2": ("stable-diffusion-v2/lora", "diffusers"),
    "sdxl_base_v1-0": ("stable-diffusion-xl-v1-base/lora", "https://github.com/Stability-AI/generative-models"),
}


@dataclass(frozen=True)
class About:
    """What a run found out while it trained and its files tell."""

    trigger: str
    pictures: int
    captions: tuple[str, ...]  # the first few, for examples
    size_px: tuple[int, int]  # width, height
    prediction_type: str
    cross_attention_dim: int
    layers_per_block: int


def base_name(base: Base) -> str:
    """The base's own name: no folder of this machine."""
    return PurePath(base.model).name


def base_version(base: Base, about: About) -> str:
    """Which base a reader must have loaded: A1111 takes what starts with `sdxl_` for SDXL."""
    if base.family == "sdxl":
        return "sdxl_base_v1-0"
    return "sd_v2" if about.cross_attention_dim == 1024 else "sd_v1"


def header(
    name: str, step: int, settings: Train, base: Base, about: About, found: Mapping[str, Tensor]
) -> dict[str, str]:
    """The metadata of one checkpoint's file; all values are texts.

    Args:
        name: The file's name without suffix: the alias in A1111.
        step: Optimizer steps behind it.
        settings: The training section.
        base: The base it was trained on.
        about: What the run found out.
        found: The file's tensors.
    """
    version = base_version(base, about)
    architecture, implementation = _ARCHITECTURES[version]
    digest = data_hash(found)
    width, height = about.size_px
    values = {
        "ss_base_model_version": version,
        "ss_v2": version == "sd_v2",
        "ss_sd_model_name": base_name(base),
        "ss_output_name": name,
        "ss_network_module": "networks.lora" if any("lora_up" in key for key in found) else "lycoris.kohya",
        "ss_network_dim": settings.rank,
        "ss_network_alpha": settings.scaling_alpha,
        "ss_learning_rate": settings.learning_rate * base.learning_rate_scale,
        "ss_lr_scheduler": settings.lr_schedule,
        "ss_lr_warmup_steps": settings.lr_warmup_steps,
        "ss_optimizer": settings.optimizer,
        "ss_steps": step,
        "ss_seed": settings.seed,
        "ss_resolution": f"({width}, {height})",
        "ss_num_train_images": about.pictures,
        "ss_num_reg_images": 0,
        "ss_batch_size_per_device": settings.batch_size,
        "ss_total_batch_size": settings.batch_size * settings.accumulation,
        "ss_gradient_accumulation_steps": settings.accumulation,
        "ss_gradient_checkpointing": settings.gradient_checkpointing,
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_mixed_precision": settings.mixed_precision or "no",
        "ss_cache_latents": settings.cache_latents != "none",
        "ss_tag_frequency": json.dumps({about.trigger: {about.trigger: about.pictures}}, ensure_ascii=False),
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
        "modelspec.title": name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(about.prediction_type, about.prediction_type),
        "modelspec.trigger_phrase": about.trigger,
        "modelspec.hash_sha256": f"0x{digest}",
    }
    return {key: str(value) for key, value in values.items()}


def data_hash(found: Mapping[str, Tensor]) -> str:
    """sha256 of a file's tensors without its header: what A1111 knows a LoRA by."""
    digest = hashlib.sha256()
    for number, piece in enumerate(tensors.pieces(found)):
        if number:
            digest.update(piece)
    return digest.hexdigest()
