"""Measure the embedded base on pictures it never saw: `python -m tools.tiny_base.quality`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from sdlora import records
from sdlora.adapters.base import quieten
from sdlora.caption import Captioner
from sdlora.evaluate import effnet
from sdlora.evaluate.psnr import psnr_db
from sdlora.evaluate.ssim import ssim
from sdlora.params import Caption
from sdlora.progress import Progress
from sdlora.randomness import generator
from sdlora.report.sheet import contact_sheet
from tools.tiny_base import pictures, vae
from tools.tiny_base.recipe import BaseRecipe

Pixels = NDArray[np.uint8]
CANDIDATES = 20
AT_ONCE = 10


def vae_quality(pipeline: StableDiffusionPipeline, truths: Pixels) -> dict[str, float]:
    """Mean PSNR and SSIM of decoded posterior means."""
    decoded = []
    with torch.inference_mode():
        for first in range(0, len(truths), 25):
            mean = pipeline.vae.encode(vae.to_tensor(truths[first : first + 25])).latent_dist.mean
            decoded.append(pipeline.vae.decode(mean).sample)
    pixels = ((torch.cat(decoded).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    pairs = list(zip(pixels, truths, strict=True))
    return {
        "psnr_db": round(float(np.mean([psnr_db(a, b) for a, b in pairs])), 3),
        "ssim": round(float(np.mean([ssim(a, b) for a, b in pairs])), 4),
    }


def draw_all(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> list[Image.Image]:
    """Each caption at CFG 7 and 30 steps, with noise of its own."""
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    progress = Progress("quality", len(captions))
    drawn: list[Image.Image] = []
    for first in range(0, len(captions), AT_ONCE):
        batch = list(captions[first : first + AT_ONCE])
        noise = [generator("quality", first + number) for number in range(len(batch))]
        drawn += pipeline(batch, guidance_scale=7.0, num_inference_steps=30, generator=noise).images
        progress.advance(len(batch))
    return drawn


def style_of(caption: str) -> str:
    """The style a caption names first."""
    return caption.split(",")[0]


def pixel_distances(drawn: Sequence[Image.Image], truths: Pixels) -> NDArray[np.float64]:
    """Mean squared difference of every drawing (row) and truth (column)."""
    known = truths.astype(np.float64)
    return np.stack([np.square(known - np.asarray(picture, np.float64)).mean(axis=(1, 2, 3)) for picture in drawn])


def feature_distances(drawn: Sequence[Image.Image], truths: Pixels) -> NDArray[np.float64]:
    """EffNet-Lite0 feature distance of every drawing (row) and truth (column)."""
    known = [effnet.features(truth) for truth in truths]
    found = [effnet.features(np.asarray(picture)) for picture in drawn]
    return np.array([[effnet.distance(one, other) for other in known] for one in found])


def nearest_shares(distances: NDArray[np.float64], captions: Sequence[str]) -> dict[str, float]:
    """How often the nearest truth is the drawing's own, and of its style.

    Args:
        distances: (drawings, truths); drawing n was asked for what truth n shows.
        captions: Of the truths; the style is what each says first.

    Returns:
        `own`: among 20 of the same style (its own and up to 19 others; chance about 0.05).
        `style`: among all truths.
    """
    own, right_style = [], []
    for number, distance in enumerate(distances):
        right_style.append(style_of(captions[int(distance.argmin())]) == style_of(captions[number]))
        others = [n for n, text in enumerate(captions) if n != number and style_of(text) == style_of(captions[number])]
        candidates = [number, *others[: CANDIDATES - 1]]
        own.append(candidates[int(distance[candidates].argmin())] == number)
    return {"own": round(float(np.mean(own)), 4), "style": round(float(np.mean(right_style)), 4)}


def same_style(said: Sequence[str], captions: Sequence[str]) -> float:
    """Share of captions that say the style of the true one."""
    return round(
        float(np.mean([style_of(one) == style_of(other) for one, other in zip(said, captions, strict=True)])), 4
    )


def word_f1(said: Sequence[str], truth: Sequence[str]) -> float:
    """Mean F1 of the sets of words of each caption."""
    scores = []
    for one, other in zip(said, truth, strict=True):
        a, b = (set(text.replace(",", " ").split()) for text in (one, other))
        scores.append(2 * len(a & b) / (len(a) + len(b)))
    return round(float(np.mean(scores)), 4)


def measure(models: Path, count: int, sheet: Path) -> dict[str, object]:
    """All figures on the first `count` held-out pictures; also writes a sheet of truths and drawings."""
    quieten()
    recipe = BaseRecipe()
    truths, captions = pictures.held_out(recipe.seed, recipe.size_px, count)
    pipeline = StableDiffusionPipeline.from_pretrained(models / "tiny-sd")
    pipeline.set_progress_bar_config(disable=True)
    figures: dict[str, object] = {"pictures": len(captions), "vae": vae_quality(pipeline, truths)}
    settings = Caption(max_new_tokens=60)
    blip = Captioner(str(models / "tiny-blip"), None, settings, torch.get_num_threads())
    images = [Image.fromarray(truth) for truth in truths]
    said = [blip.caption(image) for image in images]
    figures["blip_word_f1"] = word_f1(said, captions)
    drawn = draw_all(pipeline, captions)
    figures["style_named_by_blip"] = {
        "drawn": same_style([blip.caption(picture) for picture in drawn], captions),
        "truth": same_style(said, captions),
    }
    figures["nearest_truth_by_pixels"] = nearest_shares(pixel_distances(drawn, truths), captions)
    figures["nearest_truth_by_effnet_lite0"] = nearest_shares(feature_distances(drawn, truths), captions)
    rows = []
    for first in range(0, min(64, count), 16):
        rows += [("truth", images[first : first + 16]), ("drawn", drawn[first : first + 16])]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(sheet)
    return figures


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
