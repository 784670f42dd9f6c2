"""Make the embedded base from packages alone: `python -m sdlora.base.make`."""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from sdlora import records
from sdlora.base import blip, diffusion, pictures, vae
from sdlora.base.recipe import BaseRecipe


def make(recipe: BaseRecipe, work: Path, out: Path, device: str) -> None:
    """Draw the pictures, train VAE, BLIP and diffusion; each part resumes where it was stopped."""
    pictures.make(work, recipe.pictures, recipe.seed, recipe.size_px)
    images, captions = pictures.load(work, "pictures")
    if (work / "vae" / "config.json").exists():
        autoencoder = AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.float32).to(device).eval()
    else:
        autoencoder = vae.train(images, recipe, work, work / "vae", device)
    if not (work / "tiny-blip" / "config.json").exists():
        blip.train(images, captions, recipe, work, work / "tiny-blip", device)
    if not (work / "tiny-sd" / "model_index.json").exists():
        latents = vae.encode(autoencoder, images, device)
        diffusion.train(latents, captions, autoencoder, recipe, work, work / "tiny-sd", device)
    for name in ("tiny-blip", "tiny-sd"):
        records.publish_folder(work / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("models/.work"), help="pictures, states, previews")
    parser.add_argument("--out", type=Path, default=Path("models"), help="where tiny-sd and tiny-blip are written")
    parser.add_argument("--share", type=float, default=1.0, help="share of the recipe's pictures and steps (rehearsal)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the result depends on it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = BaseRecipe() if args.share == 1.0 else BaseRecipe().shortened(args.share)
    make(recipe, args.work, args.out, args.device)


if __name__ == "__main__":
    main()
