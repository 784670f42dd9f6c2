"""Measure the embedded base on pictures it never saw: `python -m tools.tiny_base.quality`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from sdlora import records
from sdlora.config.caption import Caption
from sdlora.config.load import load
from sdlora.config.params import Base
from sdlora.config.sample import Hires, Sample
from sdlora.models.loading import quieten
from sdlora.progress import Progress
from sdlora.stages.caption.blip import Blip
from sdlora.stages.evaluate.psnr import psnr_db
from sdlora.stages.evaluate.ssim import ssim
from sdlora.stages.report.sheet import contact_sheet
from sdlora.stages.sample.sample import Painter, Prompt
from tools.tiny_base import accessories, measures, pictures, vae, world
from tools.tiny_base.characters import CHARACTERS, Character, portrait, portraits
from tools.tiny_base.datasets import TRAIN
from tools.tiny_base.pictures import Pixels
from tools.tiny_base.recipe import BaseRecipe
from tools.tiny_base.world import Picture

AT_ONCE = 10
PLAIN = Sample(guidance_scale=7.0, inference_steps=30)
HIRES = PLAIN.model_copy(update={"hires": Hires(factor=1.5, denoising_strength=0.35)})


def vae_quality(autoencoder: AutoencoderKL, truths: Sequence[Picture], size_px: int) -> dict[str, float]:
    """Mean PSNR and SSIM of decoded posterior means; `face_psnr_db` is of the faces alone."""
    pixels = pictures.pixels_of(list(truths), size_px)
    decoded = []
    with torch.inference_mode():
        for first in range(0, len(pixels), 25):
            mean = autoencoder.encode(vae.to_tensor(pixels[first : first + 25])).latent_dist.mean
            decoded.append(autoencoder.decode(mean).sample)
    seen = ((torch.cat(decoded).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    pairs = list(zip(seen, pixels, strict=True))
    boxes = [world.face_box(one, size_px) if one.style in accessories.FACES else None for one in truths]
    return {
        "psnr_db": round(float(np.mean([psnr_db(a, b) for a, b in pairs])), 3),
        "ssim": round(float(np.mean([ssim(a, b) for a, b in pairs])), 4),
        "face_psnr_db": measures.psnr_in(seen, pixels, boxes),
    }


def draw_all(base: Base, captions: Sequence[str], settings: Sample) -> list[Image.Image]:
    """Each caption with noise of its own."""
    painter = Painter(base, settings, base.size_px)
    painter.use(None)
    progress = Progress("quality", len(captions))
    drawn: list[Image.Image] = []
    for first in range(0, len(captions), AT_ONCE):
        batch = captions[first : first + AT_ONCE]
        drawn += painter.draw([Prompt(f"quality-{first + n}", text, 42) for n, text in enumerate(batch)])
        progress.advance(len(batch))
    return drawn


@dataclass(frozen=True)
class Drawings:
    """What was drawn of some captions, and what they describe."""

    drawn: list[Image.Image]
    truths: Pixels  # of the drawings' size
    captions: list[str]

    def figures(self, by_features: bool = True) -> dict[str, object]:
        """How near the drawings are to their truths, and all of them to all truths."""
        found: dict[str, object] = {
            "nearest_truth_by_pixels": measures.nearest_shares(
                measures.pixel_distances(self.drawn, self.truths), self.captions
            )
        }
        if by_features:
            found["nearest_truth_by_effnet_lite0"] = measures.nearest_shares(
                measures.feature_distances(self.drawn, self.truths), self.captions
            )
            found["cmmd_effnet_lite0"] = measures.cmmd(
                measures.feature_vectors(self.drawn), measures.feature_vectors(self.truths)
            )
        return found


def drawings(base: Base, truths: Sequence[Picture], settings: Sample = PLAIN) -> Drawings:
    """Draw the captions of pictures."""
    captions = [picture.caption for picture in truths]
    drawn = draw_all(base, captions, settings)
    return Drawings(drawn, pictures.pixels_of(list(truths), drawn[0].width), captions)


def captioned(blip: Blip, pictures: Sequence[Image.Image]) -> list[str]:
    """Captions that BLIP gives pictures one by one, as the pipeline does unless it is told otherwise."""
    return [text for picture in pictures for text in blip.captions([picture])]


def portraits_f1(blip: Blip, character: Character, size_px: int) -> float:
    """Attribute F1 on what a LoRA of a character learns from.

    Aside, under any name: the patch and the eye that it covers, or the hat.
    """
    learnt = portraits(character, TRAIN, 0)
    shown = [Image.fromarray(portrait(one, character.aspect, size_px)) for one in learnt]
    said = captioned(blip, shown)
    hats = (character.mark, *accessories.HATS) if character.mark else ()
    aside = [*character.covered, *hats, *(accessories.GLASSES if character.over else ())]
    return measures.attribute_f1(said, [one.caption for one in learnt], aside)


def blip_quality(blip: Blip, found: Drawings) -> dict[str, object]:
    """What BLIP says of true pictures, of drawings, and of the characters' training pictures."""
    said = captioned(blip, [Image.fromarray(truth) for truth in found.truths])
    of_drawn = captioned(blip, found.drawn)
    size_px = found.truths.shape[1]
    return {
        "attribute_f1": measures.attribute_f1(said, found.captions),
        "portraits_attribute_f1": {name: portraits_f1(blip, one, size_px) for name, one in CHARACTERS.items()},
        "style_named": {
            "drawn": measures.same_style(of_drawn, found.captions),
            "truth": measures.same_style(said, found.captions),
        },
    }


def is_learnt(picture: Picture) -> bool:
    """Whether the UNet learns to draw such a picture."""
    return not picture.worn


def is_small(picture: Picture) -> bool:
    """Whether the figure is one of the small ones."""
    return picture.framing.startswith("small")


def measure(models: Path, count: int, sheet: Path) -> dict[str, object]:
    """All figures on the first `count` held-out pictures; also writes a sheet of truths and drawings.

    CFG 7 is the base's own, and `as_v8_draws` what params.yaml makes of it: less guidance, and hires fix.
    """
    quieten()
    recipe = BaseRecipe()
    params = load(Path("params.yaml"))
    base = Base(model=str(models / "tiny-sd"), family="sd", size_px=recipe.size_px, captioner="-")
    truths = list(pictures.kept_back(recipe.seed, count, is_learnt))
    small = list(pictures.kept_back(recipe.seed, max(2, count // 2), lambda one: is_learnt(one) and is_small(one)))
    autoencoder = AutoencoderKL.from_pretrained(models / "tiny-sd" / "vae", use_safetensors=True)
    blip = Blip(str(models / "tiny-blip"), None, Caption(max_new_tokens=60), torch.get_num_threads())
    plain = drawings(base, truths)
    write_sheet(plain, sheet)
    return {
        "pictures": count,
        "vae": vae_quality(autoencoder, truths, recipe.size_px),
        "all": plain.figures(),
        "small": {
            "among_all": measures.nearest_shares(
                measures.pixel_distances(plain.drawn, plain.truths), plain.captions, [is_small(one) for one in truths]
            ),
            "among_small": drawings(base, small).figures(by_features=False)["nearest_truth_by_pixels"],
        },
        "hires_96_px": drawings(base, truths, HIRES).figures(),
        "as_v8_draws": drawings(base, truths, params.bases["tiny"].guiding(params.versions["v8"].sample)).figures(),
        "blip": blip_quality(blip, plain),
    }


def write_sheet(found: Drawings, path: Path) -> None:
    """The first 64 truths and drawings, sixteen a row."""
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    truths = [Image.fromarray(truth) for truth in found.truths]
    for first in range(0, min(64, len(truths)), 16):
        rows += [("truth", truths[first : first + 16]), ("drawn", found.drawn[first : first + 16])]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("results/base/quality.json"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = measure(args.models, args.count, args.out.with_name("sheet.png"))
    records.write_json(args.out, figures)
    print(records.canonical_json(figures))


if __name__ == "__main__":
    main()
