"""The tiny BLIP: transformers' `BlipForConditionalGeneration`, which names style and attributes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from tools.tiny_base import loop, text
from tools.tiny_base.diffusion import declare_float32
from tools.tiny_base.recipe import BaseRecipe

MAX_TOKENS = 64


def build(tokenizer: BertTokenizer, size_px: int) -> BlipForConditionalGeneration:
    """A fresh BLIP of about 5 M parameters for square pictures of `size_px`."""
    width = 224
    config = BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 5,
            "num_attention_heads": 7,
            "image_size": size_px,
            "patch_size": 8,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "encoder_hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": 7,
            "max_position_embeddings": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "attention_probs_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
        },
        projection_dim=64,
        image_text_hidden_size=64,
    )
    return BlipForConditionalGeneration(config)


def processor(tokenizer: BertTokenizer, size_px: int) -> BlipProcessor:
    """BLIP's processor for pictures of any size."""
    return BlipProcessor(BlipImageProcessor(size={"height": size_px, "width": size_px}), tokenizer)


def token_ids(tokenizer: BertTokenizer, captions: Sequence[str]) -> Tensor:
    """`[DEC] words [SEP] [PAD]…` (N, 64)."""
    rows = []
    for caption in captions:
        ids = tokenizer(caption, add_special_tokens=False)["input_ids"][: MAX_TOKENS - 2]
        ids = [tokenizer.bos_token_id, *ids, tokenizer.sep_token_id]
        rows.append(ids + [tokenizer.pad_token_id] * (MAX_TOKENS - len(ids)))
    return torch.tensor(rows)


def with_spots(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every third picture gets an oval spot of one colour: something worn that no caption names.

    Args:
        images: (N, 3, H, W) in [0, 1].
        generator: Where, how large and of which colour.
    """
    count, _, height, width = images.shape
    place = torch.rand(count, 6, 1, 1, generator=generator).unbind(1)
    y = (torch.arange(height).view(1, -1, 1) / height - place[0]) / (0.04 + 0.1 * place[2])
    x = (torch.arange(width).view(1, 1, -1) / width - place[1]) / (0.04 + 0.1 * place[3])
    inside = (y.square() + x.square() < 1) & (place[4] < 1 / 3)
    colours = torch.rand(count, 3, 1, 1, generator=generator)
    return torch.where(inside[:, None], colours, images)


def train(
    pictures: NDArray[np.uint8],
    captions: Sequence[str],
    recipe: BaseRecipe,
    work: Path,
    out: Path,
    device: str,
) -> None:
    """Train BLIP on the world's pictures and captions and save it with its processor as fp16."""
    torch.manual_seed(recipe.seed + 2)
    tokenizer = text.bert_tokenizer(captions, work / "blip-tokenizer")
    model = build(tokenizer, recipe.size_px).to(device).train()
    reader = processor(tokenizer, recipe.size_px)
    ids = token_ids(tokenizer, captions)
    mean = torch.tensor(reader.image_processor.image_mean).view(3, 1, 1)
    std = torch.tensor(reader.image_processor.image_std).view(3, 1, 1)

    def loss_of_step(step: int) -> Tensor:
        index = loop.batch_indices(recipe.seed + 2, step, recipe.blip_batch, len(pictures))
        images = torch.from_numpy(np.ascontiguousarray(pictures[index.numpy()])).permute(0, 3, 1, 2).float() / 255
        images = with_spots(images, loop.step_generator(recipe.seed + 2, step))
        tokens = ids[index]
        tokens = tokens[:, : int((tokens != tokenizer.pad_token_id).sum(1).max())]
        mask = tokens != tokenizer.pad_token_id
        labels = tokens.masked_fill(~mask, -100)
        with torch.autocast(device, torch.bfloat16):
            seen = model.vision_model(pixel_values=((images - mean) / std).to(device)).last_hidden_state
            loss: Tensor = model.text_decoder(
                input_ids=tokens.to(device),
                attention_mask=mask.long().to(device),
                encoder_hidden_states=seen,
                labels=labels.to(device),
                reduction="mean",
            ).loss
        return loss.float()

    loop.train(
        "blip",
        model,
        loss_of_step,
        steps=recipe.blip_steps,
        peak_learning_rate=recipe.blip_learning_rate,
        save_every=recipe.save_every,
        folder=work,
    )
    model.half().save_pretrained(out)
    declare_float32(out / "config.json")
    reader.save_pretrained(out)
