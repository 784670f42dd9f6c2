"""The LoRA file that A1111, ComfyUI and kohya's tools read, made from diffusers' file.

Names are kohya's, as the model's family has them: `lora_unet_`, `lora_te_` (one text encoder), `lora_te1_` and
`lora_te2_` (SDXL); SDXL's UNet has the names of the original implementation (`input_blocks_4_1_…`). The strength
lies in `.alpha`: these readers scale by alpha / r, with r taken from the tensors. diffusers reads only one alpha for a
network, so where modules differ, the commonest is written for all and the rest of the scale goes into `lora_up`. LoHa
and LoKr have LyCORIS' names.
"""

import math
import re
from collections import Counter, defaultdict
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from sdlora import choices
from sdlora.models.names import KohyaForm, NoKohyaForm

Parts = dict[str, Tensor]

_PARTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
_NAME = re.compile(rf"([^.]+)\.(.+)\.({'|'.join(map(re.escape, sorted(_PARTS, key=len, reverse=True)))})")


def to_kohya(
    tensors: dict[str, Tensor], config: dict[str, Any], family: str, layers_per_block: int
) -> dict[str, Tensor]:
    """Rename a LoRA's tensors and write each module's alpha.

    Args:
        tensors: diffusers' names, `unet.….lora.down.weight` and the like.
        config: diffusers' `lora_adapter_metadata`: `unet.lora_alpha`, `text_encoder.use_rslora`, …
        family: Entry of choices.FAMILIES; its names are written.
        layers_per_block: Of the denoiser; SDXL's names depend on it.

    Returns:
        Tensors by kohya's names.

    Raises:
        NoKohyaForm: Names the tensor, or the family, that cannot be expressed.
    """
    form = form_of(family)
    modules: dict[tuple[str, str], Parts] = defaultdict(dict)
    for name, value in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in form.prefixes:
            raise NoKohyaForm(f"{name} has no name in kohya's format")
        modules[match[1], match[2]][_PARTS[match[3]]] = value
    found: dict[str, Tensor] = {}
    for component, prefix in form.prefixes.items():
        own = {module: parts for (name, module), parts in modules.items() if name == component}
        settings = {k.removeprefix(f"{component}."): v for k, v in config.items() if k.startswith(f"{component}.")}
        for module, parts in _with_one_alpha(own, settings).items():
            written = prefix + module_name(component, module, family, layers_per_block)
            found |= {f"{written}.{part}": value for part, value in parts.items()}
    return found


def to_whole(updates: dict[str, Tensor], family: str, layers_per_block: int) -> dict[str, Tensor]:
    """Updates of the denoiser's whole weights, by module, under kohya's names; readers add them as they are."""
    form = form_of(family)
    name, prefix = form.denoiser, form.prefixes[form.denoiser]
    return {
        f"{prefix}{module_name(name, module, family, layers_per_block)}.diff": value
        for module, value in updates.items()
    }


def form_of(family: str) -> KohyaForm:
    """A family's names in the format.

    Raises:
        NoKohyaForm: If it has none.
    """
    form: KohyaForm | None = choices.pick(choices.FAMILIES, family).kohya
    if form is None:
        raise NoKohyaForm(f"family {family} has no names in kohya's format")
    return form


def _with_one_alpha(modules: dict[str, Parts], settings: dict[str, Any]) -> dict[str, Parts]:
    """Each module's tensors with its alpha, the same for all of a network.

    LoHa and LoKr get the alpha whose scale is 1, and the scale goes into a factor: LyCORIS' own merging (f49d30d)
    scales them twice.
    """
    alphas = {module: alpha_of(settings, module, rank_of(parts)) for module, parts in modules.items()}
    found = {}
    for module, parts in modules.items():
        rank = rank_of(parts)
        ((written, _),) = Counter(sorted(alphas.values())).most_common(1)
        scaled = next(part for part in ("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a") if part in parts)
        if rank is None:  # LoKr of two whole factors: readers do not scale it
            share = alphas[module] / _config_rank(settings, module)
        elif scaled != "lora_up.weight":
            written = float(rank)
            share = alphas[module] / rank
        else:
            share = alphas[module] / written
        found[module] = {**parts, "alpha": torch.tensor(written, dtype=torch.float32)}
        if share != 1:
            found[module][scaled] = parts[scaled] * share
        if "dora_scale" in parts:
            found[module]["dora_scale"] = _column(parts["dora_scale"], parts["lora_up.weight"].dim())
    return found


def rank_of(parts: dict[str, Tensor]) -> int | None:
    """The rank that readers see in a module's tensors; None where no factor has one."""
    for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in parts:
            return int(parts[name].shape[0])
    return None


def alpha_of(config: dict[str, Any], module: str, rank: int | None) -> float:
    """The alpha for which alpha / rank is the module's scale, as peft's settings give it.

    Rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732) scales by alpha / sqrt(r), for which the format has no field:
    it is written as alpha' = alpha sqrt(r).
    """
    pattern = config.get("alpha_pattern") or {}
    default = config.get("lora_alpha", config.get("alpha"))
    if default is None:
        raise NoKohyaForm(f"{module}: the file does not say its alpha")
    alpha = float(pattern.get(get_pattern_key(pattern, module), default))
    if config.get("use_rslora") and rank is not None:
        return alpha * math.sqrt(rank)
    return alpha


def _config_rank(config: dict[str, Any], module: str) -> int:
    pattern = config.get("rank_pattern") or {}
    return int(pattern.get(get_pattern_key(pattern, module), config["r"]))


def _column(magnitude: Tensor, dimensions: int) -> Tensor:
    """DoRA's magnitude, one a row of the weight, as LyCORIS shapes it: (out, 1) or (out, 1, 1, 1).

    LyCORIS reads it; ComfyUI divides by another norm, A1111 takes the norms along the other axis (`whole.py` is for
    those two), and diffusers leaves it out (and says so).
    """
    return magnitude.reshape(-1, *[1] * (dimensions - 1))


def module_name(component: str, module: str, family: str, layers_per_block: int) -> str:
    """A module's name in kohya's spelling, without the prefix."""
    form = form_of(family)
    if component != form.denoiser:
        # transformers 5 flattened CLIPTextModel; files keep the older, nested name
        inside = module if module.startswith(("text_model.", "text_projection")) else f"text_model.{module}"
        return inside.replace(".", "_")
    return form.module(module, layers_per_block).replace(".", "_")
