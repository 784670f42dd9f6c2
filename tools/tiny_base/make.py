"""Make the embedded base from packages alone: `python -m tools.tiny_base.make`."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from sdlora import allocator, records
from tools.tiny_base import blip, diffusion, pictures, vae
from tools.tiny_base.recipe import BaseRecipe

PARTS = ("vae", "decoder", "blip", "diffusion")


def make(recipe: BaseRecipe, work: Path, out: Path, device: str, only: Sequence[str] = PARTS) -> None:
    """Draw the pictures and train the parts; each resumes where it was stopped.

    Parts of `only` that do not need each other (blip; decoder and diffusion, once the VAE is there)
    may run at the same time, each in a process of its own. The models are published when all are there.
    """
    pictures.make(work, "pictures", recipe.pictures, recipe.seed, recipe.size_px)
    pictures.make(work, "varied", recipe.varied_pictures, recipe.seed + 1, recipe.varied_px, dyed=True)
    images, captions = pictures.load(work, "pictures")
    varied, varied_captions = pictures.load(work, "varied")
    made = {
        part: work / folder for part, folder in zip(PARTS, ("vae", "vae-decoder", "tiny-blip", "tiny-sd"), strict=True)
    }
    if "vae" in only and not _is_whole(made["vae"]):
        vae.train(images, recipe, work, made["vae"], device)
    if "decoder" in only and not _is_whole(made["decoder"]):
        vae.train_decoder(_load_vae(made["vae"], device), images, recipe, work, made["decoder"], device)
    if "blip" in only and not _is_whole(made["blip"]):
        everything = np.concatenate([images, pictures.resized(varied, recipe.size_px)])
        blip.train(everything, [*captions, *varied_captions], recipe, work, made["blip"], device)
    if "diffusion" in only and not _is_whole(made["diffusion"]):
        autoencoder = _load_vae(made["vae"], device)
        plain = diffusion.Examples(vae.encode(autoencoder, images, device), captions)
        other = diffusion.Examples(vae.encode(autoencoder, varied, device), varied_captions)
        diffusion.train(plain, other, autoencoder, recipe, work, made["diffusion"], device)
    if all(map(_is_whole, made.values())):
        shutil.copytree(made["decoder"], made["diffusion"] / "vae", dirs_exist_ok=True)
        for name in ("tiny-blip", "tiny-sd"):
            _forget_places(work / name)
            records.publish_folder(work / name, out / name)


def _is_whole(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", "model_index.json"))


def _forget_places(folder: Path) -> None:
    """Take out of the configs from which folder their weights were last loaded."""
    for path in folder.rglob("config.json"):
        config = records.read_json(path)
        config.pop("_name_or_path", None)
        records.write_json(path, config)


def _load_vae(folder: Path, device: str) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("models/.work"), help="pictures, states, previews")
    parser.add_argument("--out", type=Path, default=Path("models"), help="where tiny-sd and tiny-blip are written")
    parser.add_argument("--share", type=float, default=1.0, help="of pictures and steps; below 1 a rehearsal")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the result depends on it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to train in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    allocator.keep_freed_blocks()
    recipe = BaseRecipe() if args.share == 1.0 else BaseRecipe().shortened(args.share)
    make(recipe, args.work, args.out, args.device, args.only)


if __name__ == "__main__":
    main()
