"""Make a folder that transformers 5 wrote open in transformers 4, too.

Version 5 flattened CLIPTextModel's names and keeps a tokenizer in one file; version 4 knows neither. Version 5 reads
the older forms as well.
"""

import json
from pathlib import Path

from safetensors.torch import load_file

from sdlora import records, tensors

OLDER = "text_model."  # what version 4 has before every name of a CLIP text encoder


def name_as_before(file: Path) -> None:
    """Rewrite a text encoder's file with the older names; values and types stay."""
    found = {f"{OLDER}{name.removeprefix(OLDER)}": value for name, value in load_file(file).items()}
    records.write_bytes(file, b"".join(tensors.pieces(found, {"format": "pt"})))


def write_vocabulary(folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` beside the `tokenizer.json` of a byte-level BPE tokenizer."""
    model = records.read_json(folder / "tokenizer.json")["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    records.write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False) + "\n")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    records.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")


def open_to_both(folder: Path) -> None:
    """Do both to a diffusers folder of one text encoder."""
    name_as_before(folder / "text_encoder" / "model.safetensors")
    write_vocabulary(folder / "tokenizer")
