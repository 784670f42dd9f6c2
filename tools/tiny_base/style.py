"""Whether a LoRA learnt the held-out style: `python -m tools.tiny_base.style results/pixel`.

By features, a sample is of the style whose true picture is nearest to it (EffNet-Lite0). The candidates are pictures
that no LoRA learnt from: of the held-out style, and as many of each style of the world. By tiny-blip, it is of the
held-out style if its caption begins with none of the world's styles: tiny-blip has learnt the parts of `pixel-art`, and
not its name.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdlora import records
from sdlora.config.caption import Caption
from sdlora.errors import DataError
from sdlora.images.pictures import read_rgb
from sdlora.stages.caption.blip import Blip
from sdlora.stages.sample.parts import reporting
from tools.tiny_base import datasets, measures, pictures, styles, world
from tools.tiny_base.pictures import Pixels
from tools.tiny_base.quality import captioned

EACH = 20  # true pictures of a style
UNSEEN = 1_000  # seed of pictures that are in no dataset


@dataclass(frozen=True)
class Candidates:
    """True pictures (N, S, S, 3) and their styles."""

    pixels: Pixels
    styles: list[str]


def candidates(size_px: int) -> Candidates:
    """`EACH` pictures of the held-out style and of each of the world's, in the plain framing."""
    found = {styles.HELD_OUT_STYLE: datasets.pixel_avatars(EACH, UNSEEN)}
    for style in styles.STYLES:
        sampled = (world.sample(index, UNSEEN, style) for index in range(20 * EACH))
        found[style] = [*islice((picture for picture in sampled if not picture.framing), EACH)]
    drawn = [picture for group in found.values() for picture in group]
    return Candidates(pictures.pixels_of(drawn, size_px), [picture.style for picture in drawn])


def recognised(samples: Sequence[Image.Image], known: Candidates) -> float:
    """Share of samples whose nearest true picture is of the held-out style."""
    nearest = measures.feature_distances(samples, known.pixels).argmin(axis=1)
    return round(float(np.mean([known.styles[int(place)] == styles.HELD_OUT_STYLE for place in nearest])), 4)


def told(samples: Sequence[Image.Image], blip: Blip) -> float:
    """Share of samples that tiny-blip gives none of the world's styles."""
    names = tuple(style.name for style in styles.STYLES.values())
    return round(float(np.mean([not said.startswith(names) for said in captioned(blip, samples)])), 4)


def read_samples(version: Path, step: int, beside: int | None = None) -> list[Image.Image]:
    """A version's samples at a step, 0 is the base; of the references and seeds that `beside` is drawn with, too.

    Raises:
        DataError: If there are none.
    """
    both = {step, step if beside is None else beside}
    rows = [row for row in reporting(version, both) if row["step"] == step]
    if not rows:
        raise DataError(f"{version}: no samples of step {step} in samples/ or test_samples/")
    return [read_rgb(version / row["file"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", type=Path, help="folder of results")
    parser.add_argument("--captioner", default="models/tiny-blip")
    parser.add_argument("--step", type=int, help="default: the version's best.json")
    parser.add_argument("--out", type=Path, default=Path("results/base/style.json"))
    args = parser.parse_args()
    step = args.step if args.step is not None else records.read_json(args.version / "best.json")["best_step"]
    blip = Blip(args.captioner, None, Caption(max_new_tokens=60), torch.get_num_threads())
    found = {}
    for name, number, beside in (("step_0", 0, step), ("chosen", step, 0)):
        samples = read_samples(args.version, number, beside)
        found[name] = {
            "samples": len(samples),
            "recognised_by_features": recognised(samples, candidates(samples[0].width)),
            "recognised_by_blip": told(samples, blip),
        }
    records.write_json(args.out, found)
    print(records.canonical_json(found))


if __name__ == "__main__":
    main()
