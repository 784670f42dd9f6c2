"""Encode pictures once: the posterior's mean and deviation, stored by content."""

from pathlib import Path

import numpy as np
import torch

from sdlora import provenance, records, tensors
from sdlora.adapters import load_adapter
from sdlora.params import Base, Encode
from sdlora.pictures import read_rgb
from sdlora.progress import Progress


def latent_key(picture_sha256: str, base_identity: str, dtype: str, threads: int) -> str:
    """Name of a picture's latents: everything their bytes depend on."""
    return provenance.sha256_text(f"{picture_sha256} {base_identity} {dtype} {threads}")[:32]


def encode_dataset(
    settings: Encode, base: Base, base_identity: str, base_name: str, folder: Path, threads: int
) -> list[Path]:
    """Write `latents/<key>.safetensors` for each picture of `train/`, and an index.

    Args:
        settings: Precision.
        base: Whose VAE encodes.
        base_identity: Which weights that means.
        base_name: Entry of `bases`; names the index.
        folder: Fitted dataset with `train/metadata.jsonl`.
        threads: CPU threads.

    Returns:
        The files written; existing latents of the same key are kept as they are.
    """
    torch.set_num_threads(threads)
    out = folder / "latents"
    rows = [
        {
            **row,
            "key": latent_key(
                provenance.sha256_of(folder / "train" / row["file_name"]), base_identity, settings.dtype, threads
            ),
        }
        for row in records.read_jsonl(folder / "train" / "metadata.jsonl")
    ]
    new = [row for row in rows if not tensors.is_whole(out / f"{row['key']}.safetensors")]
    if new:
        adapter = load_adapter(base.model_copy(update={"dtype": settings.dtype}))
        progress = Progress("encode", len(new))
        for number, row in enumerate(new, start=1):
            pixels = np.asarray(read_rgb(folder / "train" / row["file_name"])).astype(np.float32)
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
            mean, std = adapter.encode_images(image)
            tensors.write(out / f"{row['key']}.safetensors", {"mean": mean[0].cpu(), "std": std[0].cpu()})
            progress.update(number)
    print(f"encode: {len(new)} new, {len(rows) - len(new)} already in the cache", flush=True)
    index = out / f"index-{base_name}.jsonl"
    records.write_jsonl(
        index, ({"id": r["id"], "mirrored": r["mirrored"], "file": f"{r['key']}.safetensors"} for r in rows)
    )
    return [index, *sorted({out / f"{row['key']}.safetensors" for row in rows})]
