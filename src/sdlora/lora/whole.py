"""DoRA as the update of each whole weight, for tools that read DoRA's magnitudes in another way.

ComfyUI 0.3.64 divides them by the norm of the frozen weight, A1111 1.10.1 takes the norm along the other axis; both
read `<module>.diff` as it is. Such a file is as large as the layers it changes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.lora.kohya_file import alpha_of

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


def wants_whole(which: str, steps: Sequence[int], step: int) -> bool:
    """Whether a checkpoint gets such a file: `export.dora_whole` is none, last or every."""
    return which == "every" or (which == "last" and step == max(steps))


@torch.no_grad()
def whole_updates(
    found: dict[str, Tensor], config: dict[str, Any], denoiser: nn.Module, name: str = "unet"
) -> dict[str, Tensor]:
    """m (W + B A s) / |W + B A s| - W of each DoRA layer of the denoiser (arXiv 2402.09353, equation 5).

    The norm is that of an output's weights, s the scale. Computed in float64, so that the last bit does not depend on
    how many threads compute.

    Args:
        found: diffusers' LoRA file.
        config: Its `lora_adapter_metadata`.
        denoiser: The base's, frozen.
        name: The denoiser's in the file.

    Returns:
        Tensors of the weights' shapes by module, fp32.
    """
    prefix = f"{name}."
    settings = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    updates = {}
    for tensor in sorted(found):
        if not tensor.startswith(prefix) or not tensor.endswith(DOWN):
            continue
        module = tensor.removeprefix(prefix).removesuffix(DOWN)
        down, up = found[tensor].double(), found[f"{prefix}{module}{UP}"].double()
        magnitude = _magnitude(found, f"{prefix}{module}").double().flatten()
        rank = down.shape[0]
        weight = denoiser.get_submodule(module).weight.detach().double()  # type: ignore[operator]
        scale = alpha_of(settings, module, rank) / rank
        moved = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale
        ratio = magnitude / moved.flatten(1).norm(dim=1)
        updates[module] = (moved * ratio.reshape(-1, *[1] * (weight.dim() - 1)) - weight).float()
    return updates


def _magnitude(found: dict[str, Tensor], module: str) -> Tensor:
    name = f"{module}{MAGNITUDE}"
    return found[name] if name in found else found[f"{name}.weight"]
