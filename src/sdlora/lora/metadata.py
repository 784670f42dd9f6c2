"""What a LoRA file says about itself: kohya's `ss_*` keys and Stability AI's `modelspec.*`.

There is no time, no session id and no path in it, so that identical runs give identical files, and nothing that depends
on the length of the run, so that a checkpoint is the same file in a longer one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from torch import Tensor

from sdlora import tensors
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.lora.kohya_file import form_of
from sdlora.lora.names import word_of
from sdlora.models.names import BaseVersion, KohyaForm


@dataclass(frozen=True)
class About:
    """What a run found out while it trained and its files tell."""

    trigger: str
    pictures: int
    captions: tuple[str, ...]  # the first few, for examples
    size_px: tuple[int, int]  # width, height
    prediction_type: str
    cross_attention_dim: int = 0  # of the denoiser, where it has one: what kohya's names and versions depend on
    layers_per_block: int = 0
    # what kohya's readers show, by the folder that kohya would read the pictures from (`3_captain`)
    tags: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # how many captions have a tag
    folders: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # n_repeats, img_count
    buckets: tuple[tuple[int, int, int], ...] = ()  # width, height, pictures with their repeats

    @property
    def draws(self) -> int:
        """Pictures of an epoch, each as often as its repeats say."""
        return sum(row["n_repeats"] * row["img_count"] for row in self.folders.values()) or self.pictures


def base_name(base: Base) -> str:
    """The base's own name: no folder of this machine."""
    return PurePath(base.model).name


def base_version(base: Base, about: About) -> BaseVersion:
    """Which base a reader must have loaded.

    Raises:
        NoKohyaForm: If the base's family has no names for it.
    """
    return form_of(base.family).version(about.cross_attention_dim)


def rate_scale(settings: Train, base: Base) -> float:
    """What a version's rates are multiplied by: Prodigy finds its own rate, whatever the size of the base."""
    return 1.0 if settings.optimizer == "prodigy" else base.learning_rate_scale


def peak_rates(settings: Train, base: Base) -> tuple[float, float | None]:
    """The denoiser's highest rate, and the text encoders' (None where they are not trained), as they were used.

    Stages say the denoiser's rate themselves; the text encoders' keeps its ratio to `learning_rate`.
    """
    scale, peak = rate_scale(settings, base), settings.learning_rate
    if settings.lr_schedule == "staged":
        peak = max(stage.learning_rate for stage in settings.lr_stages)
    if settings.text_encoder is None:
        return peak * scale, None
    return peak * scale, settings.text_encoder.learning_rate * (peak / settings.learning_rate) * scale


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
    form, version = form_of(base.family), base_version(base, about)
    digest = data_hash(found)
    width, height = about.size_px
    rate, text_rate = peak_rates(settings, base)
    module, arguments = _network(settings, found, form)
    rank, alpha = _size(settings, found, form)
    values = {
        "ss_base_model_version": version.name,
        "ss_v2": version.a1111 == "SD2",
        "ss_sd_model_name": base_name(base),
        "ss_output_name": name,
        "ss_network_module": module,
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        **({"ss_network_args": _json(arguments)} if arguments else {}),
        "ss_network_dropout": settings.dropout if module == "networks.lora" else None,
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": text_rate,
        "ss_lr_scheduler": settings.lr_schedule,
        "ss_lr_warmup_steps": settings.lr_warmup_steps,
        "ss_optimizer": settings.optimizer,
        "ss_steps": step,
        "ss_seed": settings.seed,
        "ss_resolution": f"({width}, {height})",
        "ss_num_train_images": about.draws,
        "ss_num_reg_images": settings.prior.pictures if settings.prior else 0,
        "ss_clip_skip": form.clip_skip,
        "ss_batch_size_per_device": settings.batch_size,
        "ss_total_batch_size": settings.batch_size * settings.accumulation,
        "ss_gradient_accumulation_steps": settings.accumulation,
        "ss_gradient_checkpointing": settings.gradient_checkpointing,
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_mixed_precision": settings.mixed_precision or "no",
        "ss_cache_latents": settings.cache_latents != "none",
        "ss_tag_frequency": _json(about.tags),
        "ss_dataset_dirs": _json(about.folders),
        "ss_bucket_info": _json(_buckets(about)),
        "sshs_model_hash": digest,
        **{f"modelspec.{key}": value for key, value in _modelspec(name, settings, version, about, digest).items()},
    }
    return {key: str(value) for key, value in values.items()}


def _modelspec(name: str, settings: Train, version: BaseVersion, about: About, digest: str) -> dict[str, str | None]:
    """Stability AI's ModelSpec 1.0.0, by key."""
    width, height = about.size_px
    return {
        "sai_model_spec": "1.0.0",
        "architecture": version.architecture,
        "implementation": version.implementation,
        "title": name,
        "resolution": f"{width}x{height}",
        "prediction_type": {"v_prediction": "v"}.get(about.prediction_type, about.prediction_type),
        "trigger_phrase": trigger_of(settings, about),
        "hash_sha256": f"0x{digest}",
    }


def trigger_of(settings: Train, about: About) -> str:
    """What a prompt for A1111 and ComfyUI says: the trigger, or the name of the embedding that stands for it."""
    return about.trigger if settings.pivotal is None else word_of(about.trigger)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _buckets(about: About) -> dict[str, Any]:
    rows = about.buckets or ((*about.size_px, about.draws),)
    return {"buckets": {str(n): {"resolution": [w, h], "count": count} for n, (w, h, count) in enumerate(rows)}}


def _network(settings: Train, found: Mapping[str, Tensor], form: KohyaForm) -> tuple[str, dict[str, str]]:
    """The module and arguments with which kohya's trainer would make such a network."""
    if any(name.endswith(".diff") for name in found):
        return "lycoris.kohya", {"algo": "full"}
    rank, alpha = _size(settings, found, form)
    convolution = any(value.dim() == 4 and value.shape[-1] > 1 for value in found.values())
    arguments = {"conv_dim": str(rank), "conv_alpha": str(alpha)} if convolution else {}
    if settings.lora_type == "lora":
        if settings.loraplus_ratio > 1:
            arguments["loraplus_unet_lr_ratio"] = str(settings.loraplus_ratio)
        return "networks.lora", arguments
    if settings.lora_type == "dora":
        return "lycoris.kohya", {"algo": "lora", "dora_wd": "True", "wd_on_output": "True", **arguments}
    if settings.dropout:
        arguments["rank_dropout"] = str(settings.dropout)
    return "lycoris.kohya", {"algo": settings.lora_type, **arguments}


def _size(settings: Train, found: Mapping[str, Tensor], form: KohyaForm) -> tuple[int, float]:
    """Rank and alpha of most of the denoiser's modules, as the file has them: alpha / rank is the scale there."""
    prefix = form.prefixes[form.denoiser]
    own = {name: value for name, value in found.items() if name.startswith(prefix)}
    ranks = Counter(
        int(value.shape[0])
        for name, value in own.items()
        if name.endswith(("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"))
    )
    alphas = Counter(round(float(value), 6) for name, value in own.items() if name.endswith(".alpha"))
    rank = ranks.most_common(1)[0][0] if ranks else settings.rank
    return rank, alphas.most_common(1)[0][0] if alphas else settings.scaling_alpha


def data_hash(found: Mapping[str, Tensor]) -> str:
    """sha256 of a file's tensors without its header: what A1111 knows a LoRA by."""
    digest = hashlib.sha256()
    for number, piece in enumerate(tensors.pieces(found)):
        if number:
            digest.update(piece)
    return digest.hexdigest()
