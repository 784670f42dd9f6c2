"""ComfyUI's own way from a LoRA file to patched weights."""

import sys

import torch
from common import checkout, stub, unet_config, weights, write_all
from safetensors.torch import load_file

stub("torchvision", "torchvision.transforms")
sys.path.insert(0, str(checkout))
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.utils  # noqa: E402

config, known = unet_config(), weights()
attention = ["CrossAttn" in kind for kind in config["down_block_types"]]
depth = [int(here) for here in attention for _ in range(config["layers_per_block"])]
back = [int(here) for here in reversed(attention) for _ in range(config["layers_per_block"] + 1)]
sizes = {
    "num_res_blocks": [config["layers_per_block"]] * len(attention),
    "channel_mult": [width // config["block_out_channels"][0] for width in config["block_out_channels"]],
    "transformer_depth": depth,
    "transformer_depth_output": list(reversed(back)),
    "transformer_depth_middle": 1,
}


class Model:
    """Enough of a loaded checkpoint for the naming of keys."""

    class model_config:
        unet_config = sizes

    def state_dict(self):
        return patched


mapping = comfy.utils.unet_to_diffusers(dict(sizes))
patched = {
    f"diffusion_model.{theirs}": known[f"unet.{ours}"] for ours, theirs in mapping.items() if f"unet.{ours}" in known
}
names = {f"diffusion_model.{theirs}": f"unet.{ours}" for ours, theirs in mapping.items()}
for name, value in known.items():
    if name.startswith("text_encoder."):
        theirs = "clip_l.transformer." + name.removeprefix("text_encoder.")
        patched[theirs], names[theirs] = value, name


class Clip:
    """The text encoder's keys."""

    def state_dict(self):
        return {name: value for name, value in patched.items() if name.startswith("clip_l.")}


keys = comfy.lora.model_lora_keys_clip(Clip(), comfy.lora.model_lora_keys_unet(Model(), {}))


def read(file):
    """The updates of one file."""
    found = comfy.lora_convert.convert_lora(load_file(file))
    updates = {}
    for key, patch in comfy.lora.load_lora(found, keys).items():
        before = patched[key].double()
        after = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], before.clone(), key, torch.float64)
        updates[names[key].removesuffix(".weight")] = after - before
    return updates


write_all(read)
