"""The files of a checkpoint: diffusers' own, and kohya's for A1111 and ComfyUI."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sdlora import records, tensors
from sdlora.adapters import Adapter
from sdlora.params import Base
from sdlora.train.files import FILE_NAME
from sdlora.train.header import About, header
from sdlora.train.kohya import NoKohyaForm, to_kohya
from sdlora.train.lora import adapter_metadata, lora_tensors
from sdlora.train_section import Train

_KEY = "lora_adapter_metadata"


def write_lora(folder: Path, adapter: Adapter, settings: Train, initial: dict[str, Tensor] | None = None) -> Path:
    """Write diffusers' LoRA file, with rank and alpha in its header.

    The same LoRA gives the same bytes.

    Returns:
        The file; `pipeline.load_lora_weights(folder)` reads it.
    """
    found = lora_tensors(adapter, settings, initial)
    parts = tuple(sorted({name.split(".")[0] for name in found}))
    metadata = {_KEY: json.dumps(adapter_metadata(settings, parts), sort_keys=True)}
    path = folder / FILE_NAME
    records.write_bytes(path, b"".join(tensors.pieces(found, metadata)))
    return path


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of diffusers' LoRA file, and the settings in its header."""
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return found, json.loads((file.metadata() or {}).get(_KEY, "{}"))


def write_kohya(lora: Path, name: str, step: int, settings: Train, base: Base, about: About) -> Path | None:
    """Write `<name>.safetensors` for A1111, ComfyUI and kohya's tools beside diffusers' file.

    Returns:
        The file, or None (and a line that says why) if the LoRA has no form there.
    """
    try:
        found = to_kohya(*read_lora(lora), base.family, about.layers_per_block)
    except NoKohyaForm as reason:
        print(f"train: only diffusers' file is written: {reason}", flush=True)
        return None
    path = lora.with_name(f"{name}.safetensors")
    metadata = header(name, step, settings, base, about, found)
    records.write_bytes(path, b"".join(tensors.pieces(found, metadata)))
    return path
