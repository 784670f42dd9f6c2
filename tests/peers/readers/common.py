"""What the readers share. They run in the interpreter that a user names, with nothing of this repository.

Call: READER CHECKOUT BASE OUT FILE...; what each FILE adds to the base's weights is written to OUT/<number>.safetensors
by diffusers' names.
"""

import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

checkout, base, out = (Path(word) for word in sys.argv[1:4])
files = sys.argv[4:]


class Stub(types.ModuleType):
    """A package that a checkout imports and that loading LoRAs does not use."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class Anything:
    """An object with every attribute."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


def stub(*names):
    """Have `import name` succeed."""
    for name in names:
        sys.modules[name] = Stub(name)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, sys.modules[name])


def weights():
    """The base's weights by diffusers' names, `unet.` and `text_encoder.` before them, fp32."""
    found = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    text = load_file(base / "text_encoder/model.safetensors")
    named = {f"unet.{name}": value for name, value in found.items()}
    return {**named, **{f"text_encoder.{name}": value for name, value in text.items()}}


def unet_config():
    """The UNet's config."""
    return json.loads((base / "unet/config.json").read_text("utf-8"))


def write_all(read):
    """Write each file's updates, `unet.….to_q` -> tensor; what a tool raises goes into OUT/<number>.txt."""
    out.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        try:
            updates = read(file)
        except Exception as error:
            (out / f"{number}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            continue
        found = {name: value.detach().float().contiguous() for name, value in updates.items()}
        save_file(found or {"nothing": torch.zeros(1)}, out / f"{number}.safetensors")


INSIDE = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
INSIDE["conv_shortcut"] = "skip_connection"
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def _blocks(blocks, layers):
    """diffusers' blocks of SD 1.5 and the original implementation's, which numbers them one after the other."""
    for block in range(blocks):
        down, up = block * (layers + 1) + 1, block * (layers + 1)
        for layer in range(layers):
            yield f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{down + layer}.0"
            yield f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{down + layer}.1"
        yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{down + layers}.0.op"
        for layer in range(layers + 1):
            yield f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{up + layer}.0"
            yield f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{up + layer}.1"
        after = 2 if block else 1  # the first block has no attention before it
        yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{up + layers}.{after}.conv"


def ldm_names(blocks=4, layers=2):
    """SD 1.5's modules with weights: diffusers' name -> the original implementation's."""
    known = {**OUTSIDE, **dict(_blocks(blocks, layers))}
    named = {}
    for weight in weights():
        name = weight.removeprefix("unet.").removesuffix(".weight")
        start = next((ours for ours in known if name == ours or name.startswith(f"{ours}.")), None)
        if weight.startswith("unet.") and weight.endswith(".weight") and start:
            rest = name.removeprefix(start).removeprefix(".")
            named[name] = f"{known[start]}.{INSIDE.get(rest, rest)}" if rest else known[start]
    return named
