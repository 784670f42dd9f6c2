"""diffusers' LoRA file: what every stage after the training reads."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sdlora import records, tensors
from sdlora.config.train import Train
from sdlora.lora.names import FILE_NAME
from sdlora.lora.types import adapter_metadata, lora_tensors
from sdlora.models import ModelFamily

METADATA = "lora_adapter_metadata"


def write_lora(folder: Path, model: ModelFamily, settings: Train, initial: dict[str, Tensor] | None = None) -> Path:
    """Write diffusers' LoRA file, with rank and alpha in its header.

    The same LoRA gives the same bytes.

    Returns:
        The file; `pipeline.load_lora_weights(folder)` reads it.
    """
    found = lora_tensors(model, settings, initial)
    parts = tuple(sorted({name.split(".")[0] for name in found}))
    metadata = {METADATA: json.dumps(adapter_metadata(model, settings, parts), sort_keys=True)}
    return write_file(folder / FILE_NAME, found, metadata)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of diffusers' LoRA file, and the settings in its header."""
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return found, json.loads((file.metadata() or {}).get(METADATA, "{}"))


def write_file(path: Path, found: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file whose bytes are a function of what is in it."""
    records.write_bytes(path, tensors.pieces(found, metadata))
    return path
