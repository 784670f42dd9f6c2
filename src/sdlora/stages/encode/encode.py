"""Encode pictures once: the posterior's mean and deviation, stored by content."""

from pathlib import Path

import torch

from sdlora import determinism, gpu, records, tensors
from sdlora.flow import hashing, store
from sdlora.flow.recipe import Values
from sdlora.models import load_model
from sdlora.progress import Progress
from sdlora.stages.encode.posterior import posterior_of
from sdlora.stages.encode.recipe import EncodeRecipe

KIND = "latents"  # what they are called in the store
INDEX = "index.jsonl"


def latents_folder(folder: Path, base_name: str) -> Path:
    """Where a fitted set's latents of one base lie."""
    return folder / "latents" / base_name


def latent_key(picture: Path, values: Values) -> str:
    """Name of a picture's latents: its bytes and everything else their values depend on."""
    return hashing.sha256_text(hashing.sha256_of(picture) + records.canonical_json(values))[:32]


def encode_dataset(recipe: EncodeRecipe, folder: Path | None = None) -> list[Path]:
    """Write `latents/<base>/<key>.safetensors` for each picture of `train/`, and an index.

    Latents are kept in the store by their key, for all datasets and versions: the files here are links to them.

    Args:
        recipe: Settings, base, code identity and threads.
        folder: Fitted dataset with `train/metadata.jsonl`, if it is not where the recipe says.

    Returns:
        The files written.
    """
    folder, values = folder or recipe.folder, recipe.identity()
    torch.set_num_threads(recipe.threads)
    determinism.choose(deterministic=True)
    out, kept = latents_folder(folder, recipe.base_name), store.STORE / KIND
    rows = [
        {**row, "file": f"{latent_key(folder / 'train' / row['file_name'], values)}.safetensors"}
        for row in records.read_jsonl(folder / "train" / "metadata.jsonl")
    ]
    new = [row for row in rows if not tensors.is_whole(kept / row["file"])]
    if new:
        model = load_model(recipe.base.model_copy(update={"dtype": recipe.encode.dtype}), kinds=("vae",))
        progress = Progress("encode", len(new))
        for number, row in enumerate(new, start=1):
            with gpu.told_when_it_fails(lambda: "less is taken by a smaller fit.size_px or encode.dtype: fp16"):
                mean, std = posterior_of(model, folder / "train" / row["file_name"])
            tensors.write(kept / row["file"], {"mean": mean, "std": std})
            progress.update(number)
    print(f"encode: {len(new)} new, {len(rows) - len(new)} already in the cache", flush=True)
    for row in rows:
        store.take(kept / row["file"], out / row["file"])
    store.drop_unused(kept)
    index = out / INDEX
    records.write_jsonl(index, ({name: row[name] for name in ("id", "mirrored", "file")} for row in rows))
    return [index, *sorted({out / row["file"] for row in rows})]
