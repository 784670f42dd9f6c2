"""A learnt embedding as ComfyUI or A1111 reads it by its name, written to OUT/embedding.npy.

Call: embedding.py CHECKOUT FOLDER OUT NAME WIDTH
"""

import sys
import types

import diffusers
import numpy as np
import transformers
from common import base, checkout, files, out, stub
from safetensors.torch import load_file

assert diffusers.StableDiffusionPipeline and transformers.CLIPTextModel  # before the stubs: both look for torchvision
name, width = files[0], int(files[1])


def of_comfyui():
    """`embedding:NAME` in a prompt."""
    stub("torchvision", "torchvision.transforms")
    sys.path.insert(0, str(checkout))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.sd1_clip

    return comfy.sd1_clip.load_embed(name, str(base), width, "clip_l")


def of_a1111():
    """NAME in a prompt: the file's name without its suffix."""
    parts = ("shared", "devices", "sd_hijack", "sd_models", "images", "sd_samplers", "sd_hijack_checkpoint", "errors")
    stub("modules", *(f"modules.{part}" for part in (*parts, "hashes")), "modules.textual_inversion")
    inside = ("dataset", "learn_schedule", "image_embedding", "saving_settings")
    stub(*(f"modules.textual_inversion.{part}" for part in inside))
    sys.modules["modules.devices"].device = "cpu"
    file = checkout / "modules/textual_inversion/textual_inversion.py"
    module = types.ModuleType("textual_inversion")
    exec(compile(file.read_text("utf-8"), str(file), "exec"), module.__dict__)
    read = module.create_embedding_from_data(load_file(base / f"{name}.safetensors"), name)
    assert read.name == name
    return read.vec


found = of_comfyui() if (checkout / "comfy").exists() else of_a1111()
out.mkdir(parents=True, exist_ok=True)
np.save(out / "embedding.npy", found.numpy())
