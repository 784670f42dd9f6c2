"""Put a saved LoRA of any type on a pipeline, and take it off again."""

import json
from pathlib import Path
from typing import Any

from peft import LoHaConfig, LoKrConfig, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from safetensors import safe_open
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from sdlora.models.family import denoiser_name_of

NAME = "lora"
#: Layers that carry a LoRA, and the weights that are their own, on the CPU.
Fused = list[tuple[Any, Tensor]]
# Types that diffusers' own loader does not read.
_CONFIGS = {"LOHA": LoHaConfig, "LOKR": LoKrConfig}


def attach_lora(pipeline: Any, path: Path, scale: float) -> None:
    """Load a LoRA file and set its strength.

    Args:
        pipeline: A diffusers pipeline without a LoRA.
        path: The file; its header says which type it is.
        scale: Strength, 1 = as trained.
    """
    denoiser = denoiser_name_of(pipeline)
    network = getattr(pipeline, denoiser)
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        kind = header.get(f"{denoiser}.peft_type", "LORA")
        found = {} if kind not in _CONFIGS else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if kind not in _CONFIGS:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=NAME, low_cpu_mem_usage=False)
        pipeline.set_adapters([NAME], [scale])
        return
    values = _of(denoiser, header)
    values.pop("peft_type")
    network.add_adapter(_CONFIGS[kind](**values), adapter_name=NAME)
    set_peft_model_state_dict(network, _of(denoiser, found), adapter_name=NAME)
    encoders = [name for name in pipeline.components if name.startswith("text_encoder") and f"{name}.r" in header]
    for name in encoders:  # a plain LoRA, whatever the denoiser's type
        pipeline.load_lora_into_text_encoder(
            found, None, getattr(pipeline, name), prefix=name, adapter_name=NAME, metadata=header
        )
    for part in (denoiser, *encoders):
        for module in getattr(pipeline, part).modules():
            if isinstance(module, LycorisLayer | LoraLayer):
                module.set_scale(NAME, scale)
    network.requires_grad_(False).eval()


def _of(part: str, named: dict[str, Any]) -> dict[str, Any]:
    """What belongs to one network of the pipeline, without its name."""
    return {name.removeprefix(f"{part}."): value for name, value in named.items() if name.startswith(f"{part}.")}


def detach_lora(pipeline: Any) -> None:
    """Take off what `attach_lora` put on, if anything."""
    network = getattr(pipeline, denoiser_name_of(pipeline))
    if not getattr(network, "peft_config", None):
        return
    if isinstance(network.peft_config[NAME], LoHaConfig | LoKrConfig):
        network.delete_adapters(NAME)
    pipeline.unload_lora_weights()


def fuse_lora(pipeline: Any) -> Fused:
    """Add the LoRA that is attached to the weights of the layers it lies on.

    Returns:
        What `unfuse_lora` needs to bring back the very same weights; peft would subtract and round.
    """
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    fused: Fused = []
    for layer in (module for network in networks for module in network.modules()):
        if isinstance(layer, LycorisLayer | LoraLayer):
            weight = layer.get_base_layer().weight
            fused.append((layer, weight.data.cpu()))
            layer.merge(safe_merge=True)  # into a new tensor
            increment_version(weight)
    return fused


def unfuse_lora(fused: Fused) -> None:
    """Take a LoRA out of the weights again."""
    for layer, own in fused:
        layer.unmerge()
        weight = layer.get_base_layer().weight
        weight.data = own.to(weight.device)
        increment_version(weight)
