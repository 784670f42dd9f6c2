"""The tiny BLIP: transformers' `BlipForConditionalGeneration`, which names style and attributes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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
from tools.tiny_base.loop import Part
from tools.tiny_base.pictures import Drawn
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

    Half of the spots are where faces are.

    Args:
        images: (N, 3, H, W) in [0, 1].
        generator: Where, how large and of which colour.
    """
    count, _, height, width = images.shape
    place = torch.rand(count, 6, 1, 1, generator=generator).unbind(1)
    on_face = place[5] < 0.5
    middle_y, middle_x = (
        torch.where(on_face, start + 0.4 * where, where) for start, where in ((0.15, place[0]), (0.3, place[1]))
    )
    y = (torch.arange(height).view(1, -1, 1) / height - middle_y) / (0.04 + 0.1 * place[2])
    x = (torch.arange(width).view(1, 1, -1) / width - middle_x) / (0.04 + 0.1 * place[3])
    inside = (y.square() + x.square() < 1) & (place[4] < 1 / 3)
    colours = torch.rand(count, 3, 1, 1, generator=generator)
    return torch.where(inside[:, None], colours, images)


def as_portraits(images: Tensor, generator: torch.Generator, chosen: Sequence[bool]) -> Tensor:
    """Pictures as `fit: pad` leaves portraits: a strip down the middle, its edges repeated to both sides.

    Args:
        images: (N, 3, H, W).
        generator: How wide each strip is: from 0.6 to 0.8 of the width.
        chosen: Which pictures become portraits; the others stay.
    """
    width = images.shape[-1]
    half = (width * (0.3 + 0.1 * torch.rand(len(images), 1, generator=generator))).round()
    inside = torch.arange(width).expand(len(images), width)
    columns = inside.clamp((width / 2 - half).long(), (width / 2 + half).long() - 1)
    columns = torch.where(torch.tensor(list(chosen))[:, None], columns, inside)
    return images.gather(3, columns[:, None, None, :].expand_as(images))


@dataclass(frozen=True)
class _Lessons:
    """Pictures and captions as BLIP sees them."""

    tokenizer: BertTokenizer
    mean: Tensor
    std: Tensor

    def of(self, drawn: Drawn, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W), normalised, and token ids (B, 64) of some pictures.

        Every third picture has a spot; of those that have their avatar in the middle, every third is a portrait.
        """
        images = torch.from_numpy(np.ascontiguousarray(drawn.pixels[index.numpy()])).permute(0, 3, 1, 2) / 255
        images = with_spots(images, generator)
        captions = [drawn.captions[int(number)] for number in index]
        middle = [not caption.endswith(("left", "right")) for caption in captions]
        lot = torch.rand(len(index), generator=generator) < 1 / 3
        images = as_portraits(images, generator, [a and bool(b) for a, b in zip(middle, lot, strict=True)])
        return (images - self.mean) / self.std, token_ids(self.tokenizer, captions)


def train(drawn: Drawn, captioned: Drawn, recipe: BaseRecipe, work: Path, out: Path, device: str, parts: int) -> None:
    """Train BLIP and save it with its processor as fp16.

    Half of a batch is of the world's pictures, whose captions are its words; half is of those for BLIP alone.
    """
    seed = recipe.seed + 2
    torch.manual_seed(seed)
    tokenizer = text.bert_tokenizer(drawn.captions, work / "blip-tokenizer")
    model = build(tokenizer, recipe.size_px).to(device).train()
    reader = processor(tokenizer, recipe.size_px)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (reader.image_processor.image_mean, reader.image_processor.image_std)
    )
    lessons = _Lessons(tokenizer, mean, std)

    def loss_of(step: int, part: Part) -> Tensor:
        generator = loop.part_generator(seed, step, part)
        halves = [
            lessons.of(one, part.of(loop.batch_indices(seed, step, recipe.blip_batch // 2, len(one.pixels))), generator)
            for one in (drawn, captioned)
        ]
        images = torch.cat([images for images, _ in halves])
        tokens = torch.cat([tokens for _, tokens in halves])
        known = tokens != tokenizer.pad_token_id
        tokens = tokens[:, : int(known.sum(1).max())]
        known = known[:, : tokens.shape[1]]
        with loop.autocast(device):
            seen = model.vision_model(pixel_values=images.to(device)).last_hidden_state
            loss: Tensor = model.text_decoder(
                input_ids=tokens.to(device),
                attention_mask=known.long().to(device),
                encoder_hidden_states=seen,
                labels=tokens.masked_fill(~known, -100).to(device),
                reduction="mean",
            ).loss
        return loss.float()

    loop.train(
        "blip",
        model,
        loss_of,
        parts=parts,
        steps=recipe.blip_steps,
        peak_learning_rate=recipe.blip_learning_rate,
        ema_decay=recipe.blip_ema_decay,
        save_every=recipe.save_every,
        folder=work,
    )
    model.half().save_pretrained(out)
    declare_float32(out / "config.json")
    reader.save_pretrained(out)
