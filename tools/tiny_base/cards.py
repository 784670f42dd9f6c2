"""Write the model cards from what was measured: `python -m tools.tiny_base.cards`."""

import argparse
from pathlib import Path
from typing import Any

from sdlora import records
from sdlora.flow import hashing
from tools.tiny_base import styles
from tools.tiny_base.diffusion import MOST, SCHEDULE
from tools.tiny_base.recipe import BaseRecipe

SD_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, tiny, avatars]
---

# tiny-sd

A Stable Diffusion at 64 px, small enough for git and a CPU, trained from scratch on drawn avatars. It is a plain
diffusers folder: `StableDiffusionPipeline.from_pretrained("models/tiny-sd")` needs nothing of this repository.
It works with transformers 4 and 5 (measured with diffusers 0.35.2 and 0.42.1), with the same tokens and samples for
English; version 4 splits Chinese and Japanese characters, as it does for every CLIP.

It knows only the world of `tools.tiny_base.world`: {styles} styles of avatars, their attributes, colours, backgrounds
and framings, in captions such as

    toon head, black undercut hair, gray turtle neck, peach skin, happy eyes, smile mouth, white background

It never saw the style `pixel-art`, the identities of the datasets `captain` and `gardener`, or 5 % of the
combinations. Hair may have any colour of the palette. It draws bare heads. tiny-blip alone has seen pictures of hats,
glasses and other accessories, of `pixel-art`, and of the two characters' hair: a captioner reads what a base cannot
draw.

## Parts

| part | class | size |
| --- | --- | --- |
| VAE | `AutoencoderKL`, factor 4, 4 latent channels | 2.7 M |
| UNet | `UNet2DConditionModel` (96, 160, 256) | 15.5 M |
| text encoder | `CLIPTextModel`, 4 layers of 192 | 2.0 M |
| tokenizer | `CLIPTokenizer`, byte-level BPE on the world's captions; reads any text | |

## Recipe

`make base`, on {recipe.pictures} drawn pictures of {recipe.size_px} px and {recipe.larger_pictures} of
{recipe.larger_px} px, which are every fourth batch. Learning rates rise for 200 steps, stay, and fall to zero over the
last 30 % of the steps; bf16 autocast, seed {recipe.seed}:

| what is trained | steps | batch | AdamW's learning rate | loss |
| --- | --- | --- | --- | --- |
| VAE | {recipe.vae_steps} | {recipe.vae_batch} | {recipe.vae_learning_rate:g} | L1 + gradients + squared error |
| decoder only | {recipe.decoder_steps} | {recipe.decoder_batch} | {recipe.decoder_learning_rate:g} | the same |
| UNet, text encoder | {recipe.unet_steps} | {recipe.unet_batch} | {recipe.unet_learning_rate:g} | epsilon, weighted |

The VAE's loss is L1 + 0.5 x the difference of gradients + 10 x the squared error. Weights are averages (EMA) with a
decay of {recipe.vae_ema_decay:g} for the VAE and {recipe.unet_ema_decay:g} for the UNet. A timestep of the
UNet's loss weighs (min(SNR, {recipe.min_snr_gamma:g}) + 1) / SNR, at most {most:g}. The noise schedule is SD 1.5's but
for beta_end: {beta_end:g} rather than 0.012, so that less of a picture shows through at the last timestep.

For classifier-free guidance, a share of {recipe.caption_dropout:g} of the captions is dropped; half of these are
replaced by words that say nothing about a picture, because a negative prompt of unseen words would spoil the picture.
The other captions lose a share of {recipe.tag_dropout:g} of their attributes, and a share of {recipe.foreign_words:g}
get foreign words in front, as triggers are.

{note}

## Measured

On {quality[pictures]} held-out pictures without hats and glasses and their captions, sampled at CFG 7 and 30 steps
(`snakemake results/base/quality.json`):

| figure | value |
| --- | --- |
| VAE PSNR | {quality[vae][psnr_db]} dB |
| VAE PSNR of faces | {quality[vae][face_psnr_db]} dB |
| VAE SSIM | {quality[vae][ssim]} |
| nearest of 20 true pictures of its style is its own (chance 0.05), by pixels | {pixels[own]} |
| the same by EffNet-Lite0 features | {features[own]} |
| nearest of all true pictures is of its style, by pixels | {pixels[style]} |
| the same by EffNet-Lite0 features | {features[style]} |
| small figures only: nearest of 20 true pictures of its style is its own, by pixels | {small[among_all][own]} |
| the same, the 20 being small figures, too | {small[among_small][own]} |
| at 96 px with hires fix: nearest of 20 true pictures is its own, by pixels | {hires[own]} |
| CMMD of samples to true pictures, EffNet-Lite0 features, x 1000 | {quality[all][cmmd_effnet_lite0]} |
| as v8 is drawn (less guidance, hires fix): nearest of 20 true pictures is its own, by pixels | {drawn[own]} |
| the same: CMMD x 1000 | {quality[as_v8_draws][cmmd_effnet_lite0]} |
| tiny-blip names the style of the prompt | {quality[blip][style_named][drawn]} |
| the same for the true pictures | {quality[blip][style_named][truth]} |

![Held-out captions: true pictures and samples](../../docs/images/base.png)

*64 held-out captions, sixteen per row: the true picture above, the sample below.*

Use it to try the pipeline, not as a general model.

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

A `BlipForConditionalGeneration` with 4.1 M parameters for pictures of 64 px, trained from scratch on the avatars of
[tiny-sd](../tiny-sd/README.md). It names the style and the attributes of an avatar.

`make base`: {recipe.blip_steps} steps of {recipe.blip_batch} pictures, AdamW at {recipe.blip_learning_rate:g}, bf16
autocast, seed {recipe.seed}. Half of a batch is of tiny-sd's pictures, half of {recipe.captioned_pictures} that tiny-sd
never saw: the style `pixel-art` (captions name its parts, not the style), heads with the hair of the characters
`captain` and `gardener`, and busts with hat and glasses. None is a picture of a dataset. Every third picture has a
spot of one colour, so that BLIP learns to ignore something worn that no caption names; others are padded as portraits
are.
{begun}
Mean F1 of attributes (the text between two commas is one): {quality[blip][attribute_f1]} on {quality[pictures]}
held-out pictures, {f1[captain]} and {f1[gardener]} on the training pictures of the two held-out characters' LoRAs
(without the patch and the hat).

## Training data

{data}

## Files

{files}
"""


def _files(folder: Path) -> str:
    weights = sorted(folder.rglob("*.safetensors"))
    rows = [f"| `{path.relative_to(folder)}` | `{hashing.sha256_of(path)}` |" for path in weights]
    return "\n".join(["| weights | sha256 |", "| --- | --- |", *rows])


def write(models: Path, quality: dict[str, Any], recipe: BaseRecipe, note: str) -> None:
    """Write both cards."""
    known = {"tiny-sd": [*styles.STYLES], "tiny-blip": [*styles.STYLES, styles.HELD_OUT_STYLE]}
    before = f"\nIt went on from a BLIP that had learnt {BaseRecipe.blip_steps} steps of the first half alone.\n"
    for name, card in (("tiny-sd", SD_CARD), ("tiny-blip", BLIP_CARD)):
        text = card.format(
            recipe=recipe,
            most=MOST,
            beta_end=SCHEDULE["beta_end"],
            styles=len(styles.STYLES),
            quality=quality,
            pixels=quality["all"]["nearest_truth_by_pixels"],
            features=quality["all"]["nearest_truth_by_effnet_lite0"],
            small=quality["small"],
            hires=quality["hires_96_px"]["nearest_truth_by_pixels"],
            drawn=quality["as_v8_draws"]["nearest_truth_by_pixels"],
            f1=quality["blip"]["portraits_attribute_f1"],
            begun="" if recipe == BaseRecipe() else before,
            data="\n".join(f"- {styles.attribution(style)}" for style in known[name]),
            files=_files(models / name),
            note=note,
        )
        records.write_text(models / name / "README.md", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--quality", type=Path, default=Path("results/base/quality.json"))
    parser.add_argument("--begun-from-another", action="store_true", help="it was made with `make --begin-from`")
    parser.add_argument("--note", default="", help="what was unusual about this run")
    args = parser.parse_args()
    recipe = BaseRecipe().from_another() if args.begun_from_another else BaseRecipe()
    write(args.models, records.read_json(args.quality), recipe, args.note)


if __name__ == "__main__":
    main()
