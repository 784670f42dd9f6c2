"""The LoRA file of a checkpoint."""

import json
from pathlib import Path

from safetensors.torch import save

from sdlora import records
from sdlora.adapters import Adapter
from sdlora.params import Train
from sdlora.train.lora import adapter_metadata, lora_tensors

FILE_NAME = "pytorch_lora_weights.safetensors"


def write_lora(folder: Path, adapter: Adapter, settings: Train) -> Path:
    """Write diffusers' LoRA file, with rank and alpha in its header.

    The header has one metadata key and no time, so that the same LoRA gives the same bytes.

    Returns:
        The file; `pipeline.load_lora_weights(folder)` reads it.
    """
    tensors = lora_tensors(adapter.pipeline.unet)
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    metadata = {"lora_adapter_metadata": json.dumps(adapter_metadata(settings), sort_keys=True)}
    path = folder / FILE_NAME
    records.write_bytes(path, save(ordered, metadata=metadata))
    return path
