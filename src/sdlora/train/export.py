"""The LoRA file of a checkpoint."""

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from sdlora import records
from sdlora.adapters import Adapter
from sdlora.train.lora import adapter_metadata, lora_tensors
from sdlora.train_section import Train

FILE_NAME = "pytorch_lora_weights.safetensors"
AVERAGE = "ema"  # subfolder of a checkpoint with the averaged weights


def write_lora(folder: Path, adapter: Adapter, settings: Train, initial: dict[str, Tensor] | None = None) -> Path:
    """Write diffusers' LoRA file, with rank and alpha in its header.

    The header has one metadata key and no time, so that the same LoRA gives the same bytes.

    Returns:
        The file; `pipeline.load_lora_weights(folder)` reads it.
    """
    tensors = lora_tensors(adapter.pipeline, settings, initial)
    ordered = {name: tensors[name] for name in sorted(tensors)}
    parts = tuple(sorted({name.split(".")[0] for name in ordered}))
    metadata = {"lora_adapter_metadata": json.dumps(adapter_metadata(settings, parts), sort_keys=True)}
    path = folder / FILE_NAME
    records.write_bytes(path, save(ordered, metadata=metadata))
    return path
