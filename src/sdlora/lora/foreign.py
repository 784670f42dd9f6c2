"""LoRA files from elsewhere: read whatever form they have, as matrices on this base's layers; several as one.

kohya's (A1111, ComfyUI, Civitai), diffusers' and peft's plain LoRA are read. Every tensor must lie on a layer of the
base: what a loader would leave out in silence is refused here, by name.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdlora import records
from sdlora.errors import DataError
from sdlora.lora.diffusers_file import METADATA, write_file
from sdlora.lora.kohya_file import alpha_of, module_name
from sdlora.lora.names import FILE_NAME
from sdlora.models import ModelFamily
from sdlora.models.names import NoKohyaForm

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SHOWN = 4  # keys that a refusal names
_PART = re.compile(
    r"(.+?)\.(?:(lora_A|lora_down|lora\.down|lora_linear_layer\.down)|(lora_B|lora_up|lora\.up|lora_linear_layer\.up))"
    r"(?:\.default)?\.weight"
)
_OWN_PART = re.compile(r"(.+?)\.(lora_A|lora_B|lora_magnitude_vector|hada_\w+|lokr_\w+)(?:\.weight)?")
Place = tuple[str, str]  # network and module, by their names in diffusers
Matrices = tuple[Tensor, Tensor]  # down (r, in, ...) and up (out, r, ...), whose product is added as it is


@dataclass(frozen=True)
class Foreign:
    """A LoRA as it lies on a base."""

    form: str  # whose names the file has
    layers: dict[Place, Matrices]


def lora_file(path: Path) -> Path:
    """The file of a LoRA that is named by its file or by its folder.

    Raises:
        DataError: If there is none, several could be meant, or it is a pickle.
    """
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        known = [one for one in found if one.name in (FILE_NAME, PEFT_FILE)]
        if len(known or found) != 1:
            names = ", ".join(one.name for one in found) or "no .safetensors file"
            raise DataError(f"the folder {str(path)!r} has {names}: name the file that is meant")
        return (known or found)[0]
    if not path.is_file():
        raise DataError(f"there is no LoRA {str(path)!r}")
    if path.suffix != ".safetensors":
        raise DataError(f"{path}: only .safetensors is read: other files can run code when they are opened")
    return path


def read_foreign(path: Path, model: ModelFamily) -> Foreign:
    """Read a LoRA's matrices, with the strength that its file states folded in.

    Args:
        path: A .safetensors file; peft's has its `adapter_config.json` beside it.
        model: The base; shapes are enough.

    Raises:
        DataError: If it is no LoRA of this base in one of the three forms; names the tensors that do not fit.
    """
    tensors, said = _read(path)
    names = _names(model)
    parts: dict[Place, dict[str, Tensor]] = defaultdict(dict)
    forms, strange = set(), []
    for key, value in tensors.items():
        match = _PART.fullmatch(key)
        kind = "alpha" if match is None else "down" if match[2] else "up"
        known = names.get(key.removesuffix(".alpha") if match is None else match[1])
        if known is None or (match is None and not key.endswith(".alpha")):
            strange.append(key)
            continue
        forms.add(known[0])
        parts[known[1]][kind] = value.float()
    if strange or not parts:
        raise DataError(f"{path}: {_refusal(strange, len(tensors), model)}")
    config = _config(path, said, model) if forms != {"kohya"} else {}
    return Foreign(
        " and ".join(sorted(forms)), {place: _matrices(path, place, own, config, model) for place, own in parts.items()}
    )


def own_form(path: Path) -> bool:
    """Whether it is a file of diffusers' names whose header tells a type that has no two plain matrices."""
    said = _read(path)[1]
    kinds = {value for key, value in said.items() if key.endswith(".peft_type")}
    return bool(kinds - {"LORA"}) or any(value for key, value in said.items() if key.endswith(".use_dora"))


def check_own_form(path: Path, model: ModelFamily) -> None:
    """Refuse a DoRA, LoHa or LoKr of another base.

    Raises:
        DataError: If a tensor lies on no layer of the base, or an update has another height than its layer.
    """
    names, strange = _names(model), []
    parts: dict[Place, dict[str, Tensor]] = defaultdict(dict)
    tensors = _read(path)[0]
    for key, value in tensors.items():
        match = _OWN_PART.fullmatch(key)
        whose, place = names.get(match[1], ("", ("", ""))) if match else ("", ("", ""))
        if match is None or whose != "diffusers":
            strange.append(key)
        else:
            parts[place][match[2]] = value
    if strange or not parts:
        raise DataError(f"{path}: {_refusal(strange, len(tensors), model)}")
    for (part, module), own in parts.items():
        shape = tuple(_layer(model, (part, module)).weight.shape)
        if (height := _height(own)) != shape[0]:
            raise DataError(
                f"{path}: it is for another base: {part}.{module} is {shape} here, but its update has {height} rows"
            )


def _height(own: Mapping[str, Tensor]) -> int:
    """Rows of the update that peft makes of a layer's parts; 0 if some are missing."""
    if "lora_B" in own:
        return len(own["lora_B"])
    if "hada_w1_a" in own:
        return own["hada_w1_a"].shape[1 if "hada_t1" in own else 0]
    factors = [own.get(name, own.get(f"{name}_a")) for name in ("lokr_w1", "lokr_w2")]
    return math.prod(0 if one is None else len(one) for one in factors)


def mixed(loras: Iterable[tuple[Foreign, float]]) -> dict[Place, Matrices]:
    """Several LoRAs as one: w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2], as `set_adapters` adds them.

    Args:
        loras: Each with its weight.
    """
    found: dict[Place, Matrices] = {}
    for foreign, weight in loras:
        for place, (down, up) in foreign.layers.items():
            downs, ups = ([matrix] for matrix in found[place]) if place in found else ([], [])
            found[place] = torch.cat([*downs, down]), torch.cat([*ups, weight * up], dim=1)
    return found


def write_layers(path: Path, layers: Mapping[Place, Matrices], model: ModelFamily) -> Path:
    """Write diffusers' file of scale 1; smaller ranks are filled up with zeros, so that one rank holds for all."""
    tensors: dict[str, Tensor] = {}
    said: dict[str, Any] = {}
    for part in dict.fromkeys(part for part, _ in layers):
        own = {module: matrices for (name, module), matrices in layers.items() if name == part}
        rank = max(len(down) for down, _ in own.values())
        for module, (down, up) in own.items():
            nested = part == model.denoiser_name or module.startswith(("text_model.", "text_projection"))
            name = f"{part}.{module}" if nested else f"{part}.text_model.{module}"
            tensors[f"{name}.lora_A.weight"] = _filled(down, rank, 0)
            tensors[f"{name}.lora_B.weight"] = _filled(up, rank, 1)
        values = {"peft_type": "LORA", "r": rank, "lora_alpha": float(rank), "target_modules": sorted(own)}
        values |= {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False}
        said |= {f"{part}.{key}": value for key, value in values.items()}
    return write_file(path, tensors, {METADATA: json.dumps(said, sort_keys=True)})


def _filled(matrix: Tensor, rank: int, dim: int) -> Tensor:
    shape = [*matrix.shape]
    shape[dim] = rank - shape[dim]
    return torch.cat([matrix, matrix.new_zeros(shape)], dim).contiguous()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and diffusers' settings where the header has them."""
    try:
        with safe_open(path, "pt") as file:
            said = records.parse_json((file.metadata() or {}).get(METADATA, "{}"))
            if not isinstance(said, dict):
                raise ValueError(f"its header's {METADATA} is no object")
            return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"{path}: it is no .safetensors file that can be read: {error}") from None


def _names(model: ModelFamily) -> dict[str, tuple[str, Place]]:
    """Every spelling of every layer of the base: whose it is, and the layer."""
    found: dict[str, tuple[str, Place]] = {}
    form, per_block = model.kohya, model.naming().get("layers_per_block", 0)
    for part, network in {model.denoiser_name: model.denoiser, **model.lora_text_encoders()}.items():
        for module, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            spelled = {f"{part}.{module}": "diffusers"}
            if part == model.denoiser_name:
                spelled[f"base_model.model.{module}"] = "peft"
            else:  # transformers 5 flattened CLIPTextModel
                spelled[f"{part}.text_model.{module.removeprefix('text_model.')}"] = "diffusers"
            if form is not None and part in form.prefixes:
                spelled |= {f"{form.prefixes[part]}{module.replace('.', '_')}": "kohya"}
                try:
                    own = module_name(part, module, model.base.family, per_block)
                except NoKohyaForm:
                    own = module.replace(".", "_")
                spelled[f"{form.prefixes[part]}{own}"] = "kohya"
            found |= {name: (whose, (part, module)) for name, whose in spelled.items()}
    return found


def _config(path: Path, said: dict[str, Any], model: ModelFamily) -> dict[str, dict[str, Any]]:
    """peft's settings by network: from diffusers' header, or from the file beside peft's own."""
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_FILE and beside.is_file():
        return {model.denoiser_name: records.read_json(beside)}
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in said.items():
        part, _, name = key.partition(".")
        found[part][name] = value
    return found


def _layer(model: ModelFamily, place: Place) -> Any:
    part, module = place
    return {model.denoiser_name: model.denoiser, **model.text_encoders()}[part].get_submodule(module)


def _matrices(
    path: Path, place: Place, own: dict[str, Tensor], config: dict[str, dict[str, Any]], model: ModelFamily
) -> Matrices:
    part, module = place
    layer = _layer(model, place)
    if not {"down", "up"} <= own.keys():
        raise DataError(f"{path}: {part}.{module} has {' and '.join(sorted(own))} alone; down and up are needed")
    down, up = own["down"], own["up"]
    rank, shape = len(down), layer.weight.shape
    if "alpha" in own:
        scale = float(own["alpha"]) / rank
    elif config.get(part):
        scale = alpha_of(config[part], module, rank) / rank
    else:
        scale = 1.0
    wide = (1,) * (len(shape) - 2)  # a 1 x 1 convolution is written as a matrix by some tools, and the other way round
    fits = down[0].numel() == shape[1:].numel() and up.numel() == shape[0] * rank
    if not fits:
        raise DataError(
            f"{path}: it is for another base: on {part}.{module}, which is {tuple(shape)}, it has {tuple(down.shape)} "
            f"and {tuple(up.shape)}"
        )
    return down.reshape(rank, *shape[1:]), (up * scale).reshape(shape[0], rank, *wide)


def _refusal(strange: list[str], count: int, model: ModelFamily) -> str:
    named = ", ".join(sorted(strange)[:SHOWN]) + (", ..." if len(strange) > SHOWN else "")
    kinds = {".hada_": "a LoHa", ".lokr_": "a LoKr", "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA"}
    kind = next((f"it is {name}; " for part, name in kinds.items() if any(part in key for key in strange)), "")
    return (
        f"{kind}{len(strange)} of {count} tensors lie on no layer of a base of family {model.base.family}: "
        f"{named or 'the file is empty'}; a plain LoRA in kohya's, diffusers' or peft's form is read"
    )
