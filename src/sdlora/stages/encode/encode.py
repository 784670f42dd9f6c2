"""Encode pictures once: the posterior's mean and deviation, stored by content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdlora import determinism, records, tensors
from sdlora.config.params import Base, Encode
from sdlora.flow import hashing
from sdlora.models import load_model
from sdlora.progress import Progress
from sdlora.stages.encode.posterior import posterior_of


def latent_key(picture: Path, recipe: Mapping[str, Any]) -> str:
    """Name of a picture's latents: its bytes and everything else their values depend on."""
    return hashing.sha256_text(hashing.sha256_of(picture) + records.canonical_json(recipe))[:32]


def encode_dataset(recipe: Mapping[str, Any], base_name: str, folder: Path) -> list[Path]:
    """Write `latents/<key>.safetensors` for each picture of `train/`, and an index.

    Args:
        recipe: Settings, base, code identity and threads.
        base_name: Entry of `bases`; names the index.
        folder: Fitted dataset with `train/metadata.jsonl`.

    Returns:
        The files written; undamaged latents of the same key are kept as they are.
    """
    settings, base = Encode(**recipe["encode"]), Base(**recipe["base"])
    torch.set_num_threads(recipe["threads"])
    determinism.choose(deterministic=True)
    out = folder / "latents"
    rows = [
        {**row, "key": latent_key(folder / "train" / row["file_name"], recipe)}
        for row in records.read_jsonl(folder / "train" / "metadata.jsonl")
    ]
    new = [row for row in rows if not tensors.is_whole(out / f"{row['key']}.safetensors")]
    if new:
        model = load_model(base.model_copy(update={"dtype": settings.dtype}))
        progress = Progress("encode", len(new))
        for number, row in enumerate(new, start=1):
            mean, std = posterior_of(model, folder / "train" / row["file_name"])
            tensors.write(out / f"{row['key']}.safetensors", {"mean": mean, "std": std})
            progress.update(number)
    print(f"encode: {len(new)} new, {len(rows) - len(new)} already in the cache", flush=True)
    index = out / f"index-{base_name}.jsonl"
    records.write_jsonl(
        index, ({"id": r["id"], "mirrored": r["mirrored"], "file": f"{r['key']}.safetensors"} for r in rows)
    )
    return [index, *sorted({out / f"{row['key']}.safetensors" for row in rows})]
