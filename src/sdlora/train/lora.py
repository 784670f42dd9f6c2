"""Where LoRA layers go, and the file they are saved in (peft and diffusers)."""

from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from sdlora.params import Train
from sdlora.randomness import seed_of

TARGETS = {"attention": ["to_k", "to_q", "to_v", "to_out.0"]}


def add_lora(unet: nn.Module, settings: Train) -> list[nn.Parameter]:
    """Add a LoRA to a frozen UNet (Hu et al., arXiv 2106.09685): W + B A alpha / r.

    A is drawn from N(0, 1/r), B is zero, so the start is the base itself.

    Returns:
        The trainable parameters, fp32, in a fixed order.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scaling_alpha,
        init_lora_weights="gaussian",
        target_modules=TARGETS[settings.targets],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("lora", settings.seed))
        unet.add_adapter(config)  # type: ignore[operator]
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def lora_tensors(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA in diffusers' form: names starting with `unet.`, on the CPU, fp32."""
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    return {f"unet.{name}": value.detach().float().cpu().clone() for name, value in state.items()}


def adapter_metadata(settings: Train) -> dict[str, Any]:
    """What diffusers reads rank and alpha from (`lora_adapter_metadata`)."""
    return {
        "unet.r": settings.rank,
        "unet.lora_alpha": settings.scaling_alpha,
        "unet.target_modules": TARGETS[settings.targets],
        "unet.peft_type": "LORA",
    }
