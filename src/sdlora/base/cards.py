"""Write the model cards from what was measured: `python -m sdlora.base.cards`."""

import argparse
from pathlib import Path
from typing import Any

from sdlora import provenance, records
from sdlora.base import world
from sdlora.base.recipe import BaseRecipe

SD_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, tiny, avatars]
---

# tiny-sd

A Stable Diffusion of 64 px, small enough for git and a CPU, trained from scratch on drawn avatars. It is a plain
diffusers folder: `StableDiffusionPipeline.from_pretrained("models/tiny-sd")` needs nothing of this repository.

It knows the world of `sdlora.base.world` and nothing else: eight styles of avatars, their attributes, colours,
backgrounds and three framings, in captions such as

    toon head, black undercut hair, gray turtle neck, peach skin, happy eyes, smile mouth, white background

The style `pixel-art` and the identity of the dataset `captain` were never seen, nor were 5 % of the combinations.

## Parts

| part | class | size |
| --- | --- | --- |
| VAE | `AutoencoderKL`, factor 4, 4 latent channels | 2.7 M |
| UNet | `UNet2DConditionModel` (96, 160, 256) | 15.5 M |
| text encoder | `CLIPTextModel`, 4 layers of 192 | 2.0 M |
| tokenizer | `CLIPTokenizer`, byte-level BPE on the world's captions; reads any text | |

## Recipe

`make base`: {recipe.pictures} pictures; VAE {recipe.vae_steps} steps of {recipe.vae_batch} (L1 + 0.5 x gradient
difference, AdamW {recipe.vae_learning_rate}); UNet and text encoder {recipe.unet_steps} steps of {recipe.unet_batch}
(epsilon, min-SNR {recipe.min_snr_gamma:g}, caption dropout {recipe.caption_dropout:g}, AdamW
{recipe.unet_learning_rate}); cosine rates, EMA 0.999, bf16 autocast, seed {recipe.seed}.

{note}

## Measured

On {quality[pictures]} held-out pictures, drawn at CFG 7 and 30 steps (`python -m sdlora.base.quality`):

| figure | value |
| --- | --- |
| VAE PSNR | {quality[vae][psnr_db]} dB |
| VAE SSIM | {quality[vae][ssim]} |
| nearest of 20 truths of its style is its own, by pixels (chance 0.05) | {own} |
| nearest of all truths is of its style, by pixels | {style} |

It is a base to try the pipeline on, not a model for pictures of anything.

## Training data

{data}

## Files

{files}
"""

BLIP_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-to-text
tags: [blip, tiny, avatars]
---

# tiny-blip

A `BlipForConditionalGeneration` of 4.1 M parameters for pictures of 64 px, trained from scratch on the avatars of
[tiny-sd](../tiny-sd/README.md). It names the style and the attributes of an avatar.

`make base`: {recipe.blip_steps} steps of {recipe.blip_batch} pictures, AdamW {recipe.blip_learning_rate}, cosine,
EMA 0.999, bf16 autocast, seed {recipe.seed}.

Mean F1 of caption words on {quality[pictures]} held-out pictures: {quality[blip_word_f1]}.

## Training data

{data}

## Files

{files}
"""


def _files(folder: Path) -> str:
    weights = sorted(folder.rglob("*.safetensors"))
    rows = [f"| `{path.relative_to(folder)}` | `{provenance.sha256_of(path)}` |" for path in weights]
    return "\n".join(["| weights | sha256 |", "| --- | --- |", *rows])


def write(models: Path, quality: dict[str, Any], note: str) -> None:
    """Write both cards."""
    data = "\n".join(f"- {world.attribution(style)}" for style in world.STYLES)
    for name, card in (("tiny-sd", SD_CARD), ("tiny-blip", BLIP_CARD)):
        nearest = quality["nearest_truth_by_pixels"]
        text = card.format(
            recipe=BaseRecipe(), quality=quality, data=data, files=_files(models / name), note=note, **nearest
        )
        records.write_text(models / name / "README.md", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--quality", type=Path, default=Path("results/base/quality.json"))
    parser.add_argument("--note", default="", help="what was unusual about this run")
    args = parser.parse_args()
    write(args.models, records.read_json(args.quality), args.note)


if __name__ == "__main__":
    main()
