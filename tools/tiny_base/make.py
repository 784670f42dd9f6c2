"""Make the embedded base from packages alone: `python -m tools.tiny_base.make`."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from sdlora import records
from sdlora.flow import hashing
from tools.tiny_base import begin, blip, diffusion, loop, pictures, vae
from tools.tiny_base.recipe import BaseRecipe

FOLDERS = {"vae": "vae", "decoder": "vae-decoder", "blip": "tiny-blip", "diffusion": "tiny-sd"}
PARTS = tuple(FOLDERS)
BEGUN = Path("tools/tiny_base/begun")


def make(
    recipe: BaseRecipe,
    work: Path,
    out: Path,
    device: str,
    only: Sequence[str] = PARTS,
    threads: int = 1,
    other: Path | None = None,
) -> None:
    """Draw the pictures and train the parts; each resumes where it was stopped.

    Parts of `only` that do not need each other (blip; decoder and diffusion, once the VAE is there)
    may run at the same time, each in a process of its own. With `other`, a base's folder, VAE, UNet
    and the BLIP beside it go on from that one's. The models are published when all are there.
    """
    parts = threads if device == "cpu" else 1
    pictures.make(work, "pictures", recipe.pictures, recipe.seed, recipe.size_px)
    pictures.make(work, "larger", recipe.larger_pictures, recipe.seed + 1, recipe.larger_px)
    plain, larger = pictures.load(work, "pictures"), pictures.load(work, "larger")
    made = {part: work / folder for part, folder in FOLDERS.items()}
    if other is not None:
        _begin(other, plain.captions, recipe.seed + 3, work)
    wanted = [part for part in PARTS if part in only and not is_whole(made[part])]
    if "vae" in wanted:
        with _unfinished(made["vae"]) as folder:
            vae.train(plain, larger, recipe, work, folder, device, parts)
    if "diffusion" in wanted:
        autoencoder = _load_vae(made["vae"], device)
        identity = hashing.sha256_of(made["vae"] / "diffusion_pytorch_model.safetensors")[:12]
        small, large = (
            diffusion.Examples(
                vae.encoded(autoencoder, one.pixels, work / f"{name}.{identity}.safetensors", device, parts),
                one.captions,
            )
            for name, one in (("pictures", plain), ("larger", larger))
        )
        with _unfinished(made["diffusion"]) as folder:
            diffusion.train(small, large, autoencoder, recipe, work, folder, device, parts)
    if "decoder" in wanted:
        with _unfinished(made["decoder"]) as folder:
            vae.train_decoder(_load_vae(made["vae"], device), plain, larger, recipe, work, folder, device, parts)
    if "blip" in wanted:
        pictures.make(
            work, "captioned", recipe.captioned_pictures, recipe.seed + 2, recipe.size_px, source=pictures.captioned
        )
        with _unfinished(made["blip"]) as folder:
            blip.train(plain, pictures.load(work, "captioned"), recipe, work, folder, device, parts)
    if all(map(is_whole, made.values())):
        shutil.copytree(made["decoder"], made["diffusion"] / "vae", dirs_exist_ok=True)
        for name in ("tiny-blip", "tiny-sd"):
            _forget_places(work / name)
            records.publish_folder(work / name, out / name)


def _begin(other: Path, captions: Sequence[str], seed: int, work: Path) -> None:
    """Go on from another base's networks, where `work` has not come further itself."""
    if not (work / "vae.begun.safetensors").exists():
        begin.begin_vae(other, work)
    if not (work / "blip.begun.safetensors").exists():
        same = begin.begin_blip(other.with_name(FOLDERS["blip"]), captions, work)
        print(f"BLIP {'goes on' if same else 'begins anew, for the words differ'}", flush=True)
    if not (work / "diffusion.begun.safetensors").exists():
        known = begin.begin_from(other, captions, seed, work)
        print(f"begun from {other}, which knows {known} of the tokens", flush=True)


def take_along(work: Path, begun: Path) -> None:
    """Write to `begun`, small enough for git, what another machine goes on from: whole parts, weights of begun ones."""
    shutil.rmtree(begun, ignore_errors=True)
    for part, folder in FOLDERS.items():
        if is_whole(work / folder):
            shutil.copytree(work / folder, begun / folder)
        elif (state := work / f"{part}.state.pt").exists():
            loop.take_along(state, begun / f"{part}.begun.safetensors")
        elif (weights := work / f"{part}.begun.safetensors").exists():  # taken up, and not gone on with
            records.write_bytes(begun / weights.name, weights.read_bytes())


def take_up(begun: Path, work: Path) -> None:
    """Put into `work` what `take_along` wrote, where `work` has not come as far itself."""
    for folder in FOLDERS.values():
        if is_whole(begun / folder) and not is_whole(work / folder):
            shutil.copytree(begun / folder, work / folder)
    for weights in begun.glob("*.begun.safetensors"):
        records.write_bytes(work / weights.name, weights.read_bytes())


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A folder to write a part to that gets its name when all is written."""
    part = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    part.replace(target)


def is_whole(folder: Path) -> bool:
    """Whether a part of the base has been trained to its end."""
    return any((folder / name).exists() for name in ("config.json", "model_index.json"))


def _forget_places(folder: Path) -> None:
    """Take out of the configs from which folder their weights were last loaded."""
    for path in folder.rglob("config.json"):
        config = records.read_json(path)
        config.pop("_name_or_path", None)
        records.write_json(path, config)


def _load_vae(folder: Path, device: str) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).to(device).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("models/.work"), help="pictures, states, previews")
    parser.add_argument("--take-along", action="store_true", help=f"write what --work has to {BEGUN}; train nothing")
    parser.add_argument(
        "--begin-from", type=Path, metavar="FOLDER", help="a base: its VAE, UNet, words and BLIP are gone on with"
    )
    parser.add_argument("--out", type=Path, default=Path("models"), help="where tiny-sd and tiny-blip are written")
    parser.add_argument("--share", type=float, default=1.0, help="of pictures and steps; below 1 a rehearsal")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the result depends on it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to train in this process")
    args = parser.parse_args()
    if args.take_along:
        take_along(args.work, BEGUN)
        return
    if args.share == 1.0:
        take_up(BEGUN, args.work)
    torch.set_num_threads(args.threads)
    recipe = BaseRecipe() if args.begin_from is None else BaseRecipe().from_another()
    recipe = recipe if args.share == 1.0 else recipe.shortened(args.share)
    make(recipe, args.work, args.out, args.device, args.only, args.threads, args.begin_from)


if __name__ == "__main__":
    main()
