"""Small networks of CLIP's and DINOv2's classes with random weights, as folders that metrics can name."""

from pathlib import Path

import torch
from helpers import ROOT
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

SIDE_PX = 32
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_small_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP with the embedded base's tokenizer."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models/tiny-sd/tokenizer")
    text = {**LAYERS, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text["bos_token_id"] = tokenizer.bos_token_id
    vision = {**LAYERS, "image_size": SIDE_PX, "patch_size": 8}
    # weights of 0.02, as training starts with, would make all pictures alike
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, initializer_factor=3.0)
    CLIPModel(config).save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_small_dinov2(folder: Path, seed: int = 0) -> Path:
    """Write a DINOv2: as for the published one, pictures are resized, then cropped to less than its own size."""
    torch.manual_seed(seed)
    layers = {key: value for key, value in LAYERS.items() if key != "intermediate_size"}
    Dinov2Model(
        Dinov2Config(**layers, image_size=48, patch_size=8, mlp_ratio=2, initializer_range=0.2)
    ).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": SIDE_PX, "width": SIDE_PX}, do_convert_rgb=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3,
    ).save_pretrained(folder)  # fmt: skip
    return folder
