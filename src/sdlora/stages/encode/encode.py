"""Encode pictures once: the posterior's mean and deviation, stored by content in shards."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

from sdlora import choices, determinism, gpu, records, tensors
from sdlora.flow import hashing, store
from sdlora.flow.recipe import Values
from sdlora.models import load_model
from sdlora.progress import Progress
from sdlora.stages.encode import shards
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
    """Write the latents of the pictures in `train/` to `latents/<base>/`, in shards, and an index of them.

    Shards are kept in the store, for all datasets and versions: the files here are links to them. A shard that is not
    there is put together from what other shards have, and encoded as far as none has it.

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
    rows = records.read_jsonl(folder / "train" / "metadata.jsonl")
    files = [folder / "train" / row["file_name"] for row in rows]
    keys = [latent_key(file, values) for file in files]
    wanted = shards.shards_of(keys, shards.LIMIT)
    new = _complete(recipe, kept, wanted, dict(zip(keys, files, strict=True)), out)
    count = sum(key in new for key in keys)
    print(f"encode: {count} new, {len(rows) - count} already in the cache", flush=True)
    for left in out.glob("*.safetensors"):  # of other pictures
        if left.name not in wanted:
            left.unlink()
    shards.drop_superseded(kept, wanted)
    store.drop_unused(kept)
    shard_of = {key: name for name, group in wanted.items() for key in group}
    index = out / INDEX
    records.write_jsonl(
        index,
        (
            {"id": row["id"], "mirrored": row["mirrored"], "file": shard_of[key], "key": key}
            for row, key in zip(rows, keys, strict=True)
        ),
    )
    return [index, *(out / name for name in sorted(wanted))]


def _complete(
    recipe: EncodeRecipe, kept: Path, wanted: Mapping[str, list[str]], files: Mapping[str, Path], out: Path
) -> set[str]:
    """Write those shards that the store has not, one after the other, and put them all into `out`.

    Returns:
        The keys of the pictures that were encoded.
    """
    missing = {}
    for name, group in wanted.items():
        if tensors.is_whole(kept / name):
            store.take(kept / name, out / name)  # at once, so that no other job thinks that nobody needs it
        else:
            missing[name] = group
    asked = {key for group in missing.values() for key in group}
    found = shards.gathered(kept, asked)
    new = asked - found.keys()
    encode = _encoder(recipe, len(new))
    for name, group in missing.items():
        shards.write(kept / name, {key: found[key] if key in found else encode(files[key]) for key in group})
        store.take(kept / name, out / name)
    return new


def _encoder(recipe: EncodeRecipe, count: int) -> Callable[[Path], shards.Latents]:
    """The base's VAE, loaded when it is first asked, which tells how far it is."""
    base = recipe.base.model_copy(update={"dtype": recipe.encode.dtype})
    model = cache(lambda: load_model(base, kinds=("vae",)))
    progress = Progress("encode", count)

    def encode(picture: Path) -> shards.Latents:
        with gpu.told_when_it_fails(lambda: _smaller(recipe)):
            latents = posterior_of(model(), picture)
        progress.advance()
        return latents

    return encode


def _smaller(recipe: EncodeRecipe) -> str:
    """What takes less memory while encoding; a VAE that overflows in fp16 computes in fp32 then, too."""
    dtype, ways = recipe.encode.dtype, ["a smaller fit.size_px"]
    if choices.pick(choices.FAMILIES, recipe.base.family).fp16_vae_overflows:
        ways += ["encode.dtype: bf16, where the card has it"] if dtype != "bf16" else []
    elif dtype == "fp32":
        ways += ["encode.dtype: fp16"]
    return f"less is taken by {' or '.join(ways)}"
